"""Measured rows: verdicts, the stored file, the printed table and the one in docs/benchmarks.md.

python -m benchmarks.results --write-docs    the table of docs/benchmarks.md from benchmarks/results/cpu.json

No torch, no processes: tests/unit/test_benchmarks.py covers all of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.table import SPECS, Spec

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "benchmarks" / "results" / "cpu.json"
GPU_STORED = STORED.with_name("h100.json")
DOCS = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- table: made by `python -m benchmarks.results --write-docs` -->", "<!-- end of the table -->"
NOT_YET = "not measured yet; `make bench` does"
NO_GPU = "no GPU at hand; `python -m benchmarks.cuda` does"


@dataclass(frozen=True)
class Row:
    """One comparison. `ours` and `peer` are medians over blocks, the blocks stand in `runs`.

    correctness: what was checked beside the speed, in words and numbers; `sound` is false when that check failed.
    not_run: why there is no figure, "" where there is one. date and machine are those of the measurement.
    """

    spec: Spec
    ours: float | None = None
    peer: float | None = None
    peer_version: str = ""
    runs: Mapping[str, Sequence[float]] = field(default_factory=dict)
    correctness: str = ""
    sound: bool = True
    not_run: str = ""
    date: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """How many times better we are: above 1 is better, whichever way the unit runs."""
        if not self.peer or not self.ours:
            return None
        return self.ours / self.peer if self.spec.better == "higher" else self.peer / self.ours

    @property
    def met(self) -> bool | None:
        """None where nothing was demanded or nothing was measured."""
        if self.ours is None:
            return None
        return self.spec.must.reached(self.ours, self.ratio) if self.sound else False

    def to_dict(self) -> dict[str, Any]:
        s = self.spec
        return {
            "what": s.what,
            "ours": None if self.ours is None else significant(self.ours),
            "peer": None if self.peer is None else significant(self.peer),
            "peer_name": s.peer_name,
            "peer_version": self.peer_version,
            "unit": s.unit,
            "better": s.better,
            "ratio": None if self.ratio is None else round(self.ratio, 3),
            "must": s.must.to_dict(),
            "aim": s.aim.to_dict(),
            "met": self.met,
            "runs": {k: [significant(v) for v in vs] for k, vs in self.runs.items()},
            "correctness": self.correctness,
            "sound": self.sound,
            "not_run": self.not_run or None,
            "basis": "measured" if self.ours is not None else None,
            "family": s.family,
            "date": self.date or None,
            "machine": dict(self.machine) or None,
        }


def from_dict(spec: Spec, d: Mapping[str, Any]) -> Row:
    """The stored row under today's demands: what it must reach is the table's, not the file's."""
    return Row(
        spec,
        d["ours"],
        d["peer"],
        d["peer_version"],
        d["runs"],
        d["correctness"],
        d["sound"],
        d["not_run"] or "",
        d["date"] or "",
        d["machine"] or {},
    )


def medians(spec: Spec, ours: Sequence[float], peer: Sequence[float] = (), **rest: Any) -> Row:
    """A row from the blocks of both sides."""
    runs = {"ours": list(ours), **({"peer": list(peer)} if peer else {})}
    return Row(spec, statistics.median(ours), statistics.median(peer) if peer else None, runs=runs, **rest)


def merge(old: Sequence[Row], new: Sequence[Row], specs: Sequence[Spec] = SPECS) -> list[Row]:
    """The whole table in its own order. A new figure replaces an old one; a reason replaces no figure."""
    out = []
    for s in specs:
        found = [r for rows in (new, old) for r in rows if r.spec.what == s.what]
        measured = [r for r in found if r.ours is not None]
        missing = Row(s, not_run=NO_GPU if s.family == "h100" else NOT_YET)
        out.append((measured or found or [missing])[0])
    return out


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


def times(row: Row) -> str:
    return "" if row.ratio is None else f"{row.ratio:.2f}×"


