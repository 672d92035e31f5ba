"""The ceiling that all child runs of an ablation share.

Each child run has a ledger and a hard ceiling of its own. Before it starts, that ceiling is reserved in the ablation's ledger,
in one act with the check that everything spent and reserved so far leaves room for it; when it ends, the reservation is
closed with what it did use. So two processes on one ablation cannot overspend together, and a killed child's share stays
reserved until it has been gone on with.
"""

from __future__ import annotations

import dataclasses
from decimal import ROUND_DOWN, Decimal, localcontext
from pathlib import Path

from shoestring.cost.budget import Budget
from shoestring.cost.ledger import Ledger
from shoestring.cost.prices import EXACT, PriceBook
from shoestring.records import Intent, Usage

CENT = Decimal("0.000001")  # ceilings are whole millionths of a dollar


class Pool:
    """`limit` US dollars; `sku`: of the lease, in whose seconds a ceiling is reserved."""

    def __init__(self, path: Path, limit: Decimal, book: PriceBook, sku: str) -> None:
        self.ledger, self.book, self.sku = Ledger.open(path), book, sku
        self.budget = Budget(limit, book, self.ledger)

    def close(self) -> None:
        self.ledger.close()

    def spent(self) -> Decimal:
        return self.budget.accrued()

    def left(self) -> Decimal:
        return self.budget.left()

    def held(self, job: str) -> Decimal | None:
        """What is reserved for a child run; None where nothing is."""
        found = [r for r in self.ledger.refresh().reservations.values() if r.attempt == job]
        if not found:
            return None
        return sum((self.book.cost(r.intent.usages) for r in found), Decimal(0)).quantize(CENT)

    def hold(self, job: str, usd: Decimal) -> Decimal | None:
        """Reserve `usd` for a child run; what was reserved, or None where it does not fit."""
        whole = usd.quantize(CENT, ROUND_DOWN)
        with localcontext(EXACT):
            second = self.book.cost([Usage(self.sku, 1.0, "second", job)])
            seconds = float((whole / second).quantize(Decimal("1e-9"), ROUND_DOWN))
        intent = Intent(job, 1, (Usage(self.sku, seconds, "second", job, job),), "a child run's ceiling")
        return whole if self.budget.reserve(intent, attempt=job) else None

    def posted(self, job: str) -> Decimal:
        """Dollars of a child run that this ledger has already."""
        return self.book.cost(u for u in self.ledger.usages() if u.attempt.startswith(f"{job}/"))

    def settle(self, job: str, usages: list[Usage]) -> None:
        """Post what a child run used since the last time, by its own ledger, and close its reservation: one line."""
        before = sum(u.attempt.startswith(f"{job}/") for u in self.ledger.usages())
        fresh = [dataclasses.replace(u, attempt=f"{job}/{u.attempt}") for u in usages[before:]]
        held = [r.id for r in self.ledger.refresh().reservations.values() if r.attempt == job]
        if held:
            self.ledger.release(held[0], fresh)
        else:
            for u in fresh:
                self.ledger.post(u)
