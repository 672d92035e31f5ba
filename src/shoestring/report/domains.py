"""The domain picture: how much of the pool each domain is, and how much of the choice, drawn as two points on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import charts
from .charts import e, n
from .load import RunFolder
from .style import absent, figure, h, legend, section, table, tag
from .text import figure as number
from .text import num, percent

SHOWN = 30  # domains in the picture; the table has all
ROW = 19.0  # units of height a domain


@dataclass(frozen=True)
class Domain:
    """pool, chosen: problems; pass_rate: mean of the chosen that were tried, None where none was."""

    name: str
    pool: float
    chosen: float
    pass_rate: float | None


def read(run: RunFolder) -> list[Domain]:
    """The domains of domains.json with at least one problem, those with most chosen first."""
    found = []
    for row in run.domains:
        pool, chosen = num(row.get("pool")), num(row.get("chosen"))
        if pool is not None and chosen is not None and pool > 0 and chosen >= 0:
            found.append(Domain(str(row.get("domain") or "(none)"), pool, chosen, num(row.get("pass_rate"))))
    return sorted(found, key=lambda d: (-d.chosen, -d.pool, d.name))


def domains(run: RunFolder) -> str:
    """Nothing where the run chose no problems, or is of a time before domains.json."""
    title = "The domains"
    found = read(run)
    if not found:
        why = run.why_absent("domains.json")
        return absent(title, why) if why and "could not be read" in why else ""
    pool, chosen = sum(d.pool for d in found), sum(d.chosen for d in found)
    covered = sum(d.chosen > 0 for d in found)
    how = str(next((r.get("selector") for r in run.domains if r.get("selector")), "") or "a selector")
    first = found[:SHOWN]
    largest, most = max(d.pool for d in found) / pool, max(d.chosen for d in found) / max(chosen, 1)
    text = (
        f"{number(chosen, 9)} problems were chosen by {h(how, 40)} from {covered} of {len(found)} domains. The largest domain "
        f"is {percent(largest)} of the pool, the most chosen one {percent(most)} of the choice. {tag('measured')}"
    )
    keys = legend([("share of the pool", "soft"), ("share of the chosen", "m2")])
    sub = f"{SHOWN} of {len(found)} domains" if len(found) > SHOWN else ""
    picture = figure("How much of each domain", charts.both(lambda w: _draw(first, pool, chosen, w)), keys, sub)
    head = [("domain", "nw"), ("in the pool", "r"), ("chosen", "r"), ("share of the chosen", "r"), ("pass rate", "r")]
    rows = (
        [h(d.name, 60), number(d.pool, 9), number(d.chosen, 9), percent(d.chosen / max(chosen, 1)), percent(d.pass_rate)]
        for d in found
    )
    listing = table(head, rows, label="domains")
    if len(found) > 12:
        listing = f'<details class="more"><summary>all {len(found)} domains</summary>{listing}</details>'
    return section(title, text, picture + listing)


def _draw(found: Sequence[Domain], pool: float, chosen: float, width: int) -> str:
    """A row a domain: a ring at its share of the pool, a dot at its share of the chosen, a line between them."""
    wide = width > 500
    left, right, top = (220.0 if wide else 120.0), width - 24.0, 8.0
    bottom = top + ROW * len(found)
    most = max(max(d.pool / pool, d.chosen / max(chosen, 1)) for d in found) * 1.05

    def px(share: float) -> float:
        return left + (right - left) * share / most

    out = []
    for t in charts.ticks(0, most, 6 if wide else 3):
        out.append(f'<line x1="{n(px(t))}" y1="{n(top)}" x2="{n(px(t))}" y2="{n(bottom)}" class="grid"/>')
        out.append(_text(px(t), bottom + 18, percent(t, 0 if most > 0.05 else 1), "middle"))
    for i, d in enumerate(found):
        y = top + ROW * (i + 0.5)
        a, b = px(d.pool / pool), px(d.chosen / max(chosen, 1))
        out.append(_text(left - 10, y + 4, _cut(d.name, 30 if wide else 16), "end"))
        out.append(f'<line x1="{n(a)}" y1="{n(y)}" x2="{n(b)}" y2="{n(y)}" class="whisker" style="stroke:var(--soft)"/>')
        out.append(f'<circle cx="{n(a)}" cy="{n(y)}" r="4" class="dot" style="fill:var(--paper);stroke:var(--soft)"/>')
        said = f"{d.name}: {d.pool:.0f} in the pool, {d.chosen:.0f} chosen"
        dot = f'<circle cx="{n(b)}" cy="{n(y)}" r="5" class="dot" style="fill:var(--m2);stroke:var(--m2)">'
        out.append(f"{dot}<title>{e(said)}</title></circle>")
    told = "; ".join(f"{d.name} {100 * d.pool / pool:.1f}% to {100 * d.chosen / max(chosen, 1):.1f}%" for d in found)
    return charts.svg(width, bottom + 30, "Share of each domain in the pool and in the choice", told, "".join(out))


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{n(x)}" y="{n(y)}" class="tick" text-anchor="{anchor}">{e(text, 60)}</text>'


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
