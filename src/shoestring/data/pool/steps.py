"""The free steps in order, each over a table: what is left of the rows, with a reason for every one that leaves."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from shoestring import answers
from shoestring.data import decontaminate, dedupe, minhash, templates
from shoestring.data.funnel import Funnel, Row
from shoestring.data.keys import repeating
from shoestring.data.marks import Marks, mark
from shoestring.data.pool.folders import Folders
from shoestring.records import Problem

Why = list[tuple[int, str, int]]  # row, reason, the row that it repeats (-1: none)


class Signatures(Protocol):
    """rows [T]: the rows with enough of their own to be compared; bands and sketches go by position in it."""

    rows: np.ndarray

    def band(self, band: int) -> np.ndarray: ...

    def sketches(self, at: np.ndarray) -> np.ndarray: ...


class Table(Protocol):
    """Rows 0 to total - 1 of a pool, in memory or in files, and what is known of each (data.marks)."""

    total: int
    collected: int  # rows read, the unreadable ones too
    unreadable: Counter[str]
    names: tuple[str, ...]  # domains

    def column(self, name: str) -> np.ndarray: ...

    def faults(self, name: str) -> list[tuple[int, str]]: ...

    def marks(self, rows: np.ndarray) -> Marks: ...

    def sign(self, templates: np.ndarray, alive: np.ndarray) -> Signatures: ...

    def leaks(self, index: decontaminate.Index, alive: np.ndarray) -> list[tuple[int, str]]: ...

    def rows(self, alive: np.ndarray) -> Iterator[dict[str, Any]]: ...


def run(table: Table, evaluation: Sequence[Problem], folders: Folders, near: bool) -> list[Row]:
    """The funnel. What each step dropped lies in its folder (dropped.jsonl), the problems left in problems.jsonl."""
    funnel = Funnel()
    funnel.start(table.collected, "rows of the sources")
    alive = np.ones(table.total, bool)
    unreadable = sum(table.unreadable.values())

    def step(folder: str, name: str, does: Callable[[], Why], lost: Counter[str] | None = None, idle: str = "") -> None:
        done = folders.done(folder)
        if done is None:
            started = time.perf_counter()
            dropped = does()
            with (folders.root / folder / "dropped.jsonl").open("w", encoding="utf-8") as f:
                for row, why, of in dropped:
                    f.write(json.dumps({"n": row, "why": why} | ({"of": of} if of >= 0 else {}), ensure_ascii=False) + "\n")
            folders.seconds[folder] = round(time.perf_counter() - started, 3)
            reasons = Counter(why.partition(":")[0] for _, why, _ in dropped)
            done = folders.finish(folder, {"reasons": dict(reasons), "seconds": folders.seconds[folder]})
            gone = np.array([row for row, _, _ in dropped], np.int64)
        else:
            gone = _numbers(folders.root / folder / "dropped.jsonl")
        before = int(alive.sum()) + sum((lost or Counter()).values())
        alive[gone] = False
        counted = Counter(done["reasons"]) + (lost or Counter())
        funnel.add(name, before, int(alive.sum()), Funnel.reasons(counted) if counted or not idle else idle)

    def formats() -> Why:
        return [(n, why, -1) for n, why in table.faults("format")]

    def duplicates() -> Why:
        rows = np.flatnonzero(alive)
        of = dedupe.repeats(table.column("text")[rows])
        return [(int(rows[i]), "the same question twice", int(rows[of[i]])) for i in np.flatnonzero(of >= 0)]

    def by_domain(rows: np.ndarray) -> Marks:
        drawn = templates.draw(table.column("domain")[rows], table.column("text")[rows], len(table.names))
        return table.marks(rows[drawn])

    def copies() -> Why:
        rows = np.flatnonzero(alive)
        signed = table.sign(minhash.templates(by_domain(rows)), alive)
        candidates = minhash.pairs(signed.band(b) for b in range(minhash.BANDS))
        involved, back = np.unique(candidates, return_inverse=True)
        of = minhash.judged(back.reshape(candidates.shape), signed.sketches(involved), len(involved))
        for file in (folders.root / "near").glob("*.parquet"):  # 280 bytes a row, and of no more use
            file.unlink()
        pairs = [(int(signed.rows[involved[i]]), int(signed.rows[involved[of[i]]])) for i in np.flatnonzero(of >= 0)]
        said = f"shares {minhash.NEAR:.0%} of its runs of words, its numbers and its answer with an earlier one"
        return [(row, said, first) for row, first in pairs]

    def leaks() -> Why:
        if not evaluation:
            return []
        rows = np.flatnonzero(alive)
        sample = table.marks(rows[decontaminate.drawn(table.column("text")[rows], decontaminate.SAMPLE)])
        theirs = mark(evaluation)
        words = [answers.words(p.prompt) for p in evaluation]
        procedural = _procedural(table, rows, theirs)
        index = decontaminate.build(sample, by_domain(rows), len(rows), theirs, words, procedural)
        return [(n, why, -1) for n, why in table.leaks(index, alive)]

    def contents() -> Why:
        return [(n, why, -1) for n, why in table.faults("content") if alive[n]]

    step("format", "format and language", formats, table.unreadable if unreadable else None)
    step("duplicates", "duplicates", duplicates)
    if near:
        step("near", "near duplicates", copies)
    step("decontamination", "decontamination", leaks, None, "no evaluation set named" if not evaluation else "")
    step("quality", "quality", contents)
    if folders.done("problems") is None:
        started = time.perf_counter()
        with (folders.root / "problems.jsonl").open("w", encoding="utf-8") as f:
            f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.rows(alive))
        folders.seconds["problems"] = round(time.perf_counter() - started, 3)
        folders.finish("problems", {"rows": int(alive.sum()), "seconds": folders.seconds["problems"]})
    return funnel.rows()


def _procedural(table: Table, rows: np.ndarray, theirs: Marks) -> frozenset[str]:
    """The families that repeat, judged over the pool and the evaluation together."""
    codes = {name: code for code, name in enumerate(table.names)}
    domain = [codes.setdefault(name, len(codes)) for name in theirs.names]
    other = np.array(domain or [0], np.int64)[theirs.domain]
    both = np.concatenate([table.column("domain")[rows].astype(np.int64), other])
    found = repeating(both, np.concatenate([table.column("skeleton")[rows], theirs.skeleton]), len(codes))
    return frozenset(name for name, code in codes.items() if found[code])


def _numbers(path: Path) -> np.ndarray:
    with path.open(encoding="utf-8") as f:
        return np.array([json.loads(line)["n"] for line in f], np.int64)
