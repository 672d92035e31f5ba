"""The free steps of curation over a pool of any size: one plan, resumable by step, every drop counted with its reason.

    collected → format → duplicates → near duplicates → decontamination → quality → problems.jsonl

Each step is a rule that lives in a file of its own (data.quality, language, dedupe, minhash, decontaminate); here the rows
are moved. A small pool stays in memory and needs no Daft; a larger one is a Daft plan, on this machine's cores or, with
DAFT_RUNNER=ray, on a Ray cluster that shares the folder. All three give the same problems.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from shoestring.data import sources as sources_of
from shoestring.data.funnel import Row
from shoestring.data.pool import collect, engine, steps
from shoestring.data.pool.folders import Folders, peak_bytes, stamp
from shoestring.records import Problem, UserError

__all__ = ["PoolResult", "Settings", "curate_pool"]

RULES = 1  # raised when a rule changes, so that a folder of the old ones is not taken up again


@dataclass(frozen=True)
class Settings:
    """language: "en" drops what is not English, "any" nothing; near: whether near copies leave; split: of the sources'
    rows that state one; light: pools of up to this many rows are worked on in memory, without Daft; part: rows a file."""

    language: str = "en"
    near: bool = True
    split: str = "train"
    light: int = 5_000
    part: int = 50_000

    def __post_init__(self) -> None:
        if self.language not in ("en", "any"):
            raise UserError(f"language = {self.language!r} must be 'en' or 'any'")
        if self.light < 0 or self.part < 1:
            raise UserError(f"light = {self.light} cannot be below zero, part = {self.part} not below one")


@dataclass(frozen=True)
class PoolResult:
    """problems_path: JSON lines, in the sources' order, each a problem with what its row carried (pass_rate, rates, tokens,
    cluster). funnel: a row a step. seconds: wall clock of each step that ran now. peak: bytes that this process has held
    at most, measured. runner: "memory", "daft" or "daft on ray". resumed: the steps that an earlier call had finished."""

    problems_path: Path
    funnel: list[Row]
    seconds: dict[str, float]
    peak: int
    runner: str
    resumed: tuple[str, ...] = ()


def curate_pool(
    sources: Sequence[str],
    against: Sequence[str],
    folder: Path,
    settings: Settings | None = None,
    check: Callable[[Problem], None] | None = None,
) -> PoolResult:
    """Every free step over `sources`, without what the test split of `against` contains.

    sources, against: specs of data.sources (a file with mapped columns, a hub id, bundled:, gym:). folder: where each
    step leaves its output; a step's manifest is written last, and a call with the same sources (by size and time of
    change), settings and rules skips the steps that have one. check: a grader's look at a gold answer, a function that
    workers can import; its ValueError drops the problem, named "unparseable answer".

    The pool's rows are counted, never fatal: what cannot be read is in the funnel. Raises UserError (one line) for a
    source that cannot be opened or has no sound row at all, for a pool of which nothing is left, and, where the pool is
    larger than `settings.light` rows and Daft is not installed.
    """
    settings = settings or Settings()
    if not sources:
        raise UserError("curate: no source is named; name at least one, such as 'bundled:chain_sum' or pool.jsonl")
    print_of = stamp({"rules": RULES, "sources": _state(sources), "against": _state(against), **asdict(settings)})
    folders = Folders(folder, print_of)
    started = time.perf_counter()
    evaluation = [p for spec in against for p in sources_of.load(spec, "test", _any)]
    table = collect.open_table(sources, folders, settings.light, settings.part, settings.split, settings.language, check)
    if isinstance(table, collect.MemoryTable):
        folders.seconds["collected"] = round(time.perf_counter() - started, 3)
    funnel = steps.run(table, evaluation, folders, settings.near)
    path = folder / "problems.jsonl"
    if not funnel[-1]["after"]:
        lost = ", ".join(f"{r['step']} {r['before'] - r['after']}" for r in funnel if r["before"] > r["after"])
        raise UserError(f"curate: no problem is left of {funnel[0]['before']} ({lost})")
    runner = "memory" if isinstance(table, collect.MemoryTable) else engine.runner()
    return PoolResult(path, funnel, folders.seconds, peak_bytes(), runner, tuple(folders.resumed))


def _any(problem: Problem) -> None:
    """An evaluation question is compared whatever its answer."""


def _state(specs: Sequence[str]) -> list[str]:
    """The specs with the size and time of change of those that are files."""
    found = []
    for spec in specs:
        path = Path(sources_of.located(spec).partition("?")[0])
        stat = path.stat() if path.is_file() else None
        found.append(json.dumps([spec, stat.st_size, stat.st_mtime_ns] if stat else [spec]))
    return found
