"""What the run cost: the phrase in the headline, what it leaves out, and the bill line by line."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from . import scores
from .load import RunFolder, mapping, objects, sunk_ends
from .style import absent, h, legend, section, table, tag
from .text import (
    DASH,
    between,
    decimal,
    money,
    money_places,
    num,
    percent,
    quantity,
    resource,
)
from .text import figure as number

STOPPED = ("timeout", "hostile", "memory", "crashed")  # reasons of verdicts: grading did not come to its end
OUTCOME_NOTES = {
    "useful": "went into the result",
    "idle": "machine time that no step explains: loading, compiling, waiting",
    "failed": "attempts that ended in an error",
    "preempted": "the machine was taken away",
    "replayed": "steps done again after a crash",
    "discarded": "work that the result does not use",
}


def budget(run: RunFolder) -> float | None:
    """The budget in the bill's currency; "0.05 USD" and "0.05" both count."""
    text = str(run.bill.get("budget") or run.plan.get("budget") or "").split(" ")[0]
    return num(text)


def totals(run: RunFolder) -> tuple[Any, Any]:
    return tuple(mapping(run.bill.get(k)).get("total") for k in ("headline", "marginal"))  # type: ignore[return-value]


def spent_phrase(run: RunFolder) -> str:
    """for $0.0132 of a $0.05 budget"""
    head, marginal = totals(run)
    if decimal(head) is None and decimal(marginal) is None:
        return "for an amount that is not known: there is no bill"
    main = head if decimal(head) is not None else marginal
    at_least = "at least " if run.bill.get("is_lower_bound") else ""
    limit = budget(run)
    text = f"for {at_least}{h(money(main, run.currency))}"
    return text + (f" of a {h(money(limit, run.currency))} budget" if limit is not None else "")


def beside(run: RunFolder) -> str:
    """What the headline's dollars became with the failures in, where that is another number."""
    head, marginal = totals(run)
    a, b = decimal(head), decimal(marginal)
    if a is None or b is None or money(a, run.currency) == money(b, run.currency):
        return ""
    return f"; with every failed, replayed and discarded attempt {h(money(b, run.currency))}"


def left_out(run: RunFolder) -> str:
    """What the dollar figure does not hold, right below the headline."""
    said = run.plan.get("left_out")
    items = [h(x, 300) for x in said if x] if isinstance(said, list) else []
    if not items:
        items = [h(s["what"], 300) for s in objects(run.bill.get("sunk")) if s.get("what")]
    if not items:
        why = run.why_absent("plan.json") or "the plan names nothing"
        body = f"not recorded ({h(why)}). The base model's own training and people's time are never in it."
        return f'<div class="leftout"><strong>What the dollar figure leaves out:</strong> {body}</div>'
    lines = "".join(f"<li>{i}</li>" for i in items)
    return f'<div class="leftout"><strong>What the dollar figure leaves out</strong><ul>{lines}</ul></div>'


def without_variance(run: RunFolder) -> str:
    """What the groups whose answers all scored the same have cost: they teach nothing."""
    out = []
    for stage in run.stage_order():
        steps = run.steps(stage)
        groups = sum(num(s.get("groups")) or 0.0 for s in steps)
        if not groups:
            continue
        none = sum(num(s.get("groups_without_variance")) or 0.0 for s in steps)
        wasted, spent = (sum(num(s.get(k)) or 0.0 for s in steps) for k in ("usd_without_variance", "usd"))
        text = f"{h(stage, 60)}: {number(none, 9)} of {number(groups, 9)} groups ({percent(none / groups, 0)}) "
        text += "had answers that all scored the same and taught nothing"
        if wasted > 0:
            # usd of a line is either the step's own or the running total; only the stage's bill says which share
            base = run.stage_amount(stage) or spent
            text += f"; they cost {money(wasted, run.currency)}" + (
                f", {percent(wasted / base, 0)} of the stage" if base >= wasted else ""
            )
        out.append(text)
    return "".join(f'<p class="small">{t}.</p>' for t in [*out, *_cut_off(run)])


