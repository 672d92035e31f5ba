"""Where problems come from, one file a source. `load` reads a spec; a new source is one more file in this folder.

A source module has `load(rest, split, check) -> list[Problem]`; a spec "name:rest" goes to the module that states
PREFIX = "name", a spec without a known prefix is a path to a file or a data set's id on the Hugging Face hub.
`rows` reads a data set of any kind row by row: what conversations are read with.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Literal

from shoestring.data.sources import _files, _hub, jsonl
from shoestring.data.sources._files import Row
from shoestring.records import Problem, UserError

Split = Literal["train", "test"]
Check = Callable[[Problem], None]  # raises ValueError if the problem's answer cannot be graded
ALIASES = {"reasoning_gym": "gym", "reasoning-gym": "gym"}


def _modules() -> dict[str, ModuleType]:
    names = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in sorted(names)]
    return {m.PREFIX: m for m in modules}


def load(spec: str, split: Split | None = None, check: Check | None = None) -> list[Problem]:
    """The problems of one source, in its order.

    spec: "bundled:NAME" (a family that ships), "gym:NAME?min_terms=2&size=500&seed=7" (generated with Reasoning Gym),
    a path, "pool.jsonl.gz?prompt=question&answer=target" (JSON lines, JSON, CSV or parquet), or a hub id.
    split: the rows marked so; None is all.
    check: asked of every problem; its ValueError is reported with file and line. Default: the answer is not empty.
    Raises UserError (one line) for whatever is wrong with the spec or the file.
    """
    if split not in (None, "train", "test"):
        raise UserError(f"unknown split {split!r}: 'train', 'test' or none")
    modules = _modules()
    prefix, colon, rest = spec.partition(":")
    prefix = ALIASES.get(prefix, prefix)
    if colon and prefix in modules:
        return modules[prefix].load(rest, split, check)
    if colon and prefix.isalpha() and len(prefix) > 1 and not ("/" in prefix or "." in prefix):
        near = difflib.get_close_matches(prefix, [m for m in modules if m], n=1, cutoff=0.5)
        if near:
            raise UserError(f"unknown source {prefix!r} in {spec!r}: did you mean {near[0]!r}?")
    return modules[""].load(spec, split, check)


def stream(spec: str, split: Split | None = None) -> Iterator[jsonl.Made]:
    """The problems of one source one by one, as `load` reads it: (problem, what the row carries of measurements), or
    what is wrong with a row ("file:line: ..."). For pools that do not fit in memory, and for rows that need not be whole.
    """
    if is_generated(spec):
        return ((p, {}) for p in load(spec, split))
    return jsonl.stream(spec, split)


def is_generated(spec: str) -> bool:
    """Whether the spec names problems that ship or are made ("bundled:", "gym:"), rather than a file or a hub id."""
    prefix, colon, _ = spec.partition(":")
    return bool(colon) and ALIASES.get(prefix, prefix) in {m for m in _modules() if m}


def rows(spec: str, split: str = "train", config: str = "") -> Iterator[Row]:
    """The rows of a data set in order: a file, a hub id, or the problems of a source as rows.

    split: of the hub; rows of a file that state another "split" are left out, rows that state none belong to all.
    A row that cannot be read is handed over with what is wrong. Raises UserError (one line) where nothing can be read.
    """
    if is_generated(spec):
        problems = load(spec, "test" if split == "test" else "train")
        return (Row(f"{spec}:{n}", asdict(p)) for n, p in enumerate(problems, 1))
    if _hub.is_id(spec):
        return _hub.rows(spec, split, config)
    return (r for r in _files.rows(Path(spec)) if r.data is None or r.data.get("split") in (None, "", split))


def count(spec: str, split: str = "train", config: str = "") -> int | None:
    """How many rows a hub id states, without reading them; None for everything else."""
    return _hub.count(spec, split, config) if not is_generated(spec) and _hub.is_id(spec) else None
