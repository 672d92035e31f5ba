"""The bill: pure, exact, and it says what it does not know."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.cost.bill import HEADLINE_OUTCOMES, price, sunk_row, to_dict
from shoestring.cost.prices import SECOND, TOKEN, Price, PriceBook, UnknownPrice, per_second
from shoestring.records import OUTCOMES, PriceRef, Usage

REF = PriceRef("a test", "2026-01-01", "a note")
BOOK = PriceBook(
    [
        ("x/machine-second", Price(per_second(Decimal("0.10")), SECOND, REF)),
        ("teacher:c/m/in", Price(Decimal("0.00000028"), TOKEN, REF)),
        ("teacher:c/m/out", Price(Decimal("0.0000011"), TOKEN, REF)),
    ]
)
USAGES = st.lists(
    st.builds(
        lambda sku, q, stage, outcome: Usage(sku, q, TOKEN if sku[0] == "t" else SECOND, stage, outcome=outcome),
        st.sampled_from(["x/machine-second", "teacher:c/m/in", "teacher:c/m/out"]),
        st.just(0.0) | st.floats(1e-9, 1e7) | st.integers(0, 10**9),  # a clock ticks in nanoseconds
        st.sampled_from(["sft", "grpo", "distill"]),
        st.sampled_from(OUTCOMES),
    ),
    max_size=30,
)


def usage(quantity: float, outcome: str = "useful", stage: str = "sft", sku: str = "x/machine-second") -> Usage:
    return Usage(sku, quantity, SECOND, stage, outcome=outcome)  # type: ignore[arg-type]


def test_the_shape_of_bill_json() -> None:
    bill = price([usage(3600), usage(36, "failed"), usage(1800, "idle")], BOOK, Decimal("0.050"))
    data = to_dict(bill)
    assert list(data) == ["currency", "budget", "headline", "marginal", "sunk", "is_lower_bound", "lines"]
    assert data["currency"] == "USD" and data["budget"] == "0.05" and data["is_lower_bound"] is False
    assert data["headline"] == {"total": "0.150000"} and data["marginal"] == {"total": "0.151000"}
    assert all(row["low"] is row["high"] is None and row["source"] == "unknown" for row in data["sunk"])
    assert data["lines"][0] == {
        "stage": "sft", "resource": "x/machine-second", "quantity": "3600", "unit": "second",
        "unit_price": "0.000027777777777777777778", "amount": "0.100000", "outcome": "useful",
        "price_ref": {"source": "a test", "date": "2026-01-01"},
    }  # fmt: skip


def test_lines_are_aggregated_in_the_order_of_stages() -> None:
    bill = price(
        [usage(1, stage="b"), usage(2, stage="a"), usage(0.1, stage="b"), usage(0.2, stage="b")], BOOK, Decimal(1)
    )
    assert [(line.stage, line.quantity) for line in bill.lines] == [("b", "1.3"), ("a", "2")]


def test_unknown_price_refuses_or_marks_a_lower_bound() -> None:
    usages = [usage(3600), usage(5, sku="y/machine-second")]
    with pytest.raises(UnknownPrice):
        price(usages, BOOK, Decimal(1))
    bill = price(usages, BOOK, Decimal(1), allow_unknown=True)
    assert bill.is_lower_bound and bill.marginal == "0.100000"
    assert (bill.lines[1].amount, bill.lines[1].unit_price, bill.lines[1].price_ref) == (None, None, None)
    assert to_dict(bill)["lines"][1]["price_ref"] is None


def test_the_same_history_with_other_prices() -> None:
    dearer = PriceBook([("x/machine-second", Price(per_second(Decimal("0.20")), SECOND, REF))])
    usages = [usage(3600)]
    assert Decimal(price(usages, dearer, Decimal(1)).marginal) == 2 * Decimal(price(usages, BOOK, Decimal(1)).marginal)


def test_sunk_is_a_range_with_a_source_or_unknown() -> None:
    assert sunk_row("base", Decimal("1.50"), Decimal(3), "a paper") == {
        "what": "base", "low": "1.5", "high": "3", "source": "a paper"}  # fmt: skip
    assert sunk_row("base", None, None, "")["source"] == "unknown"
    for low, high, source in ((Decimal(1), None, "s"), (Decimal(1), Decimal(2), ""), (Decimal(2), Decimal(1), "s")):
        with pytest.raises(ValueError, match="sunk"):
            sunk_row("base", low, high, source)


@given(USAGES)
def test_totals_are_the_sums_of_the_lines(usages: list[Usage]) -> None:
    bill = price(usages, BOOK, Decimal(1))
    amounts = [(line.outcome, Decimal(line.amount or "nan")) for line in bill.lines]
    assert Decimal(bill.marginal) == sum(a for _, a in amounts)
    assert Decimal(bill.headline) == sum(a for o, a in amounts if o in HEADLINE_OUTCOMES)
    assert Decimal(bill.headline) <= Decimal(bill.marginal)
    assert abs(Decimal(bill.marginal) - BOOK.cost(usages)) <= Decimal("0.0000005") * max(len(bill.lines), 1)
    assert len({(line.stage, line.resource, line.outcome, line.unit) for line in bill.lines}) == len(bill.lines)
    assert all("E" not in s for line in bill.lines for s in (line.quantity, line.amount or "", line.unit_price or ""))


@given(USAGES, st.randoms())
def test_order_within_stages_does_not_matter(usages: list[Usage], rng: object) -> None:
    shuffled = list(usages)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    one, two = price(usages, BOOK, Decimal(1)), price(shuffled, BOOK, Decimal(1))
    assert sorted(map(repr, one.lines)) == sorted(map(repr, two.lines)) and one.marginal == two.marginal