def _cut_off(run: RunFolder) -> list[str]:
    """Answers whose grading was ended by force: they were paid nothing, whatever they said."""
    out = []
    for stage in run.stage_order():
        counted = [mapping(s.get("verdicts")) for part in (stage, f"{stage}.probe") for s in run.steps(part)]
        answers = sum(num(n) or 0.0 for c in counted for n in c.values())
        ended = {why: sum(num(c.get(why)) or 0.0 for c in counted) for why in STOPPED}
        if said := ", ".join(f"{number(n, 9)} {why}" for why, n in ended.items() if n):
            whole = number(answers, 9)
            out.append(f"{h(stage, 60)}: grading was cut off for {said} of {whole} answers; they were paid nothing")
    return out


def _meter(run: RunFolder) -> str:
    """The budget as a bar: what each stage took of it and what is left."""
    limit = budget(run)
    parts = [(s, run.stage_amount(s) or 0.0) for s in run.stage_order()]
    parts = [(s, a) for s, a in parts if a > 0]
    if not limit or not parts:
        return ""
    whole = max(limit, sum(a for _, a in parts))
    spans, keys = "", []
    models, spare = scores.colours(run), itertools.cycle(("base", "shot", "m5", "m4", "m3"))
    places = max(2, money_places(whole) - 2)
    for stage, amount in parts:
        colour = models.get(stage) or next(spare)
        width = 100 * amount / whole
        spans += f'<span style="width:{width:.2f}%;background:var(--{colour})" title="{h(stage, 60)}"></span>'
        keys.append((f"{stage} {money(amount, run.currency, places)}", colour))
    left = limit - sum(a for _, a in parts)
    end = (
        f"<li>{h(money(left, run.currency))} of the budget left</li>"
        if left >= 0
        else f"<li>{h(money(-left, run.currency))} over the budget</li>"
    )
    return f'<div class="meter" aria-hidden="true">{spans}</div>{legend(keys, end)}'


def bill(run: RunFolder) -> str:
    title = "The bill"
    if not run.bill:
        return absent(title, run.why_absent("bill.json") or "there is no bill")
    cur = run.currency
    head, marginal = totals(run)
    places = money_places(marginal if decimal(marginal) is not None else head)
    lower = "at least " if run.bill.get("is_lower_bound") else ""
    sunk = objects(run.bill.get("sunk"))
    tiles = (
        ("Headline", lower + money(head, cur), "the winning run alone"),
        ("Marginal", lower + money(marginal, cur), "everything that this recipe caused, failures too"),
        (
            "Sunk",
            _sunk_total(sunk, cur),
            "spent before this run by others or by you; never added to the other two",
        ),
    )
    body = "".join(f'<div><div class="k">{k}</div><div class="v">{h(v)}</div><p>{p}</p></div>' for k, v, p in tiles)
    body = f'<div class="tiles">{body}</div>{_meter(run)}'
    rows: list[list[str]] = []
    prices: dict[str, int] = {}
    for line in objects(run.bill.get("lines"))[:2000]:
        ref = mapping(line.get("price_ref"))
        where, date = h(ref.get("source"), 200), h(ref.get("date"), 30)
        if where:
            note = f". {h(ref['note'], 240)}" if ref.get("note") else ""
            key = prices.setdefault(f"{where}, {date or 'no date'}{note}", len(prices) + 1)
            where = f"[{key}] {date.split('..')[-1]}"
        amount = f'<span title="{h(line.get("amount"), 60)}">{h(money(line.get("amount"), cur, places))}</span>'
        cells = [
            h(line.get("stage"), 60),
            f'<span title="{h(line.get("resource"), 120)}">{h(resource(line.get("resource")))}</span>',
            h(quantity(line.get("quantity"))),
        ]
        cells += [h(line.get("unit"), 40), h(money(line.get("unit_price"), cur)), amount]
        rows.append([*cells, h(line.get("outcome"), 20), where or "unknown"])
    th = [("stage", "nw"), ("resource", "nw"), (f"quantity<br>{tag('measured')}", "r"), ("unit", "nw")]
    th += [(f"unit price<br>{tag('literature')}", "r"), ("amount", "r"), ("outcome", "nw"), ("price", "nw")]
    total = ["marginal", "", "", "", "", h(money(marginal, cur, places)), "", ""]
    body += table(th, rows, total, "the bill, line by line") if rows else "<p>The bill has no lines.</p>"
    if prices:
        items = "".join(f"<li>{p}</li>" for p in prices)
        body += f'<h3>Where the prices come from</h3><ol class="refs">{items}</ol>'
    seen = {str(line.get("outcome")) for line in objects(run.bill.get("lines"))} - {"useful"}
    notes = [f"<b>{k}</b>: {v}" for k, v in OUTCOME_NOTES.items() if k in seen]
    if notes:
        body += f'<p class="small">{"; ".join(notes)}.</p>'
    if charged := charge_table(mapping(run.bill.get("charges")), cur):
        body += f"<h3>Charged by hand</h3>{charged}"
    body += _sunk_table(sunk, cur)
    text = "Quantities are metered; dollars are quantities times listed prices. The three totals are kept apart."
    if lower:
        text += " <strong>A price is unknown, so the totals are lower bounds.</strong>"
    return section(title, text, body)


