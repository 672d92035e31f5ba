"""From sources to a table of rows: read one by one, kept in memory while they are few, else in parquet files of 50,000."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np

from shoestring.data import decontaminate, minhash, quality, sources
from shoestring.data.marks import Marks, mark
from shoestring.data.pool.folders import Folders
from shoestring.records import Problem, UserError

Item = tuple[Problem, dict[str, Any]]


@dataclass
class Reader:
    """The sound rows of several sources in order; counts the others by what is wrong with them."""

    specs: Sequence[str]
    split: str
    unreadable: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)  # kind of complaint -> the first one

    def __iter__(self) -> Iterator[Item]:
        for spec in self.specs:
            sound, wrong = 0, ""
            for made in sources.stream(spec, self.split):  # pyright: ignore[reportArgumentType]
                if isinstance(made, str):
                    wrong = wrong or made
                    kind = complaint(made)
                    self.unreadable[kind] += 1
                    self.first.setdefault(kind, made)
                    continue
                sound += 1
                yield made
            if not sound:
                raise UserError(wrong or f"{spec}: no row of it is in the split {self.split!r}")


def complaint(said: str) -> str:
    """The kind of a complaint about a row, for the funnel: what it says, less the place."""
    for words, kind in (
        ("is not JSON", "not JSON"), ("UTF-8", "not UTF-8"), ("no column", "a column missing"), ("is null", "a field empty"),
        ("prompt is empty", "a field empty"), ("must be a JSON object", "no object"), ("fields where the header", "not CSV"),
        ("is not CSV", "not CSV"), ("cannot be graded", "unparseable answer"), ("the split must be", "unknown split"),
        ("must be", "a field of the wrong type"),
    ):  # fmt: skip
        if words in said:
            return kind
    return "unreadable"


def written(problem: Problem, extras: Mapping[str, Any]) -> dict[str, Any]:
    """A row of problems.jsonl."""
    return {**asdict(problem), **extras}


@dataclass
class MemoryTable:
    """A small pool. Its rules are the ones of a large pool: only the rows stay here."""

    items: list[Item]
    collected: int
    unreadable: Counter[str]
    language: str
    check: Callable[[Problem], None] | None

    def __post_init__(self) -> None:
        self.total = len(self.items)
        self._marks = mark([p for p, _ in self.items])
        self.names = self._marks.names

    def column(self, name: str) -> np.ndarray:
        return getattr(self._marks, name)

    def faults(self, name: str) -> list[tuple[int, str]]:
        found = [faults(p, self.language, self.check)[name] for p, _ in self.items]
        return [(n, why) for n, why in enumerate(found) if why]

    def marks(self, rows: np.ndarray) -> Marks:
        return self._marks.take(rows)

    def sign(self, templates: np.ndarray, alive: np.ndarray) -> MemorySignatures:
        rows = np.flatnonzero(alive)
        return MemorySignatures(minhash.sign(self._marks.take(rows), templates), rows)

    def leaks(self, index: decontaminate.Index, alive: np.ndarray) -> list[tuple[int, str]]:
        rows = np.flatnonzero(alive)
        return [(int(n), why) for n, why in zip(rows, index.faults(self._marks.take(rows)), strict=True) if why]

    def rows(self, alive: np.ndarray) -> Iterator[dict[str, Any]]:
        return (written(*item) for item, on in zip(self.items, alive, strict=True) if on)


class MemorySignatures:
    def __init__(self, signed: minhash.Signed, rows: np.ndarray) -> None:
        self._signed, self._told = signed, np.flatnonzero(signed.told)
        self.rows = rows[self._told]

    def band(self, band: int) -> np.ndarray:
        return self._signed.bands[self._told, band]

    def sketches(self, at: np.ndarray) -> np.ndarray:
        return self._signed.sketch[self._told[at]]


def faults(
    problem: Problem, language: str, check: Callable[[Problem], None] | None
) -> dict[str, str | None]:
    """What the row-wise rules say: of the form, and, where that is sound, of the rest."""
    form = quality.format_fault(problem, language)
    return {"format": form, "content": None if form else quality.content_fault(problem, check)}


def open_table(
    specs: Sequence[str], folders: Folders, light: int, part: int, split: str, language: str,
    check: Callable[[Problem], None] | None,
) -> Any:  # fmt: skip
    """The table of the sources' rows: in memory up to `light` rows, else in files through Daft."""
    from shoestring.data.pool import files

    done = files.opened(folders, language, check)
    if done is not None:
        return done
    reader = Reader(specs, split)
    rows = iter(reader)
    few = list(islice(rows, light + 1))
    if len(few) > light:
        return files.fill(folders, chain(few, rows), reader, part, language, check)
    total = len(few) + sum(reader.unreadable.values())
    return MemoryTable(few, total, reader.unreadable, language, check)


def dumped(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) if value else ""
