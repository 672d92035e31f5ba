"""Plan against bill, line by line: what the difference is made of, in dollars, to the last millionth.

A line is a stage and a resource. Its difference is split as standard costing does (Horngren, Datar and Rajan, Cost
Accounting, chapters 7 and 8), with the plan as the standard; idle and failed time, which the plan has none of, stands
apart. With the planned quantity q0 at price p0, the useful quantity u and the wasted quantity x at price p1, and the
share w of the planned work that was done:

    volume      (w - 1) · q0 · p0        more or less work than planned
    efficiency  (u - w · q0) · p0        more or fewer seconds for that work
    waste       x · p0                   idle, failed, preempted, replayed, discarded
    rate        (p1 - p0) · (u + x)      another price than planned

They sum to p1·(u + x) - p0·q0. Each is rounded to a millionth of a dollar and efficiency takes the rounding, so a line's
parts sum to its difference exactly, and the lines to the difference of the totals. A line that the plan did not have,
or that was planned and never used, is all volume.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any

from shoestring.cost.decimals import MICRO, brief, plain
from shoestring.cost.prices import EXACT, GB, GB_MONTH, SECOND
from shoestring.records import LEASE

PARTS = ("rate", "volume", "efficiency", "waste")
NEAR = Decimal("0.00001")  # a plan's figures have six digits: a price this near to the machine's is the machine's
TRAINING = ("sft", "logit_distill", "grpo", "pretrain")  # their steps count the tokens that their plans count
LEAVE = "export"  # the plan's row of what leaves the provider
OTHER = "other than machine time"  # dollars that a plan's line has beyond its seconds; the plan names no resource for them


def of(plan: Mapping[str, Any], bill: Mapping[str, Any], work: Mapping[str, tuple[float, str]] | None = None) -> dict[str, Any]:
    """The variance of a bill (bill.json's content) against a plan (plan.json's content).

    work: stage → (done work over planned work, what it was measured in), see `work_done`; a stage that is not in it is
    taken to have done what was planned. Returns {"lines", "planned", "actual", "difference", "parts", "outside"};
    amounts are decimal strings. A planned total is the plan's middle. Lines of the bill without a price are listed with
    `actual` null and stand in no sum.
    """
    work = work or {}
    with localcontext(EXACT):
        planned = _planned(plan)
        actual, unpriced = _actual(bill)
        _match_others(planned, actual)
        keys = sorted(planned.keys() | actual.keys(), key=lambda k: (_order(plan, bill).index(k[0]), k[1]))
        lines = [_line(key, planned.get(key), actual.get(key), work.get(key[0])) for key in keys]
    lines += [_blank(stage, sku) for stage, sku in unpriced]
    sums = {k: sum((Decimal(row[k]) for row in lines if row[k] is not None), Decimal(0)) for k in _SUMMED}
    return {
        "planned": f"{sums['planned']:f}", "actual": f"{sums['actual']:f}", "difference": f"{sums['difference']:f}",
        "parts": {k: f"{sums[k]:f}" for k in PARTS},
        "outside": _outside(plan, sums["actual"]),
        "lines": lines,
    }  # fmt: skip


_SUMMED = ("planned", "actual", "difference", *PARTS)


def work_done(plan: Mapping[str, Any], steps: Mapping[str, list[dict[str, Any]]]) -> dict[str, tuple[float, str]]:
    """Stage → (work done over work planned, its measure) from a run's steps (metrics.jsonl, replayed steps once).

    A training stage's tokens are the plan's tokens, so they are compared. Elsewhere the plan counts prompts and the meter
    answers only: there it is the share of the stage's steps that were done. A stage without steps is left out.
    """
    done: dict[str, tuple[float, str]] = {}
    for stage in plan.get("stages") or []:
        name = str(stage.get("name") or stage.get("use"))
        rows = steps.get(name) or []
        if not rows:
            continue
        expected = float((stage.get("tokens") or {}).get("mid") or 0.0)
        tokens = sum(float(r.get("tokens") or 0.0) for r in rows)
        if stage.get("use") in TRAINING and expected > 0 and tokens > 0:
            done[name] = tokens / expected, "tokens"
        elif (most := float(rows[-1].get("total") or 0.0)) > 0:
            done[name] = min(1.0, float(rows[-1].get("step") or 0.0) / most), "steps"
    return done


class _Planned:
    def __init__(self, usd: Decimal, quantity: Decimal, unit: str, rate: Decimal = Decimal(0)) -> None:
        self.usd, self.quantity, self.unit = usd.quantize(MICRO, ROUND_HALF_EVEN), quantity, unit
        self.price = usd / quantity if quantity else Decimal(0)
        if rate and abs(self.price - rate) <= NEAR * rate:
            self.price = rate


class _Actual:
    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.price: Decimal | None = None
        self.usd = self.useful = self.wasted = Decimal(0)


def _planned(plan: Mapping[str, Any]) -> dict[tuple[str, str], _Planned]:
    machine = plan.get("machine") or {}
    sku = str(machine.get("sku") or f"machine/{LEASE}")
    hourly = Decimal(str(machine.get("usd_per_hour") or "0"))
    out: dict[tuple[str, str], _Planned] = {}
    for stage in plan.get("stages") or []:
        name = str(stage.get("name") or stage.get("use"))
        usd, minutes = (_mid(stage.get(k)) for k in ("usd", "minutes"))
        seconds = minutes * 60 * int(machine.get("count") or 1)
        lease = seconds * hourly / 3600
        stored = _mid(stage.get("storage_usd"))
        if stored:  # the plan names this resource and its price
            price = Decimal(str(plan["storage"]["unit_price"]))
            out[name, str(plan["storage"]["sku"])] = _Planned(stored, stored / price, GB_MONTH, price)
            usd -= stored
        if abs(usd - lease) <= Decimal("0.01") * usd or (seconds and not hourly):
            lease = usd  # all of it is machine time; the plan's figures are rounded to six digits
        lease = min(lease, usd)
        if seconds or usd == lease:
            out[name, sku] = _Planned(lease, seconds, SECOND, hourly / 3600)
        slices = (plan.get("egress") or []) if stage.get("use") == LEAVE else []
        for row in slices:
            price = Decimal(str(row["unit_price"]))
            out[name, str(row["sku"])] = _Planned(_mid(row["usd"]), _mid(row["gb"]), GB, price)
            usd, lease = Decimal(0), Decimal(0)
        if usd > lease:
            out[name, OTHER] = _Planned(usd - lease, Decimal(1), "plan")
    return out


def _actual(bill: Mapping[str, Any]) -> tuple[dict[tuple[str, str], _Actual], list[tuple[str, str]]]:
    out: dict[tuple[str, str], _Actual] = {}
    unpriced: dict[tuple[str, str], None] = {}
    for line in bill.get("lines") or []:
        key = (str(line["stage"]), str(line["resource"]))
        if line.get("amount") is None:
            unpriced[key] = None
            continue
        row = out.setdefault(key, _Actual(str(line.get("unit"))))
        row.usd += Decimal(line["amount"])
        row.price = Decimal(line["unit_price"])
        quantity = Decimal(line["quantity"])
        if line.get("outcome") == "useful":
            row.useful += quantity
        else:
            row.wasted += quantity
    return out, list(unpriced)


def _match_others(planned: dict[tuple[str, str], _Planned], actual: Mapping[tuple[str, str], _Actual]) -> None:
    """A plan made for another machine's name (another book, another zone) is still that stage's machine time; and where a
    stage used one resource beside the machine, the plan's unnamed dollars were meant for it."""
    for stage in {s for s, _ in planned}:
        for is_lease in (True, False):
            mine = [k for k in planned if k[0] == stage and (k[1].endswith(LEASE)) == is_lease]
            used = [k for k in actual if k[0] == stage and (k[1].endswith(LEASE)) == is_lease]
            if len(mine) == 1 and len(used) == 1 and mine != used:
                planned[used[0]] = planned.pop(mine[0])


