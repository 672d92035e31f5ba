"""An ablation as people read it: the plan before it, the tables on the terminal, and its page. Data: docs/ablate.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import charts, curves, quiet
from .charts import Mark
from .load import load, mapping, objects
from .page import replace, shell
from .style import figure, h, section, table, tag
from .text import DASH, interval, money, num, p_value, percent, points

if TYPE_CHECKING:
    from rich.console import Console

Row = Mapping[str, Any]
TITLE = "Accuracy on unseen problems, by arm"
LEAD = (
    "Intervals are 95%, by a bootstrap over problems and seeds at once; a gain is paired: the same problems, the same seeds. "
    "Dollars and minutes are means of the arm's runs, their scores included; what the arms share is apart. "
)
FAMILIES = "By family"
GAINED = "Accuracy on unseen problems; in brackets points over the base, which is asked in the way that serves it best. "
OTHER = (
    "Families that nothing was trained on, as the same models answer them; a number at an answer's end is read as the answer. "
)


# cells


def _share(row: Row) -> str:
    ends = interval(row.get("ci95"))
    return percent(row.get("mean")) + (f" ({100 * ends[0]:.0f}–{100 * ends[1]:.0f})" if ends else "")


def _gain(row: Row, key: str = "gain") -> str:
    found = mapping(row.get(key))
    ends = interval(found.get("ci95"))
    return points(found.get("gain")) + (f" ({points(ends[0])} to {points(ends[1])})" if ends else "") if found else DASH


def _seeds(row: Row) -> str:
    return " · ".join(percent(s.get("accuracy")).removesuffix("%") for s in objects(row.get("seeds"))) or DASH


def verdict(row: Row) -> str:
    """What may be said of an arm against the first: a sentence, also where it is no better."""
    found = mapping(row.get("gain"))
    ends = interval(found.get("ci95"))
    if ends is None:
        return ""
    said = f"{row.get('name')} against {found.get('against')}: {_gain(row)}"
    if ends[0] > 0:
        return f"{said}: better"
    return f"{said}: worse" if ends[1] < 0 else f"{said}: no difference shown"


def said_of(data: Row) -> list[str]:
    """A sentence an arm against the first, and against the base."""
    arms = objects(data.get("arms"))
    return [*(verdict(a) for a in arms), *(against_base(a) for a in arms)]


def stopped(data: Row) -> list[str]:
    """Runs that reached their ceiling: their arm was cut short."""
    return [
        f"{a.get('name')}, seed {s.get('seed')}: {s.get('status')} at its ceiling; its arm was cut short"
        for a in objects(data.get("arms"))
        for s in objects(a.get("seeds"))
        if s.get("status") == "stopped"
    ]


HEAD = (("arm", "l"), ("seeds", "l"), ("accuracy", "r"), ("gain", "r"), ("p", "r"), ("$ a run", "r"), ("min", "r"))


def lines(data: Row) -> list[list[str]]:
    """The table's rows, the base first where it was scored."""
    out = []
    base = mapping(data.get("base"))
    if base:
        out.append(["base", str(base.get("asked", "")), _share(base), DASH, DASH, DASH, DASH])
    for a in objects(data.get("arms")):
        p = mapping(a.get("gain")).get("p_value")
        minutes = num(a.get("minutes"))
        out.append([
            str(a.get("name")), _seeds(a), _share(a), _gain(a), DASH if p is None else p_value(p),
            DASH if a.get("usd") is None else money(a.get("usd")), DASH if minutes is None else f"{minutes:.1f}",
        ])  # fmt: skip
    return out


def domains(data: Row) -> tuple[list[str], list[list[str]]]:
    """(headings, rows) of the other domains; no rows where none was asked."""
    rows = [r for r in objects(data.get("out_of_domain"))]
    base = mapping(mapping(data.get("base")).get("others"))
    if base.get("families"):
        rows.insert(0, {"arm": "base", **base})
    families = sorted({f for r in rows for f in mapping(r.get("families"))})
    made = [
        [str(r.get("arm")), *(_share(mapping(mapping(r.get("families")).get(f))) for f in families), _share(r)] for r in rows
    ]
    return ["arm", *families, "all"], made


