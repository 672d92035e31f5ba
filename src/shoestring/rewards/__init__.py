"""Rewards: one file each, the module's name is the grader's name. A new reward is one new file in this folder.

A reward module has `grade(text, problem) -> float` in [0, 1], which never raises for any text, and `check(problem)`,
which raises ValueError if the problem's gold answer cannot be graded. `grade` raises the same ValueError: a gold that
cannot be read must never pay.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import Protocol, cast

from shoestring.records import Problem, UserError


class Reward(Protocol):
    """What a module in this folder offers."""

    def grade(self, text: str, problem: Problem) -> float: ...

    def check(self, problem: Problem) -> None: ...


def names() -> list[str]:
    """Every reward in the folder, sorted; modules that begin with "_" are helpers."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str) -> Reward:
    """The reward module of that name. Raises UserError, naming the nearest, if there is none."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise UserError(f"unknown grader {name!r}: {hint}")
    return cast(Reward, importlib.import_module(f"{__name__}.{name}"))