def _line(
    key: tuple[str, str], planned: _Planned | None, actual: _Actual | None, work: tuple[float, str] | None
) -> dict[str, Any]:
    before = planned.usd if planned else Decimal(0)
    after = actual.usd if actual else Decimal(0)
    difference = after - before
    parts = dict.fromkeys(PARTS, Decimal(0))
    kind, measure, share = "both", "as planned", None
    if planned is None or actual is None:
        kind = "not planned" if planned is None else "not used"
        parts["volume"] = difference
    elif planned.unit != actual.unit or not planned.quantity:  # dollars against tokens: no quantity to compare
        parts["volume"] = difference
    else:
        used = actual.useful + actual.wasted
        price = actual.price if actual.price is not None else planned.price
        done = Decimal(1)
        if work:
            share, measure = work
            done = Decimal(repr(float(share)))
        parts["rate"] = _round((price - planned.price) * used)
        parts["volume"] = _round((done - 1) * planned.quantity * planned.price)
        parts["waste"] = _round(actual.wasted * planned.price)
        parts["efficiency"] = difference - sum(parts.values())
    return {
        "stage": key[0], "resource": key[1], "kind": kind,
        "unit": (actual or planned).unit,  # type: ignore[union-attr]
        "planned_quantity": plain(planned.quantity) if planned and planned.unit != "plan" else None,
        "planned_price": brief(planned.price) if planned and planned.unit != "plan" else None,
        "planned": f"{before:f}",
        "actual_quantity": plain(actual.useful + actual.wasted) if actual else None,
        "actual": f"{after:f}", "difference": f"{difference:f}",
        **{k: f"{parts[k]:f}" for k in PARTS},
        "work": None if share is None else round(float(share), 6), "work_measure": measure,
    }  # fmt: skip


def _blank(stage: str, sku: str) -> dict[str, Any]:
    empty = dict.fromkeys(("planned_quantity", "planned_price", "planned", "actual_quantity", "actual", "difference"))
    return {"stage": stage, "resource": sku, "kind": "no price", "unit": "", **empty, **dict.fromkeys(PARTS),
            "work": None, "work_measure": "as planned"}  # fmt: skip


def _order(plan: Mapping[str, Any], bill: Mapping[str, Any]) -> list[str]:
    names = [str(s.get("name") or s.get("use")) for s in plan.get("stages") or []]
    return list(dict.fromkeys(names + [str(line["stage"]) for line in bill.get("lines") or []]))


def _outside(plan: Mapping[str, Any], actual: Decimal) -> str:
    """"below", "inside" or "above" the plan's interval; "" where the plan has none."""
    total = (plan.get("total") or {}).get("usd") or {}
    if not all(isinstance(total.get(k), int | float) for k in ("low", "high")):
        return ""
    low, high = Decimal(repr(float(total["low"]))), Decimal(repr(float(total["high"])))
    return "below" if actual < low else "above" if actual > high else "inside"


def _mid(quantity: Any) -> Decimal:
    value = quantity.get("mid") if isinstance(quantity, Mapping) else quantity
    return Decimal(repr(float(value))) if isinstance(value, int | float) and not isinstance(value, bool) else Decimal(0)


def _round(x: Decimal) -> Decimal:
    return x.quantize(MICRO, ROUND_HALF_EVEN) + 0  # + 0: no negative zero
