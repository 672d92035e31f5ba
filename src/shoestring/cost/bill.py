"""The bill: a pure function of usages and a price book, so that history can be priced again with other prices.

Three totals, each apart. *Headline* is what the winning run used: usages that were useful or idle. *Marginal* is all
that this recipe caused: failed, preempted, replayed and discarded work too. *Sunk* was paid before by somebody (the
base model, people, earlier runs): a range with a source, or unknown, and never part of a total.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any

from shoestring.cost.decimals import MICRO, digits, plain, usd
from shoestring.cost.prices import EXACT, PriceBook, UnknownPrice, quantity
from shoestring.records import OUTCOMES, Bill, BillLine, Usage

PRICE_FIGURES = 20  # of a unit price: enough to recompute any amount to the last shown digit
HEADLINE_OUTCOMES = ("useful", "idle")

SUNK: tuple[Mapping[str, Any], ...] = (
    {"what": "pre-training of the base model", "low": None, "high": None, "source": "unknown"},
    {"what": "people's time", "low": None, "high": None, "source": "unknown"},
    {"what": "earlier runs and experiments", "low": None, "high": None, "source": "unknown"},
)


def price(
    usages: Iterable[Usage],
    book: PriceBook,
    budget: Decimal,
    sunk: Sequence[Mapping[str, Any]] = SUNK,
    allow_unknown: bool = False,
) -> Bill:
    """Price usages, one line a (stage, sku, outcome, unit), in the order in which stages first appear.

    Quantities are added exactly and multiplied by the full price; only the line's amount is rounded, to 1e-6 dollars,
    and the totals are the sums of the lines as shown. Raises UnknownPrice for a sku without a price, unless
    `allow_unknown`: then its line carries no amount and the bill says that its totals are lower bounds.
    """
    sums: dict[tuple[str, str, str, str], Decimal] = {}
    samples: dict[tuple[str, str, str, str], Usage] = {}
    stages: dict[str, int] = {}
    with localcontext(EXACT):
        for usage in usages:
            key = (usage.stage, usage.sku, usage.outcome, usage.unit)
            stages.setdefault(usage.stage, len(stages))
            sums[key] = sums.get(key, Decimal(0)) + quantity(usage)
            samples.setdefault(key, usage)
        lines: list[BillLine] = []
        headline = marginal = Decimal(0)
        missing = False
        for key in sorted(sums, key=lambda k: (stages[k[0]], k[1], OUTCOMES.index(k[2]), k[3])):  # type: ignore[arg-type]
            stage, sku, outcome, unit = key
            try:
                unit_price, ref = book.unit_price(samples[key]), book.price(sku).ref
            except UnknownPrice:
                if not allow_unknown:
                    raise
                missing = True
                lines.append(BillLine(stage, sku, plain(sums[key]), unit, None, None, outcome, None))
                continue
            amount = (sums[key] * unit_price).quantize(MICRO, ROUND_HALF_EVEN)
            marginal += amount
            if outcome in HEADLINE_OUTCOMES:
                headline += amount
            lines.append(
                BillLine(stage, sku, plain(sums[key]), unit, digits(unit_price, PRICE_FIGURES), f"{amount:f}", outcome, ref)
            )
    return Bill(
        currency="USD",
        budget=plain(budget),
        headline=usd(headline),
        marginal=usd(marginal),
        sunk=tuple(dict(row) for row in sunk),
        is_lower_bound=missing,
        lines=tuple(lines),
    )


def sunk_row(what: str, low: Decimal | None, high: Decimal | None, source: str) -> dict[str, Any]:
    """A sunk cost as a range in dollars. A range needs a source; without one both ends must be None, which is "unknown".

    Raises ValueError otherwise.
    """
    if (low is None) != (high is None) or (low is not None and (not source or high is None or low > high)):
        raise ValueError(f"sunk cost {what!r}: give a low and a high with a source, or neither")
    return {
        "what": what,
        "low": None if low is None else plain(low),
        "high": None if high is None else plain(high),
        "source": source or "unknown",
    }


def to_dict(bill: Bill) -> dict[str, Any]:
    """The content of bill.json."""
    return {
        "currency": bill.currency,
        "budget": bill.budget,
        "headline": {"total": bill.headline},
        "marginal": {"total": bill.marginal},
        "sunk": [dict(row) for row in bill.sunk],
        "is_lower_bound": bill.is_lower_bound,
        "lines": [
            {
                "stage": line.stage,
                "resource": line.resource,
                "quantity": line.quantity,
                "unit": line.unit,
                "unit_price": line.unit_price,
                "amount": line.amount,
                "outcome": line.outcome,
                "price_ref": line.price_ref and {"source": line.price_ref.source, "date": line.price_ref.date},
            }
            for line in bill.lines
        ],
    }
