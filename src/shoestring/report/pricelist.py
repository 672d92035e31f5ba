"""The price book on a terminal: aligned tables, with sources and dates numbered below them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from . import quiet

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 160  # columns where the output is no terminal: nothing is cut off in a file
KINDS = {
    "sources": "two sources disagree",
    "hours": "depends on the hour of the day",
    "date": "another date",
    "own": "your own book, and what ships",
}

# a price that is not what it seems: a mark, the words of its note, and what is said below the table
MARKS = {
    "*": ("spot costs as much", "no discount: spot costs as much as on-demand in that zone"),
    "^": ("the provider's floor", "exactly a tenth of on-demand: the provider's floor, not a market price"),
    "+": ("in place of the shipped", "your own price, in place of one that ships"),
}


class Sources:
    """Sources and dates, numbered in the order in which they are met."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str, bool], int] = {}

    def number(self, row: Mapping[str, Any]) -> str:
        n = self.seen.setdefault((row["source"], row["date"], row["low_confidence"]), len(self.seen) + 1)
        return f"{n}~" if row["low_confidence"] else str(n)

    def lines(self) -> Iterable[str]:
        for (source, date, low), n in self.seen.items():
            first, _, last = date.partition("..")
            said = f"read between {first} and {last}" if last else first
            yield f"{n}{'~' if low else ''} {source}, {said}"
        if any(low for _, _, low in self.seen):
            yield "~ low confidence: the day of the price is known only to more than a quarter; check before you buy"


def show(data: Mapping[str, Any], screen: Console | None = None) -> None:
    from rich.console import Console

    screen = screen or Console(width=None if sys.stdout.isatty() else WIDE, soft_wrap=False)
    sources = Sources()
    if "machines" in data:
        machines(data["machines"], screen, sources)
    for kind, title in (("teachers", "teachers, USD a million tokens"), ("storage", "storage"), ("egress", "egress")):
        if kind in data:
            (teachers if kind == "teachers" else units)(data[kind], screen, sources, title)
    if "conflicts" in data:
        conflicts(data["conflicts"], screen, sources)
    this = data["this"]
    said = this["note"].partition(";")[0]
    screen.print(f'machine = "this": {this["usd_per_hour"]} USD/hour [{sources.number(this)}] {said}', markup=False)
    for line in sources.lines():
        screen.print(line, markup=False, highlight=False, style="dim")


def machines(rows: list[dict[str, Any]], screen: Console, sources: Sources) -> None:
    """Zones of a region with one price share a line; prices are never averaged."""
    table = _table(("$/GPU-h", "r"), ("$/h", "r"), ("GPU", "r"), ("GiB", "r"), ("market", "r"), ("provider sku", "l"),
                   ("where", "l"), ("src", "r"))  # fmt: skip
    groups: dict[tuple[Any, ...], list[str]] = {}
    first: dict[tuple[Any, ...], dict[str, Any]] = {}
    for r in rows:
        key = (r["provider"], r["instance"], r["region"], r["market"], r["usd_per_hour"], r["source"], r["date"])
        groups.setdefault(key, []).append(r["zone"])
        first.setdefault(key, r)
    for key, zones in groups.items():
        r = first[key]
        place = r["region"] + ("/" + ", ".join(zones) if any(zones) else "")
        gpus = f"{r['gpus']}x {r['gpu']}" if r["gpus"] else "none"
        memory = f"{r['gpu_memory_gib']:g}" if r["gpu_memory_gib"] else "?"
        each = "" if r["usd_per_gpu_hour"] is None else _money(r["usd_per_gpu_hour"])
        table.add_row(each, _money(r["usd_per_hour"]), gpus, memory if r["gpus"] else "", _market(r),
                      f"{r['provider']} {r['instance']}", place, sources.number(r))  # fmt: skip
    screen.print(table)
    for mark, (words, said) in MARKS.items():
        if any(words in r["note"] for r in rows):
            screen.print(f"{mark} {said}", markup=False, highlight=False, style="dim")


def teachers(rows: list[dict[str, Any]], screen: Console, sources: Sources, title: str) -> None:
    """A line a model and hours; what a catalogue does not price stays blank, which is unknown and not free."""
    kinds = ("in", "out", "cached", "in-batch", "out-batch")
    table = _table(("model", "f"), *((k, "r") for k in kinds), ("when", "l"), ("src", "r"), title=title)
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for r in rows:
        bare, _, when = r["sku"].partition("@")
        model, _, kind = bare.removeprefix("teacher:").rpartition("/")
        line = lines.setdefault((model, when, sources.number(r)), {})
        line[kind] = f"{line[kind]} or {r['usd']}" if kind in line else r["usd"]
    for (model, when, source), line in sorted(lines.items()):
        table.add_row(model, *(line.get(k, "") for k in kinds), when, source)
    screen.print(table)


def units(rows: list[dict[str, Any]], screen: Console, sources: Sources, title: str) -> None:
    table = _table(("sku", "l"), ("USD", "r"), ("per", "l"), ("note", "f"), ("src", "r"), title=title)
    for r in rows:
        table.add_row(r["sku"], r["usd"], r["per"].replace("gb", "GB"), r["note"], sources.number(r))
    screen.print(table)


def conflicts(rows: list[dict[str, Any]], screen: Console, sources: Sources) -> None:
    table = _table(("what", "l"), ("sku", "f"), ("USD", "r"), ("per", "l"), ("src", "r"), title="the same thing, two prices")
    for row in rows:
        for n, price in enumerate(row["prices"]):
            table.add_row("" if n else KINDS[row["kind"]], price["sku"], price["usd"], price["per"], sources.number(price))
    screen.print(table)
    if not rows:
        screen.print("no conflicts")


def _market(row: Mapping[str, Any]) -> str:
    mark = next((m for m, (words, _) in MARKS.items() if words in row["note"]), "")
    return row["market"] + mark


def _money(text: str) -> str:
    value = Decimal(text)
    return f"{value:.2f}" if value >= 10 else f"{value:.4f}"


def _table(*columns: tuple[str, str], title: str = "") -> Any:
    """(heading, "l" | "r" | "f"): left, right, or left and folded where it is too long."""
    table = quiet.table(title)
    for heading, kind in columns:
        table.add_column(heading, justify="right" if kind == "r" else "left", no_wrap=kind == "r", overflow="fold")
    return table
