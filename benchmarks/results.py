"""Rows, ratios and verdicts. No torch, no processes: tests/unit/test_benchmarks.py covers all of it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Must:
    """What a row has to reach: a ratio to the peer, or a value of our own. None: no such demand."""

    ratio_at_least: float | None = None
    ours_at_most: float | None = None

    def __str__(self) -> str:
        if self.ratio_at_least is not None:
            return f"≥ {self.ratio_at_least:g}×"
        return f"≤ {self.ours_at_most:g}" if self.ours_at_most is not None else ""

    def to_dict(self) -> dict[str, float] | None:
        found = {k: v for k, v in vars(self).items() if v is not None}
        return found or None


@dataclass(frozen=True)
class Row:
    """One measured comparison. `ours` and `peer` are medians over blocks, the blocks stand in `runs`.

    correctness: what was checked beside the speed, in words and numbers; `sound` is false when that check failed.
    """

    what: str
    unit: str
    better: Literal["higher", "lower"]
    ours: float
    peer: float | None = None
    peer_name: str = ""
    peer_version: str = ""
    must: Must = Must()
    runs: Mapping[str, Sequence[float]] = field(default_factory=dict)
    correctness: str = ""
    sound: bool = True

    @property
    def ratio(self) -> float | None:
        """How many times better we are: above 1 is better, whichever way the unit runs."""
        if not self.peer or not self.ours:
            return None
        return self.ours / self.peer if self.better == "higher" else self.peer / self.ours

    @property
    def met(self) -> bool | None:
        """None where nothing was demanded."""
        if not self.sound:
            return False
        if self.must.ratio_at_least is not None:
            return self.ratio is not None and self.ratio >= self.must.ratio_at_least
        if self.must.ours_at_most is not None:
            return self.ours <= self.must.ours_at_most
        return None

    def to_dict(self, machine: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "what": self.what,
            "ours": significant(self.ours),
            "peer": None if self.peer is None else significant(self.peer),
            "peer_name": self.peer_name,
            "peer_version": self.peer_version,
            "unit": self.unit,
            "better": self.better,
            "ratio": None if self.ratio is None else round(self.ratio, 3),
            "must": self.must.to_dict(),
            "met": self.met,
            "runs": {k: [significant(v) for v in vs] for k, vs in self.runs.items()},
            "correctness": self.correctness,
            "basis": "measured",
            "machine": dict(machine),
        }


def medians(
    what: str, unit: str, better: Literal["higher", "lower"], ours: Sequence[float], peer: Sequence[float], **rest: Any
) -> Row:
    """A row from the blocks of both sides."""
    runs = {"ours": list(ours), **({"peer": list(peer)} if peer else {})}
    middle = statistics.median(peer) if peer else None
    return Row(what, unit, better, statistics.median(ours), middle, runs=runs, **rest)


def same_share(ours: Sequence[Sequence[int]], peer: Sequence[Sequence[int]]) -> float:
    """Share of positions at which both sides chose the same token; a missing one counts as different."""
    places = sum(max(len(a), len(b)) for a, b in zip(ours, peer, strict=True))
    same = sum(x == y for a, b in zip(ours, peer, strict=True) for x, y in zip(a, b, strict=False))
    return same / places if places else 1.0


def missed(rows: Sequence[Row]) -> list[Row]:
    return [r for r in rows if r.met is False]


def significant(x: float, digits: int = 4) -> float:
    return float(f"{x:.{digits}g}")


def shown(x: float | None) -> str:
    if x is None:
        return ""
    return f"{x:,.0f}" if x >= 100 else f"{significant(x, 3):g}"


def print_table(rows: Sequence[Row], machine: Mapping[str, Any], console: Any = None) -> None:
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    table = Table(title="measured, medians over blocks in turns", title_justify="left")
    table.add_column("what")
    for name in ("ours", "peer"):
        table.add_column(name, justify="right")
    table.add_column("unit")
    for name in ("times better", "must"):
        table.add_column(name, justify="right")
    table.add_column("")
    verdict = {True: "[green]met[/]", False: "[bold red]missed[/]", None: ""}
    for r in rows:
        ratio = "" if r.ratio is None else f"{r.ratio:.2f}×"
        table.add_row(r.what, shown(r.ours), shown(r.peer), r.unit, ratio, str(r.must), verdict[r.met])
    console.print(table)
    for peer in dict.fromkeys(f"{r.peer_name} ({r.peer_version})" for r in rows if r.peer_name):
        console.print(f"peer: {peer}", highlight=False)
    for r in rows:
        if r.correctness:
            console.print(f"{r.what}: {r.correctness}", highlight=False)
    console.print("machine: " + ", ".join(f"{k} {v}" for k, v in machine.items()), highlight=False)


def write(rows: Sequence[Row], machine: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([r.to_dict(machine) for r in rows], indent=1, ensure_ascii=False) + "\n", "utf-8")
