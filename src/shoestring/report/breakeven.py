"""The break-even as a page that loads nothing: cash by month as curves, what the answer hangs on as bars, every assumption.

Takes the JSON of `shoestring breakeven` (docs/json/breakeven.md), with or without `own_hardware`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import charts, page
from .breakeven_text import NAMES, month, number, room, said, usd
from .charts import both, e, n, svg, ticks
from .style import figure, h, legend, section, table, tag

COLOURS = {"own": "m2", "api": "m1", "rag": "m3", "owned": "m2", "rented": "m1"}
BARS = 12


def render(data: Mapping[str, Any], title: str) -> str:
    """The page as text."""
    parts = [f'<header><p class="eyebrow"><b>shoestring</b> · break-even</p><h1>{h(title, 120)}</h1></header>']
    parts += _hardware(data) if "owned_usd_per_gpu_hour" in data else _model(data)
    parts.append(_assumptions(data))
    return page.shell(title, "\n".join(parts))


def _model(data: Mapping[str, Any]) -> list[str]:
    verdicts = "".join(f"<p>{h(_sentence(v, data['months']), 900)}</p>" for v in data["verdicts"])
    series = {o["option"]: [float(r[o["option"]]["cumulative_usd"]) for r in data["cash_flow"]] for o in data["options"]}
    marks = {v["against"]: v["month"] for v in data["verdicts"]}
    picture = figure(
        "Cash paid by month", both(lambda w: cash(series, marks.get("api"), w)),
        legend([(NAMES[o], COLOURS[o]) for o in series]), "US dollars, every interval in its middle; " + tag("simulated"),
    )  # fmt: skip
    rows = [
        [h(line["line"]), h(line["category"]), usd(line["usd"])]
        for o in data["options"] for line in o["lines"]
    ]  # fmt: skip
    rows += [[h(k), "", "not given"] for o in data["options"] for k in o["not_given"]]
    rows += [
        [f"<b>{h(NAMES[o['option']])}</b>", "at least" if o["is_lower_bound"] else "in all",
         f"{usd(o['total_usd']['mid'])} <small>({usd(o['total_usd']['low'])} to {usd(o['total_usd']['high'])})</small>"]
        for o in data["options"]
    ]  # fmt: skip
    lines = table([("line", ""), ("category", ""), (f"USD over {data['months']} months", "r")], rows, label="lines")
    flow = table(
        [("month", "r"), *((h(NAMES[o["option"]]), "r") for o in data["options"])],
        [[str(r["month"]), *(usd(r[o["option"]]["cumulative_usd"]) for o in data["options"])] for r in data["cash_flow"]],
        label="cash by month",
    )
    out = [section("When does training pay?", "", verdicts + picture), section("What each way costs", "", lines + flow)]
    for v in data["verdicts"]:
        out.append(_tornado(v["sensitivity"], f"against {NAMES[v['against']]}", room(v)))
    return out


def _sentence(v: Mapping[str, Any], months: int) -> str:
    text = said(v, months)
    return text[:1].upper() + text[1:]


def _hardware(data: Mapping[str, Any]) -> list[str]:
    series = {k: [float(r[f"{k}_usd"]) for r in data["cash_flow"]] for k in ("owned", "rented")}
    owned, b = data["owned_usd_per_gpu_hour"], data["break_even"]
    lead = (
        f"<p>A useful GPU-hour: {usd(owned['mid'])} owned ({usd(owned['low'])} to {usd(owned['high'])}), "
        f"{usd(data['rented_usd_per_gpu_hour'])} rented. Buying pays: {h(month(b['month']))}.</p>"
    )
    picture = figure("Cash paid by month", both(lambda w: cash(series, b["month"], w)),
                     legend([(k, COLOURS[k]) for k in series]), "US dollars; " + tag("simulated"))  # fmt: skip
    lines = table([("line", ""), ("USD a month", "r")], [[h(k), usd(x)] for k, x in data["monthly_usd"].items()], label="lines")
    return [section("Rent or buy?", "", lead + picture + lines), _tornado(data["sensitivity"], "rent or buy", "")]


def _tornado(rows: Sequence[Mapping[str, Any]], what: str, note: str) -> str:
    chart = both(lambda w: tornado(rows[:BARS], w)) if rows else "<p>Nothing was varied.</p>"
    cells = [
        [h(r["assumption"]), number(r["low"]), number(r["high"]), month(r["month_at_low"]), month(r["month_at_high"]),
         f"flips at {number(r['flips_at'])}" if r["flips"] else "", h(r["range"])]
        for r in rows
    ]  # fmt: skip
    head = [("assumption", ""), ("from", "r"), ("to", "r"), ("pays from", "r"), ("and from", "r"), ("", ""), ("range", "")]
    caption = figure("Dollars saved at the horizon, one assumption moved at a time", chart,
                     legend([("at the low end", "m1"), ("at the high end", "m2")]))  # fmt: skip
    body = caption + table(head, cells, label="sensitivity")
    return section(f"What the answer hangs on: {h(what)}", h(note[:1].upper() + note[1:]), body)


def _assumptions(data: Mapping[str, Any]) -> str:
    rows = []
    for a in data["assumptions"]:
        spread = f" <small>({number(a['low'])} to {number(a['high'])})</small>" if a["low"] != a["high"] else ""
        basis = "given by you" if a["basis"] == "given" else tag(a["basis"])
        rows.append([h(a["key"]), h(a["what"]), f"{number(a['mid'])}{spread} {h(a['unit'])}", basis, h(a["note"])])
    rows += [[h(a["key"]), h(a["what"]), "not given", "", h(a["meaning"])] for a in data["not_given"]]
    head = [("key", ""), ("what", "text"), ("value", "r"), ("basis", ""), ("", "text")]
    return section("Assumptions", "What was not given stands in no total.", table(head, rows, label="assumptions"))


def cash(series: Mapping[str, Sequence[float]], crossing: int | None, width: int) -> str:
    """Cumulative dollars by month, one curve a way, and the month from which the first stays cheapest."""
    height, left, right, top, bottom = 300, 64.0, width - 16.0, 16.0, 300 - 44.0
    last = max(len(s) for s in series.values()) - 1
    high = max([1e-9, *(x for s in series.values() for x in s)])
    low = min([0.0, *(x for s in series.values() for x in s)])

    def px(m: float) -> float:
        return left + (right - left) * m / max(last, 1)

    def py(v: float) -> float:
        return bottom - (bottom - top) * (v - low) / (high - low)

    out = []
    for v in ticks(low, high):
        out.append(charts._line(left, py(v), right, py(v), "grid"))
        out.append(charts._text(left - 6, py(v) + 4, f"${v:,.6g}", anchor="end"))
    for m in ticks(0, last, 6):
        out.append(charts._text(px(m), bottom + 18, f"{m:g}", anchor="middle"))
    out.append(charts._text((left + right) / 2, bottom + 36, "month", "label", "middle"))
    for name, values in series.items():
        path = " ".join(f"{n(px(m))},{n(py(v))}" for m, v in enumerate(values))
        out.append(f'<polyline class="curve" style="stroke:var(--{COLOURS[name]})" points="{path}"/>')
    if crossing is not None:
        out.append(charts._line(px(crossing), top, px(crossing), bottom, "ref"))
        anchor = "start" if crossing < last / 2 else "end"
        out.append(charts._text(px(crossing) + (5 if anchor == "start" else -5), top + 10, f"month {crossing}", "halo", anchor))
    return svg(width, height, "Cash paid by month", f"break-even: {month(crossing)}", "".join(out))


def tornado(rows: Sequence[Mapping[str, Any]], width: int) -> str:
    """A bar an assumption, from the saving at its low end to the saving at its high end; right of zero training pays."""
    step, top = 30, 10
    height, left, right = top + step * len(rows) + 34, 190.0 if width > 500 else 120.0, width - 20.0
    values = [float(r[k]) for r in rows for k in ("saving_at_low", "saving_at_high")]
    low, high = min([0.0, *values]), max([0.0, *values])
    span = (high - low) or 1.0

    def px(v: float) -> float:
        return left + (right - left) * (v - low) / span

    out = [charts._line(px(0), top - 6, px(0), height - 30, "zero")]
    for v in ticks(low, high, 4 if width > 500 else 2):
        out.append(charts._text(px(v), height - 12, f"${v:,.6g}".replace("$-", "-$"), anchor="middle"))
    for i, r in enumerate(rows):
        y = top + i * step
        a, b = float(r["saving_at_low"]), float(r["saving_at_high"])
        x0, x1 = sorted((px(a), px(b)))
        name = r["assumption"].replace("_tokens_per_second", " rate").replace("_percent", " %").replace("usd_per_", "$/")
        name = (name if width > 500 else name[:17]) + (" *" if r["flips"] else "")
        out.append(charts._text(left - 8, y + 15, name, "label", "end"))
        out.append(f'<rect x="{n(x0)}" y="{n(y + 4)}" width="{n(max(x1 - x0, 1))}" height="14" style="fill:var(--wash)">'
                   f"<title>{e(r['assumption'])}: {e(r['low'])} to {e(r['high'])}</title></rect>")  # fmt: skip
        for v, colour in ((a, "m1"), (b, "m2")):
            out.append(f'<rect x="{n(px(v) - 2)}" y="{n(y + 2)}" width="4" height="18" style="fill:var(--{colour})"/>')
    desc = "; ".join(f"{r['assumption']} {month(r['month_at_low'])} to {month(r['month_at_high'])}" for r in rows)
    return svg(width, height, "What the answer hangs on (* flips it)", desc, "".join(out))
