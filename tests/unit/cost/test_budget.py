"""The ceiling holds: alone, incrementally, and for several processes on one ledger."""

from __future__ import annotations

import multiprocessing
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.cost.bill import price
from shoestring.cost.budget import Budget
from shoestring.cost.ledger import Ledger
from shoestring.cost.prices import SECOND, Price, PriceBook, UnknownPrice
from shoestring.records import Intent, PriceRef, Usage, UserError

SKU = "x/machine-second"


def book() -> PriceBook:
    return PriceBook([(SKU, Price(Decimal("0.01"), SECOND, PriceRef("a test", "2026-01-01")))])


def seconds(n: float, sku: str = SKU) -> Usage:
    return Usage(sku, n, SECOND, "sft")


def intent(n: float, sku: str = SKU) -> Intent:
    return Intent("sft", 1, (seconds(n, sku),))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def test_the_inequality_term_by_term(tmp_path: Path) -> None:
    budget = Budget(Decimal("1.00"), book(), Ledger.open(tmp_path / "ledger.jsonl"))
    budget.ledger.post(seconds(30))
    assert budget.reserve(intent(20))
    assert (budget.accrued(), budget.committed(), budget.left()) == (Decimal("0.3"), Decimal("0.2"), Decimal("0.5"))
    assert budget.allows(intent(50)) and not budget.allows(intent(50.001))
    assert budget.allows(intent(30), [seconds(20)]) and not budget.allows(intent(30.001), [seconds(20)])
    assert budget.allows(intent(30), [seconds(10)], [seconds(10)])
    assert not budget.allows(intent(30), [seconds(10)], [seconds(10.001)])
    assert budget.reserve(intent(50.001)) is None and budget.committed() == Decimal("0.2")


def test_release_frees_what_was_not_used(tmp_path: Path) -> None:
    budget = Budget(Decimal("1.00"), book(), Ledger.open(tmp_path / "ledger.jsonl"))
    held = budget.reserve(intent(90))
    assert held and not budget.allows(intent(20))
    budget.ledger.release(held, [seconds(10)])
    assert (budget.accrued(), budget.committed()) == (Decimal("0.1"), 0) and budget.allows(intent(90))


def test_unknown_prices_and_bad_limits_refuse(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.jsonl")
    budget = Budget(Decimal(1), book(), ledger)
    for call in (lambda: budget.allows(intent(1, "y")), lambda: budget.reserve(intent(1, "y")),
                 lambda: budget.allows(intent(1), [seconds(1, "y")])):  # fmt: skip
        with pytest.raises(UnknownPrice):
            call()
    assert ledger.open_reservations() == []
    ledger.post(seconds(1, "y"))
    with pytest.raises(UnknownPrice):
        budget.accrued()
    for bad in ("0", "-1", "nan"):
        with pytest.raises(UserError, match="above zero"):
            Budget(Decimal(bad), book(), ledger)


def test_a_check_does_not_reprice_the_history(tmp_path: Path) -> None:
    class Counting(PriceBook):
        asked = 0

        def price(self, sku: str) -> Price:
            Counting.asked += 1
            return super().price(sku)

    prices = Counting([(SKU, book().price(SKU))])
    budget = Budget(Decimal(10**6), prices, Ledger.open(tmp_path / "ledger.jsonl"))
    for _ in range(200):
        budget.ledger.post(seconds(1))
    budget.accrued()
    Counting.asked = 0
    for _ in range(10):
        assert budget.allows(intent(1))
    assert Counting.asked == 10


@given(st.lists(st.tuples(st.floats(0, 40), st.floats(0, 1), st.booleans()), max_size=25), st.floats(0, 20))
@settings(max_examples=60, deadline=None)
def test_never_over_the_limit(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[float, float, bool]], stop: float
) -> None:
    path = tmp_path_factory.mktemp("b") / "ledger.jsonl"
    both = [Budget(Decimal("1.00"), book(), Ledger.open(path)) for _ in range(2)]
    held: list[str] = []
    for n, (most, share, keep) in enumerate(steps):
        budget = both[n % 2]
        name = budget.reserve(intent(most), [seconds(stop)])
        if name:
            assert budget.accrued() + budget.committed() + Decimal(repr(stop)) / 100 <= 1
            if keep:
                held.append(name)
            else:
                budget.ledger.release(name, [seconds(most * share)])
        assert both[0].accrued() == both[1].accrued() and both[0].committed() == both[1].committed()
        fresh = Budget(Decimal("1.00"), book(), Ledger.open(path))
        assert (fresh.accrued(), fresh.committed()) == (budget.accrued(), budget.committed())
    if both[0].ledger.usages():
        total = Decimal(price(both[0].ledger.usages(), book(), Decimal(1)).marginal)
        assert abs(total - both[0].accrued()) <= Decimal("0.000001")


def _spend(path: Path, step: float, together: Any) -> None:
    together.wait(30)
    budget = Budget(Decimal("1.00"), book(), Ledger.open(path))
    while held := budget.reserve(intent(step), [seconds(5)]):
        budget.ledger.release(held, [seconds(step)])


def test_two_processes_on_one_budget_cannot_overspend_together(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("fork")
    together = context.Barrier(2)
    workers = [context.Process(target=_spend, args=(path, step, together)) for step in (1.5, 0.7)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
        assert w.exitcode == 0
    budget = Budget(Decimal("1.00"), book(), Ledger.open(path))
    assert Decimal("0.93") < budget.accrued() <= Decimal("0.95") and budget.committed() == 0