def by_family(data: Row) -> tuple[list[str], list[list[str]]]:
    """(headings, rows) of the families that were trained on: accuracy, and in brackets the gain over the base, in points. No
    rows where the base was not scored."""
    arms = [(str(a.get("name")), mapping(a.get("over_base"))) for a in objects(data.get("arms"))]
    arms = [(name, over) for name, over in arms if over]
    families = sorted({f for _, over in arms for f in mapping(over.get("families"))})
    found = {f: mapping(mapping(over.get("families")).get(f)) for _, over in arms[:1] for f in families}
    rows = [["base", *(percent(found[f].get("base")) for f in families), DASH]] if arms else []
    for name, over in arms:
        cells = [mapping(mapping(over.get("families")).get(f)) for f in families]
        shown = [f"{percent(c.get('mean'))} ({points(c.get('gain'))})" if c else DASH for c in cells]
        rows.append([name, *shown, points(over.get("median"))])
    return ["arm", *families, "median gain"], rows


def against_base(row: Row) -> str:
    """What may be said of an arm against the untrained base."""
    found = mapping(row.get("over_base"))
    if not found:
        return ""
    middle = f"median of {len(mapping(found.get('families')))} families {points(found.get('median'))}"
    return f"{row.get('name')} against the base: {_gain(row, 'over_base')}, {middle}"


def shared(data: Row) -> str:
    found = mapping(data.get("shared"))
    if not found:
        return ""
    stages = ", ".join(map(str, found.get("stages") or ()))
    return f"shared by all arms, run once: {stages}: {money(found.get('usd'))} in {found.get('run')}"


def spent(data: Row) -> str:
    dollars = f"{money(data.get('spent_usd'))} of {money(data.get('budget_usd'))} spent"
    return f"{dollars}; {data.get('runs')} of {data.get('of')} runs"


# the terminal


