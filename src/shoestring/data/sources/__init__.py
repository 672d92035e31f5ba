"""Where problems come from, one file a source. `load` reads a spec; a new source is one more file in this folder.

A source module has `load(rest, split, check) -> list[Problem]`, and, where one problem may be ungradable and the others sound,
`made(rest, split, check)`, which gives each problem or what is wrong with it; a spec "name:rest" goes to the module that states
PREFIX = "name", a spec without a known prefix is a path to a file or a data set's id on the Hugging Face hub.
`rows` reads a data set of any kind row by row: what conversations are read with.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Literal

from shoestring.data.sources import _files, _hub, bundled, jsonl
from shoestring.data.sources._files import Row
from shoestring.records import Problem, UserError

Split = Literal["train", "test"]
Check = Callable[[Problem], None]  # raises ValueError if the problem's answer cannot be graded
ALIASES = {"reasoning_gym": "gym", "reasoning-gym": "gym"}


def _modules() -> dict[str, ModuleType]:
    names = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in sorted(names)]
    return {m.PREFIX: m for m in modules}


def located(spec: str) -> str:
    """The spec, with the path of its file in place of "bundled:NAME" where what ships under the name is read as a file: the
    questions of recorded completions, whose rows carry measurements. So a recipe may lie anywhere."""
    prefix, _, rest = spec.partition(":")
    name, mark, query = rest.partition("?")
    path = bundled.pools().get(name) if prefix == bundled.PREFIX else None
    return f"{path}{mark}{query}" if path else spec


def load(
    spec: str, split: Split | None = None, check: Check | None = None, lost: list[str] | None = None
) -> list[Problem]:
    """The problems of one source, in its order.

    spec: "bundled:NAME" (what ships: a family, or the questions of a recording), a path as in
    "pool.jsonl.gz?prompt=question&answer=target" (JSON lines, JSON, CSV or parquet), a hub id, or
    "gym:NAME?min_terms=2&size=500&seed=7" (generated with Reasoning Gym).
    split: the rows marked so; None is all.
    check: asked of every problem; its ValueError is reported with file and line. Default: the answer is not empty. A made
    problem that fails is left out, and what is wrong with it put into `lost`; a family of which none passes is an error.
    Raises UserError (one line) for whatever is wrong with the spec or the file.
    """
    if split not in (None, "train", "test"):
        raise UserError(f"unknown split {split!r}: 'train', 'test' or none")
    modules = _modules()
    spec = located(spec)
    prefix, colon, rest = spec.partition(":")
    prefix = ALIASES.get(prefix, prefix)
    if colon and prefix in modules:
        if not hasattr(modules[prefix], "made"):
            return modules[prefix].load(rest, split, check)
        made = list(modules[prefix].made(rest, split, check))
        if lost is not None:
            lost += [m for m in made if isinstance(m, str)]
        return [m for m in made if not isinstance(m, str)]
    if colon and prefix.isalpha() and len(prefix) > 1 and not ("/" in prefix or "." in prefix):
        near = difflib.get_close_matches(prefix, [m for m in modules if m], n=1, cutoff=0.5)
        if near:
            raise UserError(f"unknown source {prefix!r} in {spec!r}: did you mean {near[0]!r}?")
    return modules[""].load(spec, split, check)


def stream(spec: str, split: Split | None = None) -> Iterator[jsonl.Made]:
    """The problems of one source one by one, as `load` reads it: (problem, what the row carries of measurements), or
    what is wrong with a row ("file:line: ..."). For pools that do not fit in memory, and for rows that need not be whole.
    """
    spec = located(spec)
    if is_generated(spec):
        lost: list[str] = []
        problems = load(spec, split, lost=lost)
        return chain(((p, {}) for p in problems), lost)
    return jsonl.stream(spec, split)


def is_generated(spec: str) -> bool:
    """Whether the spec names a family that ships or is made ("bundled:", "gym:"), rather than a file or a hub id."""
    prefix, colon, _ = located(spec).partition(":")
    return bool(colon) and ALIASES.get(prefix, prefix) in {m for m in _modules() if m}


def rows(spec: str, split: str = "train", config: str = "") -> Iterator[Row]:
    """The rows of a data set in order: a file, a hub id, or the problems of a source as rows.

    split: of the hub; rows of a file that state another "split" are left out, rows that state none belong to all.
    A row that cannot be read is handed over with what is wrong. Raises UserError (one line) where nothing can be read.
    """
    spec = located(spec)
    if is_generated(spec):
        problems = load(spec, "test" if split == "test" else "train")
        return (Row(f"{spec}:{n}", asdict(p)) for n, p in enumerate(problems, 1))
    if _hub.is_id(spec):
        return _hub.rows(spec, split, config)
    return (r for r in _files.rows(Path(spec)) if r.data is None or r.data.get("split") in (None, "", split))


def count(spec: str, split: str = "train", config: str = "") -> int | None:
    """How many rows a hub id states, without reading them; None for everything else."""
    return _hub.count(spec, split, config) if not is_generated(spec) and _hub.is_id(spec) else None
