"""Where problems come from, one file a source. `load` reads a spec; a new source is one more file in this folder.

A source module has `load(rest, split, check) -> list[Problem]`; a spec "name:rest" goes to the module that states
PREFIX = "name", a spec without a known prefix is a path to JSON lines.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Literal

from shoestring.records import Problem, UserError

Split = Literal["train", "test"]
Check = Callable[[Problem], None]  # raises ValueError if the problem's answer cannot be graded


def _modules() -> dict[str, ModuleType]:
    names = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in sorted(names)]
    return {m.PREFIX: m for m in modules}


def load(spec: str, split: Split | None = None, check: Check | None = None) -> list[Problem]:
    """The problems of one source, in its order.

    spec: "bundled:NAME" (a family that ships), "gym:NAME?min_terms=2&size=500&seed=7" (generated with Reasoning Gym),
    or a path to JSON lines, "pool.jsonl.gz?prompt=question&answer=target". split: the rows marked so; None is all.
    check: asked of every problem; its ValueError is reported with file and line. Default: the answer is not empty.
    Raises UserError (one line) for whatever is wrong with the spec or the file.
    """
    if split not in (None, "train", "test"):
        raise UserError(f"unknown split {split!r}: 'train', 'test' or none")
    modules = _modules()
    prefix, colon, rest = spec.partition(":")
    if colon and prefix in modules:
        return modules[prefix].load(rest, split, check)
    if colon and prefix.isalpha() and len(prefix) > 1 and not ("/" in prefix or "." in prefix):
        near = difflib.get_close_matches(prefix, [m for m in modules if m], n=1, cutoff=0.5)
        if near:
            raise UserError(f"unknown source {prefix!r} in {spec!r}: did you mean {near[0]!r}?")
    return modules[""].load(spec, split, check)