def _print(console: Console, title: str, head: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> None:
    from rich.text import Text

    made = quiet.table(title)
    for name, side in head:
        made.add_column(name, justify="right" if side == "r" else "left", no_wrap=name == "arm")
    for r in rows:
        made.add_row(*(Text(c) for c in r))
    console.print(made)


def print_plan(data: Row, console: Console) -> None:
    """Minutes and dollars of every arm, before it runs."""
    rows = []
    for a in objects(data.get("arms")):
        minutes, usd = a.get("minutes") or [0, 0, 0], a.get("usd") or [0, 0, 0]
        n = num(a.get("runs")) or 0
        if not n:
            continue
        rows.append([
            str(a.get("arm")), f"{n:.0f}", f"{minutes[1]:.1f}", f"{minutes[0]:.1f}–{minutes[2]:.1f}", money(usd[1], places=4),
            money(a.get("making"), places=4), f"{n * minutes[1]:.0f}", money(n * usd[1], places=4),
        ])  # fmt: skip
    total = mapping(data.get("total"))
    minutes, usd = total.get("minutes") or [0, 0, 0], total.get("usd") or [0, 0, 0]
    rows.append(["total", "", "", f"{minutes[0]:.0f}–{minutes[2]:.0f}", "", "", f"{minutes[1]:.0f}", money(usd[1], places=4)])
    names = ("arm", "runs", "min", "range", "$ a run", "of it making", "min in all", "$ in all")
    head = [(n, "r" if i else "l") for i, n in enumerate(names)]
    _print(console, f"Plan of {data.get('name')}", head, rows)
    for a in objects(data.get("arms")):
        if scaled := mapping(a.get("scaled")):
            said = ", ".join(f"{k} = {v}" for k, v in scaled.items())
            console.print(f"{a.get('arm')}: equal dollars, steps times {num(a.get('factor')) or 0:.3g}: {said}", markup=False)
    bases = {str(a.get("basis")) for a in objects(data.get("arms"))}
    console.print(
        f"budget {data.get('budget')} for all runs; at least {money(data.get('needed_usd'), places=4)} of it are needed. "
        f"Rates: {', '.join(sorted(bases))}", highlight=False, markup=False,
    )  # fmt: skip


def print_result(data: Row, console: Console) -> None:
    """Every table, whoever wins."""
    _print(console, TITLE, HEAD, lines(data))
    for title, (head, rows) in ((FAMILIES, by_family(data)), ("Other domains", domains(data))):
        if rows:
            console.print()
            _print(console, title, [(n, "r" if i else "l") for i, n in enumerate(head)], rows)
    console.print()
    for line in (*said_of(data), shared(data), *stopped(data), spent(data)):
        if line:
            console.print(line, highlight=False, markup=False)


# the page


def pictures(data: Row) -> str:
    """Accuracy with intervals by arm, and against dollars."""
    arms = [a for a in objects(data.get("arms")) if num(a.get("mean")) is not None]
    base = mapping(data.get("base"))
    level, dollars = [], []
    for i, a in enumerate([{**base, "name": "base"}] * bool(base) + arms):
        ends = interval(a.get("ci95")) or (None, None)
        colour = "base" if base and i == 0 else f"m{1 + (i - bool(base)) % 5}"
        mark = Mark(str(a["name"]), num(a["mean"]) or 0.0, ends[0], ends[1], colour, x=num(a.get("usd")) or 0.0)
        level.append(mark)
        if num(a.get("usd")) is not None:
            dollars.append(mark)
    out = ""
    if level:
        drawn = charts.both(lambda w: charts.ranges(level, width=w, title=TITLE, show=percent))
        out += figure(h(TITLE), drawn, "", "with 95% intervals")
    if dollars:
        title = "Accuracy against the dollars of a run"
        out += figure(h(title), charts.both(lambda w: charts.points(
            dollars, width=w, title=title, x_label="dollars a run", x_show=money, y_show=percent,
            y_tick=lambda v: percent(v, 0),
        )), "", "with 95% intervals")  # fmt: skip
    return out


def learning_curves(data: Row) -> str:
    """Reward or loss of every arm's steps, read from its runs' folders; nothing where none of them is there."""
    figures = []
    for a in objects(data.get("arms")):
        folders = [f for s in objects(a.get("seeds")) if (f := Path(str(s.get("run")))).is_dir()]
        figures += curves.of_seeds(str(a.get("name")), [load(f) for f in folders])
    return f'<div class="grid-figs">{"".join(figures)}</div>' if figures else ""


def _planned(a: Row) -> list[str]:
    minutes, usd = (num((a.get(k) or [0, 0])[1]) or 0.0 for k in ("minutes", "usd"))
    scaled = ", ".join(f"{k} = {v}" for k, v in mapping(a.get("scaled")).items())
    return [h(a.get("arm")), f"{minutes:.1f}", *(h(money(v, places=4)) for v in (usd, a.get("making"))), h(scaled or DASH)]


def body(data: Row) -> str:
    """The sections of the page, as HTML."""
    cells = [[h(c, 120) for c in r] for r in lines(data)]
    said = [s for s in (*said_of(data), shared(data), *stopped(data), spent(data)) if s]
    notes = "".join(f"<p class='small'>{h(s, 400)}</p>" for s in said)
    arms = table([(h(n), "nw" if s == "l" else "r") for n, s in HEAD], cells, label=TITLE)
    out = f"<header><h1>{h(data.get('name'), 80)}</h1></header>"
    out += section(h(TITLE), LEAD + tag("measured"), pictures(data) + arms + notes)
    for title, lead, (head, rows) in ((FAMILIES, GAINED, by_family(data)), ("Other domains", OTHER, domains(data))):
        if rows:
            columns = [(h(n), "r" if i else "nw") for i, n in enumerate(head)]
            out += section(title, lead + tag("measured"), table(columns, ([h(c, 80) for c in r] for r in rows), label=title))
    if drawn := learning_curves(data):
        out += section("Learning curves", f"Each seed faint, their mean strong. {tag('measured')}", drawn)
    plan = [_planned(a) for a in objects(mapping(data.get("plan")).get("arms"))]
    head2 = [("arm", "nw"), ("minutes", "r"), ("dollars", "r"), ("of it making", "r"), ("steps of equal dollars", "text")]
    said = "Before it ran. " + tag("simulated")
    return out + section("What was planned for a run of each arm", said, table(head2, plan, label="plan"))


def write(data: Row, path: Path) -> Path:
    """The page: one file that loads nothing."""
    return replace(path, shell(f"ablation {data.get('name')}", body(data)))
