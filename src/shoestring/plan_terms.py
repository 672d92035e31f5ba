"""What a recipe's other keys about money make of its plan, as data: storage, the result's way out, credits, hours.

Keys and units: docs/json/plan.md. `now` is when the plan is asked for: a window's wall clock begins there.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from shoestring.cost import funding
from shoestring.cost.decimals import MICRO
from shoestring.cost.prices import PriceBook
from shoestring.cost.provisioned import MONTH_SECONDS
from shoestring.estimate.rates import added
from shoestring.plan import RESUME_SECONDS, Plan
from shoestring.plan_json import quantity
from shoestring.records import Quantity


def to_dict(plan: Plan, book: PriceBook, now: float) -> dict[str, Any]:
    """The keys of plan.json that the recipe's terms ask for; none for a recipe without them."""
    terms, out = plan.recipe.terms, dict[str, Any]()
    if plan.beside.storage:
        out["storage"] = _storage(plan, book)
    if plan.beside.leaving:
        out["egress"] = [_egress(sku, gb, book) for sku, gb in plan.beside.leaving]
    if terms.credits:
        out["funding"] = fund(plan)
    if terms.window is not None:
        out["window"] = _window(plan, now)
    if terms.worth is not None:
        out["worth_usd_per_point"] = f"{terms.worth.normalize():f}"
    return out


def _price(sku: str, book: PriceBook) -> dict[str, Any]:
    price = book.price(sku)
    return {"unit_price": f"{price.amount.normalize():f}", "source": price.ref.source, "date": price.ref.date}


def _storage(plan: Plan, book: PriceBook) -> dict[str, Any]:
    usd = added(*(s.storage for s in plan.stages if s.storage is not None))
    months = plan.total_seconds().scaled(plan.beside.gb / MONTH_SECONDS)
    return {
        "sku": plan.beside.storage, "gb": plan.beside.gb, "gb_months": quantity(months), "usd": quantity(usd),
        **_price(plan.beside.storage, book),
    }  # fmt: skip


def _egress(sku: str, gb: float, book: PriceBook) -> dict[str, Any]:
    usd = float(book.price(sku).amount * Decimal(repr(gb)))
    return {"sku": sku, "gb": gb, "usd": quantity(Quantity(usd, usd, usd, "literature")), **_price(sku, book)}


def fund(plan: Plan) -> list[dict[str, Any]]:
    """Who would pay for the plan's middle. Credits lower no total: a run with them costs what it costs."""
    total = Decimal(repr(plan.total_usd().mid)).quantize(MICRO)
    rows = funding.funding(total, funding.parse(plan.recipe.terms.credits))
    return [{"source": r.source, "amount": f"{r.amount:f}", "left": None if r.left is None else f"{r.left:f}"} for r in rows]


def _window(plan: Plan, now: float) -> dict[str, Any]:
    """From now to the end on the wall clock: waiting for the opening, and one more start in every further window. Those
    starts are paid for; they stand beside the total, which does not know when it is begun."""
    window = plan.recipe.terms.window
    assert window is not None
    restart = RESUME_SECONDS + plan.rates.load().mid
    opens, seconds = window.next_start(now), plan.total_seconds()
    first = {"window": str(window), "opens": _when(opens), "waits_hours": round((opens - now) / 3600, 2)}
    try:
        ends = [window.finish(now, s, restart) for s in (seconds.low, seconds.mid, seconds.high)]
    except ValueError as e:  # every window would go into starting
        return {**first, "ends": None, "wall_hours": None, "windows": None, "restarts_usd": None, "why": str(e)}
    low, mid, high = ((at - now) / 3600 for at, _ in ends)
    more = [float(plan.usd_per_second + plan.storage_usd_per_second) * restart * (used - 1) for _, used in ends]
    return {
        **first, "ends": _when(ends[1][0]), "wall_hours": quantity(Quantity(low, mid, high, seconds.basis)),
        "windows": {"low": ends[0][1], "mid": ends[1][1], "high": ends[2][1]},
        "restarts_usd": quantity(Quantity(more[0], more[1], more[2], seconds.basis)),
    }  # fmt: skip


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%MZ")
