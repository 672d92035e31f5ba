"""Plan against actual, stage by stage, and the facts that it takes to repeat the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import charts
from .charts import Mark
from .load import RunFolder, mapping, objects
from .money import totals
from .style import absent, figure, h, legend, section, table, tag
from .text import DASH, count, duration, moment, money, num, spread, timestamp
from .text import figure as number


def _minutes(run: RunFolder, stage: str) -> float | None:
    seconds = [
        num(s.get("seconds")) for s in objects(run.run.get("stages")) if str(s.get("name") or s.get("use")) == stage
    ]
    known = [s for s in seconds if s is not None]
    if not known:
        known = [x for s in run.steps(stage) if (x := num(s.get("seconds"))) is not None]
    return sum(known) / 60 if known else None


def _verdict(plan: Any, actual: float | None) -> str:
    q = mapping(plan)
    low, high = num(q.get("low")), num(q.get("high"))
    if actual is None or low is None or high is None:
        return DASH
    return "below plan" if actual < low * 0.999 else "above plan" if actual > high * 1.001 else "as planned"


def _planned(q: Any, show: Callable[[float], str]) -> str:
    """A planned quantity with its interval in small."""
    mid, _, rest = h(spread(q, show)).partition(" (")
    return f'{mid}<span class="ci">{rest.removesuffix(")")}</span>' if rest else mid


def against_plan(run: RunFolder) -> str:
    title = "Plan against actual"
    stages = objects(run.plan.get("stages"))
    if not stages:
        return absent(title, run.why_absent("plan.json") or "the plan has no stages")

    def dollars(v: float) -> str:
        return money(v, run.currency)

    def two(v: float) -> str:
        return number(v, 2)

    rows: list[list[str]] = []
    marks: list[Mark] = []
    actuals: list[float | None] = []
    for s in stages:
        name = str(s.get("name") or s.get("use"))
        spent, took = run.stage_amount(name), _minutes(run, name)
        tokens = sum(num(x.get("tokens")) or 0.0 for x in run.steps(name)) or None
        usd = mapping(s.get("usd"))
        bases = (mapping(s.get(k)).get("basis") for k in ("usd", "minutes", "tokens"))
        cells = [h(name, 60), tag(next((b for b in bases if b), None)), _planned(usd, dollars)]
        cells += [
            h(dollars(spent)) if spent is not None else DASH,
            _verdict(usd, spent),
            _planned(s.get("minutes"), two),
        ]
        rows.append([*cells, number(took, 3), _planned(s.get("tokens"), count), count(tokens)])
        low, mid, high = (num(usd.get(k)) for k in ("low", "mid", "high"))
        if mid is not None:
            marks.append(Mark(name, mid, low, high, colour="m2", note=f"{name}: planned {spread(usd, dollars)}"))
            actuals.append(spent)
    total = mapping(run.plan.get("total"))
    marginal = num(totals(run)[1])
    minutes = [m for s in stages if (m := _minutes(run, str(s.get("name") or s.get("use")))) is not None]
    last = ["total", "", _planned(total.get("usd"), dollars), h(dollars(marginal)) if marginal is not None else DASH]
    last += [_verdict(total.get("usd"), marginal), _planned(total.get("minutes"), two)]
    last += [number(sum(minutes), 3) if minutes else DASH, _planned(total.get("tokens"), count), ""]
    th = [
        ("stage", "nw"),
        ("basis of<br>the plan", "nw"),
        ("dollars<br>planned", "r"),
        ("actual", "r"),
        ("verdict", "nw"),
    ]
    th += [("minutes<br>planned", "r"), ("actual", "r"), ("tokens<br>planned", "r"), ("actual", "r")]
    body = ""
    if marks:
        heading = "Planned and actual dollars a stage"

        def draw(width: int) -> str:
            return charts.ranges(marks, width=width, title=heading, show=dollars, actual=actuals, zero_line=False)

        keys = legend([("planned, with its interval", "m2")], '<li><i class="diamond"></i>actual</li>')
        body += figure("Dollars a stage", charts.both(draw), keys)
    text = f"The plan was printed before the first dollar; one function priced both sides. Actual: {tag('measured')}"
    return section(title, text, body + table(th, rows, last, title))


def _attempts(run: RunFolder) -> str:
    value = run.run.get("attempts")
    if isinstance(value, list | tuple):
        return str(len(value))
    return number(value, 4)


def facts(run: RunFolder) -> str:
    title = "The run"
    recipe = ""
    if run.recipe:
        recipe = f"<summary>The recipe, resolved</summary><pre>{h(run.recipe, 20000)}</pre>"
        recipe = f'<details class="more">{recipe}</details>'
    if not run.run:
        return section(title, f"Not shown: {h(run.why_absent('run.json') or 'run.json is empty')}.", recipe)
    r, machine = run.run, mapping(run.run.get("machine"))
    start, end = timestamp(r.get("started")), timestamp(r.get("ended"))
    took = f" ({duration(end - start)})" if start is not None and end is not None else ""
    rate = machine.get("usd_per_hour")
    rate = f"{money(rate, run.currency)} an hour" if num(rate) is not None else "price unknown"
    where = [str(machine.get("sku") or "?"), rate, *(str(machine.get(k) or "") for k in ("source", "date", "note"))]
    versions = ", ".join(f"{k} {v}" for k, v in mapping(r.get("versions")).items())
    pairs = [
        ("status", " · ".join(str(x) for x in (r.get("status"), r.get("reason")) if x)),
        ("base model", r.get("base")),
        ("seed", r.get("seed")),
        ("attempts", _attempts(run)),
        ("started", moment(r.get("started")) if r.get("started") is not None else DASH),
        ("ended", (moment(r.get("ended")) if r.get("ended") is not None else "not ended") + took),
        ("machine", " · ".join(w for w in where if w)),
        ("versions", versions or DASH),
    ]
    body = "".join(f"<dt>{k}</dt><dd>{h(DASH if v in (None, '') else v, 600)}</dd>" for k, v in pairs)
    stages = []
    for s in objects(r.get("stages")):
        stages.append([h(s.get("name"), 60), h(s.get("use"), 60), h(s.get("status"), 40), duration(s.get("seconds"))])
    head = [("stage", "nw"), ("kind", "nw"), ("status", "nw"), ("took", "r")]
    body = f"<dl>{body}</dl>" + (table(head, stages, label="stages") if stages else "")
    return section(title, f"What it would take to repeat it. {tag('measured')}", body + recipe)
