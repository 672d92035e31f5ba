"""The cost–accuracy frontier: what each model of some runs cost to make and costs to ask, and how often it is right.

Two pictures, because a model is made once and asked often: accuracy against training dollars, and against dollars for a
thousand answered problems. What counts as dominated and as tied is `cost.frontier`'s; this module reads run folders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

from shoestring.cost.frontier import Placed, Point, Range, place
from shoestring.records import LEASE

from . import charts, scores
from .charts import Mark
from .load import RunFolder, json_lines, objects
from .style import absent, figure, h, legend, section, table, tag
from .text import DASH, decimal, interval, listed, money, num, percent

SCORING = "evaluate"
ZERO = Decimal(0)


@dataclass(frozen=True)
class Serving:
    """Dollars a thousand answered problems, and what they are made of. `usd` is None where something was not measured;
    `why` then says what. Tokens a second are those of the evaluation's own batches on the run's machine."""

    usd: Range | None
    why: str = ""
    tokens_per_answer: float | None = None
    tokens_per_second: float | None = None
    usd_per_second: str | None = None
    stage: str = ""


@dataclass(frozen=True)
class Model:
    """One scored model. `training` are the dollars of every stage up to the one that made it, evaluations apart, failed
    and idle time included; `scoring` those of the evaluations up to its own. n problems."""

    name: str
    run: str
    model: str
    base: str
    n: int
    families: tuple[str, ...]
    accuracy: Range
    training: Decimal
    scoring: Decimal
    serving: Serving
    also: tuple[str, ...] = field(default=())


def models(run: RunFolder, bill: Mapping[str, Any] | None = None, name: str = "") -> tuple[list[Model], list[tuple[str, str]]]:
    """(the run's models on unseen problems, what could not be placed and why). bill: in place of the run's own."""
    bill = run.bill if bill is None else bill
    name = name or run.name
    rows = scores.macro(run)
    if not rows:
        return [], [(name, run.why_absent("scores.json") or "no macro accuracy was scored")]
    if not bill:
        return [], [(name, run.why_absent("bill.json") or "there is no bill")]
    stages = _stages(run)
    made, unplaced = [], []
    for row in rows:
        model = str(row.get("model"))
        accuracy, ends = num(row.get("accuracy")), interval(row.get("ci95"))
        label = f"{name}/{model}"
        if accuracy is None or ends is None:
            unplaced.append((label, "its accuracy has no interval"))
            continue
        measured = _measured_in(run, model, [s for s, _ in stages])
        training = ZERO if scores.is_base(row) else _dollars(bill, _before(stages, model))
        if training is None:
            unplaced.append((label, "a price is unknown, so its training dollars are"))
            continue
        if not scores.is_base(row) and model not in [s for s, _ in stages]:
            unplaced.append((label, "no stage of the run has its name"))
            continue
        until = [s for s, _ in stages].index(measured) if measured else len(stages) - 1
        scoring = _dollars(bill, [s for s, use in stages[: until + 1] if use == SCORING])
        families = tuple(sorted({str(r.get("family")) for r in scores.rows_of(run, "unseen")} - {"macro"}))
        low, high = min(ends[0], accuracy), max(ends[1], accuracy)
        made.append(
            Model(
                label, name, model, str(run.run.get("base") or ""), int(num(row.get("n")) or 0), families,
                Range(_decimal(low), _decimal(accuracy), _decimal(high)), training, scoring or ZERO,
                serving(run, bill, model, str(row.get("prompting") or "zero-shot"), measured),
            )
        )  # fmt: skip
    return made, unplaced


def _decimal(x: float) -> Decimal:
    return Decimal(repr(float(x)))


def _stages(run: RunFolder) -> list[tuple[str, str]]:
    """(name, use) of every stage in order."""
    uses: dict[str, str] = {}
    for item in objects(run.plan.get("stages")) + objects(run.run.get("stages")):
        uses[str(item.get("name") or item.get("use") or "?")] = str(item.get("use") or "")
    return [(name, uses.get(name, "")) for name in run.stage_order()]


def _before(stages: Sequence[tuple[str, str]], model: str) -> list[str]:
    """The stages that went into a model: up to the one that bears its name, evaluations left out."""
    names = [s for s, _ in stages]
    if model not in names:
        return []
    return [s for s, use in stages[: names.index(model) + 1] if use != SCORING]


def _dollars(bill: Mapping[str, Any], wanted: Sequence[str]) -> Decimal | None:
    """What the bill charged to these stages; None where a line has no price."""
    total = ZERO
    for line in objects(bill.get("lines")):
        if str(line.get("stage")) in wanted:
            amount = decimal(line.get("amount"))
            if amount is None:
                return None
            total += amount
    return total


def _measured_in(run: RunFolder, model: str, names: Sequence[str]) -> str:
    """The evaluation that measured a model. A verdict file's number is the stage's place in the recipe; "start" is not one."""
    path = _verdicts(run, model)
    number = path.stem.partition("-")[0] if path else ""
    own = [n for n in names if n != "start"]
    return own[int(number)] if number.isdecimal() and int(number) < len(own) else ""


def _verdicts(run: RunFolder, model: str) -> Path | None:
    """The last verdict file of a model: verdicts/NN-<model>.jsonl."""
    found = [p for p in sorted((run.path / "verdicts").glob("*.jsonl")) if p.stem.partition("-")[2] == model]
    return found[-1] if found else None


def serving(run: RunFolder, bill: Mapping[str, Any], model: str, prompting: str, stage: str) -> Serving:
    """Answer tokens a problem × seconds a token × dollars a second, for a thousand problems, with a 95% interval.

    Seconds a token come from the steps of the evaluation that measured the model (the first, which loads it, is left out
    where there are others); both factors' relative standard errors are combined by squares.
    """
    path = _verdicts(run, model)
    if not stage or path is None:
        return Serving(None, "the evaluation's answers were not kept")
    rows = [r for r in json_lines(path) if r.get("benchmark") == "unseen" and r.get("prompting") == prompting]
    lengths = [x for r in rows if (x := num(r.get("tokens"))) is not None]
    steps = [s for s in run.steps(stage) if s.get("reward") is not None]
    steps = steps[1:] if len(steps) > 1 else steps
    pairs = [(num(s.get("seconds")) or 0.0, num(s.get("tokens")) or 0.0) for s in steps]
    seconds, tokens = (sum(p[i] for p in pairs) for i in (0, 1))
    if not lengths or not fmean(lengths) or seconds <= 0 or tokens <= 0:
        return Serving(None, "the evaluation's tokens a second were not recorded", stage=stage)
    lease = [x for x in objects(bill.get("lines")) if x.get("stage") == stage and str(x.get("resource")).endswith(LEASE)]
    price = next((str(x["unit_price"]) for x in lease if decimal(x.get("unit_price")) is not None), None)
    if price is None:
        return Serving(None, "the machine's price is unknown", stage=stage)
    mean, each = fmean(lengths), seconds / tokens
    spread = (stdev(lengths) / math.sqrt(len(lengths)) / mean) ** 2 if len(lengths) > 1 else 0.0
    if len(pairs) > 1:  # the ratio of two sums, linearised: Cochran 1977, Sampling Techniques, eq. 6.13
        residual = sum((s - each * t) ** 2 for s, t in pairs) * len(pairs) / (len(pairs) - 1)
        spread += residual / seconds**2
    half = NormalDist().inv_cdf(0.975) * math.sqrt(spread)
    middle = _decimal(1000 * mean * each) * Decimal(price)
    usd = Range(*((middle * _decimal(f)).quantize(Decimal("1e-9")) for f in (max(0.0, 1 - half), 1.0, 1 + half)))
    return Serving(usd, "", mean, tokens / seconds, price, stage)


def merged(found: Sequence[Model]) -> list[Model]:
    """An untrained model that several runs scored alike is one point; its runs stand in `also`."""
    out: list[Model] = []
    for m in found:
        same = next((i for i, o in enumerate(out) if _same_base(o, m)), None)
        if same is None:
            out.append(m)
        else:
            out[same] = replace(out[same], also=(*(out[same].also or (out[same].run,)), m.run))
    if len([m for m in out if m.model == "base"]) == 1:  # of several, each keeps the name of its first run
        out = [replace(m, name="base (untrained)") if m.also else m for m in out]
    return out


def _same_base(a: Model, b: Model) -> bool:
    return a.model == b.model == "base" and a.base == b.base and a.accuracy == b.accuracy and a.run != b.run


@dataclass(frozen=True)
class Comparison:
    """Models with their places on both frontiers; a model without a serving price has none there."""

    models: tuple[Model, ...]
    training: Mapping[str, Placed]
    serving: Mapping[str, Placed]
    unplaced: tuple[tuple[str, str], ...]


def compare(found: Sequence[Model], unplaced: Sequence[tuple[str, str]] = ()) -> Comparison:
    found = merged(found)
    training = place([Point(m.name, Range.exactly(m.training), m.accuracy) for m in found])
    asked = place([Point(m.name, m.serving.usd, m.accuracy) for m in found if m.serving.usd])
    return Comparison(
        tuple(found), {p.point.name: p for p in training}, {p.point.name: p for p in asked}, tuple(unplaced)
    )


def verdict(placed: Placed | None) -> str:
    """dominated by a · on the frontier, tied with b and c · on the frontier"""
    if placed is None:
        return "not placed"
    if placed.dominated_by:
        return f"dominated by {listed(placed.dominated_by)}"
    others = listed(placed.tied_with) if len(placed.tied_with) < 4 else f"{len(placed.tied_with)} others"
    text = "on the frontier" + (f", tied with {others}" if placed.tied_with else "")
    return text + (f"; of them {placed.cheapest_tied} costs least" if placed.cheapest_tied else "")


def to_dict(c: Comparison) -> dict[str, Any]:
    """The content of `compare --json` (docs/json/compare.md)."""

    def where(p: Placed | None) -> dict[str, Any] | None:
        if p is None:
            return None
        return {"frontier": p.on_frontier, "dominated_by": list(p.dominated_by), "tied_with": list(p.tied_with),
                "cheapest_tied": p.cheapest_tied or None, "beats": list(p.beats)}  # fmt: skip

    def dollars(r: Range | None) -> dict[str, str] | None:
        return r and {"low": f"{r.low:f}", "mid": f"{r.mid:f}", "high": f"{r.high:f}", "basis": "measured"}

    return {
        "benchmark": "unseen",
        "families": list(c.models[0].families) if c.models else [],
        "points": [
            {
                "name": m.name, "runs": list(m.also or (m.run,)), "model": m.model, "base": m.base, "n": m.n,
                "accuracy": {"low": float(m.accuracy.low), "mid": float(m.accuracy.mid), "high": float(m.accuracy.high),
                             "basis": "measured"},
                "training_usd": f"{m.training:f}", "scoring_usd": f"{m.scoring:f}",
                "serving_usd_per_1000": dollars(m.serving.usd),
                "serving": {
                    "stage": m.serving.stage, "tokens_per_answer": m.serving.tokens_per_answer,
                    "tokens_per_second": m.serving.tokens_per_second, "usd_per_second": m.serving.usd_per_second,
                    "why_unknown": m.serving.why,
                },
                "on_training": where(c.training.get(m.name)), "on_serving": where(c.serving.get(m.name)),
            }
            for m in c.models
        ],
        "unplaced": [{"name": n, "why": w} for n, w in c.unplaced],
    }  # fmt: skip


def _picture(
    c: Comparison, places: Mapping[str, Placed], title: str, x_label: str, cost: Any, currency: str,
    colours: Mapping[str, str],
) -> str:
    runs = list(dict.fromkeys(m.run for m in c.models))
    marks = []
    for m in c.models:
        if m.name not in places:
            continue
        r: Range = cost(m)
        known = r.low == r.high
        colour = colours.get(m.model) or ("base" if m.model == "base" else f"m{1 + (runs.index(m.run) + 1) % 5}")
        note = f"{m.name}: {percent(float(m.accuracy.mid))}, {money(r.mid, currency)}; {verdict(places[m.name])}"
        marks.append(
            Mark(
                m.name, float(m.accuracy.mid), float(m.accuracy.low), float(m.accuracy.high), colour,
                float(r.mid), bool(places[m.name].dominated_by), False, note,
                None if known else float(r.low), None if known else float(r.high),
            )
        )  # fmt: skip

    def draw(width: int) -> str:
        return charts.points(
            marks, width=width, title=title, x_label=x_label, x_show=lambda v: money(v, currency), y_show=percent,
            y_tick=lambda v: percent(v, 0),
        )  # fmt: skip

    keys = legend([], '<li>full dot: nothing is surely better and no dearer</li><li>hollow: dominated</li>')
    return figure(h(title), charts.both(draw), keys, "with 95% intervals") if marks else ""


def pictures(c: Comparison, currency: str = "USD", colours: Mapping[str, str] | None = None) -> str:
    """Both pictures and the table, as HTML. colours: of models by name, where a page has given them some; else by run."""
    colours = colours or {}
    out = _picture(
        c, c.training, "Accuracy against training dollars", "training dollars", lambda m: Range.exactly(m.training),
        currency, colours,
    )  # fmt: skip
    out += _picture(
        c, c.serving, "Accuracy against the price of an answer", "dollars a thousand answered problems",
        lambda m: m.serving.usd, currency, colours,
    )  # fmt: skip
    head = [("model", "nw"), ("accuracy", "r"), ("training", "r"), ("a thousand<br>answers", "r")]
    head += [("by training dollars, then by serving dollars", "text")]
    rows = []
    for m in c.models:
        ci = f'<span class="ci">{100 * m.accuracy.low:.0f}–{100 * m.accuracy.high:.0f}</span>'
        s = m.serving.usd
        asked = DASH
        if s:
            low, mid, high = (h(money(v, currency)) for v in (s.low, s.mid, s.high))
            asked = f'{mid}<span class="ci">{low}–{high}</span>'
        cells = [h(m.name, 80), percent(float(m.accuracy.mid)) + ci]
        cells += [h(money(m.training, currency)), asked]
        known = h(verdict(c.serving.get(m.name)), 400) if s else h(f"unknown: {m.serving.why}", 200)
        rows.append([*cells, f"{h(verdict(c.training.get(m.name)), 400)}<br><small>{known}</small>"])
    out += table(head, rows, label="the frontier")
    if c.unplaced:
        out += f'<p class="small">Not placed: {"; ".join(f"{h(n, 80)}: {h(w, 200)}" for n, w in c.unplaced)}.</p>'
    return out


LEAD = (
    "A model is dominated where another is surely more accurate and no dearer. Where intervals overlap, no order is claimed: "
    "they are tied. Training dollars are all stages up to the model, failures too, its scoring apart; an answer's price is "
    "its tokens at the speed and the machine price of the evaluation. "
)


def of_run(run: RunFolder) -> str:
    """The section of a run's page."""
    title = "The frontier: accuracy against what it costs"
    found, unplaced = models(run)
    if len(found) < 2:
        why = unplaced[0][1] if unplaced and not found else "fewer than two models were scored"
        return absent(title, why)
    bare = [replace(m, name=m.model) for m in found]
    return section(title, LEAD + tag("measured"), pictures(compare(bare, unplaced), run.currency, scores.colours(run)))