def verdict(row: Row) -> str:
    if row.ours is None:
        return "not run"
    if not row.sound:
        return "missed: the check failed"
    if row.met is None:
        return ""
    if row.spec.aim.reached(row.ours, row.ratio):
        return "met, and the aim"
    return "met" if row.met else "missed"


def print_table(rows: Sequence[Row], console: Any = None) -> None:
    from rich.console import Console
    from rich.table import Table

    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=150)
    table = Table(title="measured, medians over blocks in turns", title_justify="left")
    table.add_column("what")
    for name in ("ours", "peer"):
        table.add_column(name, justify="right")
    table.add_column("unit")
    for name in ("times better", "must", "aim"):
        table.add_column(name, justify="right")
    table.add_column("")
    for r in rows:
        s, said = r.spec, verdict(r)
        colour = "green" if r.met else "bold red" if r.met is False else "dim"
        ours, peer, must, aim = shown(r.ours), shown(r.peer), str(s.must), str(s.aim)
        table.add_row(s.what, ours, peer, s.unit, times(r), must, aim, f"[{colour}]{said}[/]" if said else "")
    console.print(table)
    for line in notes(rows):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def notes(rows: Sequence[Row]) -> list[str]:
    """Peers, what was checked, why rows were not run, and the machines, one line each."""
    out = [f"peer: {p}" for p in dict.fromkeys(f"{r.spec.peer_name} ({r.peer_version})" for r in rows if r.peer_version)]
    out += [f"{r.spec.what}: {r.correctness}" for r in rows if r.correctness]
    reasons: dict[str, list[str]] = {}
    for r in rows:
        if r.not_run:
            reasons.setdefault(r.not_run, []).append(r.spec.what)
    out += [f"not run ({reason}): {'; '.join(whats)}" for reason, whats in reasons.items()]
    machines: dict[str, list[str]] = {}
    for r in rows:
        if r.ours is not None:
            said = ", ".join(f"{k} {v}" for k, v in r.machine.items() if k != "load_at_start")
            machines.setdefault(f"{r.date}: {said}", []).append(r.spec.what)
    if len(machines) == 1:
        return out + [f"machine, {m}" for m in machines]
    return out + [f"machine, {m}: {'; '.join(whats)}" for m, whats in machines.items()]


def markdown(rows: Sequence[Row]) -> str:
    """The table of docs/benchmarks.md."""
    head = ("what", "ours", "peer", "unit", "times better", "must", "aim", "", "blocks", "measured")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for r in rows:
        s, blocks = r.spec, len(r.runs.get("ours", ())) or ""
        figures = (s.what, shown(r.ours), shown(r.peer), s.unit, times(r))
        cells = (*figures, str(s.must), str(s.aim), verdict(r), blocks, r.date)
        lines.append("| " + " | ".join(str(c) if c != "" else "–" for c in cells) + " |")
    return "\n".join([*lines, "", *(f"- {n}" for n in notes(rows))])


def load(path: Path = STORED) -> list[Row]:
    """The stored rows that the table still has; none where there is no file."""
    if not path.exists():
        return []
    by_name = {s.what: s for s in SPECS}
    return [from_dict(by_name[d["what"]], d) for d in json.loads(path.read_text("utf-8")) if d["what"] in by_name]


def write(rows: Sequence[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([r.to_dict() for r in rows], indent=1, ensure_ascii=False) + "\n", "utf-8")


def with_table(text: str, rows: Sequence[Row]) -> str:
    """The page with its table made anew. ValueError where the page has no markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN!r} or {END!r}")
    return f"{before}{BEGIN}\n\n{markdown(rows)}\n\n{END}{after}"


def write_docs(rows: Sequence[Row], page: Path = DOCS) -> None:
    page.write_text(with_table(page.read_text("utf-8"), merge(rows, load(GPU_STORED))), "utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="benchmarks.results", description="Show the stored table.")
    p.add_argument("--write-docs", action="store_true", help="write it into docs/benchmarks.md instead")
    rows = merge(load(), load(GPU_STORED))
    if p.parse_args(argv).write_docs:
        write_docs(rows)
    else:
        print_table(rows)


if __name__ == "__main__":
    main()
