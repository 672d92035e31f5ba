"""Egress where a book prices only some slices of a month: one rule for the meter, the ceiling and the plan."""

from __future__ import annotations

from decimal import Decimal

import pytest

from shoestring.cost.beside import Beside
from shoestring.cost.prices import GB, Price, PriceBook, UnknownPrice
from shoestring.cost.provisioned import egress_usages
from shoestring.records import PriceRef
from shoestring.terms import Egress, Terms


def _book(**tiers: str) -> PriceBook:
    rows = [(f"egress:here/{k[1:].replace('_', '-')}", Price(Decimal(v), GB, PriceRef("x", "2026-01-01"))) for k, v in tiers.items()]
    return PriceBook(rows)


@pytest.mark.parametrize("gb, used, dollars", [
    (50, 0, "10.0"), (150, 0, "30.0"), (250, 0, "45.0"), (50, 90, "10.0"), (50, 180, "7.0"), (100, 250, "10.0"),
])  # fmt: skip
def test_gb_without_a_price_cost_what_the_next_slice_costs(gb: float, used: float, dollars: str) -> None:
    """Priced: 100 to 200 GB at $0.20, from 300 GB on at $0.10; below 100, and from 200 to 300, nothing is known."""
    book = _book(t100_200="0.2", t300_="0.1")
    usages = egress_usages("here", gb, used, book=book)
    assert sum(u.quantity for u in usages) == gb and book.cost(usages) == Decimal(dollars)
    assert len({u.sku for u in usages}) == len(usages)
    if not used:
        beside = Beside.of(Terms(egress=Egress("here", gb)), book)
        assert book.cost(beside.out("", "", 0.0)) == Decimal(dollars)


def test_beyond_the_last_slice_is_refused() -> None:
    with pytest.raises(UnknownPrice, match="above 200 GB"):
        egress_usages("here", 201, book=_book(t100_200="0.2"))
