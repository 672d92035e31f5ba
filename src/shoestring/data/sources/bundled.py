"""What ships with the package: families of problems (data/problems/README.md), made by tools/generate_problems.py, and the
questions of recorded completions (data/recorded/README.md), which carry what was measured of them and are read as files."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from shoestring.data.sources import jsonl
from shoestring.records import Problem, UserError

PREFIX = "bundled"
_SUFFIX = ".jsonl.gz"


def folder() -> Path:
    """Where the problem files lie."""
    return Path(str(resources.files("shoestring.data") / "problems"))


def families() -> list[str]:
    """The names that "bundled:NAME" knows, sorted."""
    return sorted(p.name.removesuffix(_SUFFIX) for p in folder().glob("*" + _SUFFIX))


def pools() -> dict[str, Path]:
    """The questions of recorded completions, by the name that "bundled:NAME" knows; rows have `pass_rate` and `tokens`."""
    found = Path(str(resources.files("shoestring.data") / "recorded")).glob("*_questions" + _SUFFIX)
    return {p.name.removesuffix(_SUFFIX): p for p in sorted(found)}


def heldout_text() -> str:
    """About 1,200 words of plain English prose, for the language-model loss before and after training."""
    return (resources.files("shoestring.data") / "heldout.txt").read_text(encoding="utf-8")


def load(rest: str, split: str | None = None, check: Callable[[Problem], None] | None = None) -> list[Problem]:
    """The problems of one family that ships. Raises UserError for an unknown one, or one without that split."""
    known = families()
    if rest not in known:
        known = sorted([*known, *pools()])
        near = difflib.get_close_matches(rest, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise UserError(f"no family {rest!r} ships with shoestring: {hint}")
    return jsonl.load_file(folder() / f"{rest}{_SUFFIX}", split=split, check=check)