def charge_table(charged: Mapping[str, Any], cur: str, many: bool = False) -> str:
    """The charges of a bill with what they come to, as HTML; nothing where there are none."""
    lines = objects(charged.get("lines"))
    if not lines:
        return ""
    th = [("what", "text"), ("quantity", "r"), ("each", "r"), ("amount", "r")]
    th += [("date", "nw"), ("ledger line", "r"), ("note", "text")]
    rows = []
    for c in lines[:500]:
        what = f"{c.get('run')}: {c.get('what')}" if many else c.get("what")
        cells = [h(what, 400), h(f"{quantity(c.get('quantity'))} {c.get('unit')}", 60), h(money(c.get("unit_price"), cur))]
        cells += [h(money(c.get("amount"), cur)), h(c.get("date"), 20), h(c.get("entry"), 12), h(c.get("note"), 400)]
        rows.append(cells)
    last = ["charged", "", "", h(money(charged.get("total"), cur)), "", "", ""]
    text = f"Marginal with charges: {h(money(charged.get('with_marginal'), cur))}. They do not count against the ceiling."
    return table(th, rows, last, "charged by hand") + f'<p class="small">{text}</p>'


def _sunk_total(sunk: list[dict[str, Any]], cur: str) -> str:
    if not sunk:
        return "not listed"
    ends = [sunk_ends(s) for s in sunk]
    known = [(a or 0.0, b or a or 0.0) for a, b in ends if (a, b) != (None, None)]
    if not known:
        return "unknown"
    text = between(sum(a for a, _ in known), sum(b for _, b in known), cur)
    return text + (" + unknown" if len(known) < len(ends) else "")


def _sunk_table(sunk: list[dict[str, Any]], cur: str) -> str:
    rows = []
    for s in sunk[:100]:
        ref = mapping(s.get("price_ref"))
        source, date = s.get("source") or ref.get("source") or DASH, s.get("date") or ref.get("date") or ""
        name = s.get("what") or s.get("name") or s.get("item") or s.get("kind") or "?"
        cells = [h(name, 120), h(between(*sunk_ends(s), cur)), h(source, 300), h(date, 40)]
        rows.append([*cells, h(s.get("note") or "", 300)])
    if not rows:
        return ""
    th = [("sunk", "nw"), ("dollars, as a range", "r"), ("source", "text"), ("date", "nw"), ("note", "text")]
    return f"<h3>Sunk, and in no total {tag('literature')}</h3>" + table(th, rows, label="sunk costs")
