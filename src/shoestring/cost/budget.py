"""The hard ceiling. Nothing starts whose worst case, with the cost of stopping safely, would not fit under it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from decimal import Decimal, localcontext

from shoestring.cost.ledger import Ledger, State
from shoestring.cost.prices import EXACT, PriceBook
from shoestring.records import Intent, Usage, UserError


class Budget:
    """`limit` in US dollars over one ledger, shared by every process that works on it.

    The sums are kept as the ledger grows: a check costs what was appended since the last one, not the whole history.
    Prices are taken when a usage is first seen; a new `Budget` re-prices everything with its own book.
    """

    def __init__(self, limit: Decimal, book: PriceBook, ledger: Ledger) -> None:
        if not limit.is_finite() or limit <= 0:
            raise UserError(f"the budget must be above zero, not {limit}")
        self.limit, self.book, self.ledger = limit, book, ledger
        self._seen = 0  # usages of the ledger that are in _accrued
        self._accrued = Decimal(0)
        self._undone = 0  # reversals that are in _accrued
        self._held: dict[str, Decimal] = {}  # open reservations' prices, by id
        self._lock = threading.RLock()

    def accrued(self) -> Decimal:
        """Dollars of everything posted. Raises UnknownPrice: what cannot be priced cannot be kept under a budget."""
        return self._sums(self.ledger.refresh())[0]

    def committed(self) -> Decimal:
        """Dollars of the open reservations, of every process."""
        return self._sums(self.ledger.refresh())[1]

    def left(self) -> Decimal:
        """Dollars neither accrued nor committed; below zero where a lease ran on past the limit."""
        accrued, committed = self._sums(self.ledger.refresh())
        with localcontext(EXACT):
            return self.limit - accrued - committed

    def allows(self, intent: Intent, stop_cost: Sequence[Usage] = (), unposted: Sequence[Usage] = ()) -> bool:
        """accrued + unposted + committed + price(intent) + price(stop_cost) <= limit.

        `stop_cost` is what stopping safely after this step takes (last checkpoint, export, evaluation);
        `unposted` are lease seconds that ran since the last post. A look only: use `reserve` to act on it.
        """
        return self._fits(self.ledger.refresh(), intent, stop_cost, unposted)

    def reserve(
        self, intent: Intent, stop_cost: Sequence[Usage] = (), unposted: Sequence[Usage] = (),
        attempt: str = "", now: float | None = None,
    ) -> str | None:  # fmt: skip
        """`allows` and the reservation in one act under the ledger's lock; the reservation's id, or None for stop."""

        def fits(state: State) -> bool:
            return self._fits(state, intent, stop_cost, unposted, attempt)

        return self.ledger.reserve(intent, fits, attempt, now, stop_cost)

    def spare(self, stop_cost: Iterable[Usage], attempt: str = "") -> Decimal:
        """Dollars that `attempt` may still spend before it must stop, its own open reservation included: what others hold,
        and what they and it need to stop safely, is kept."""
        state = self.ledger.refresh()
        accrued, _ = self._sums(state)
        with localcontext(EXACT):
            others = sum((self._held[r.id] for r in state.reservations.values() if r.attempt != attempt), Decimal(0))
            return self.limit - accrued - others - self._others_stop(state, attempt) - self.book.cost(stop_cost)

    def _fits(
        self, state: State, intent: Intent, stop_cost: Iterable[Usage], unposted: Iterable[Usage], attempt: str = ""
    ) -> bool:
        accrued, committed = self._sums(state)
        with localcontext(EXACT):
            extra = self.book.cost(unposted) + self.book.cost(intent.usages) + self.book.cost(stop_cost)
            return accrued + committed + extra + self._others_stop(state, attempt) <= self.limit

    def _others_stop(self, state: State, attempt: str) -> Decimal:
        """Dollars that the other attempts on this ledger need to stop safely: without them two processes that each kept
        their own reserve could spend one another's."""
        with localcontext(EXACT):
            return sum((self.book.cost(u) for a, u in state.stopping.items() if a != attempt), Decimal(0))

    def _sums(self, state: State) -> tuple[Decimal, Decimal]:
        with self._lock, localcontext(EXACT):
            if len(state.undone) != self._undone:  # something was taken back: add up again from the start
                self._undone, self._seen, self._accrued = len(state.undone), 0, Decimal(0)
            fresh = state.usages[self._seen :]
            self._accrued += self.book.cost(fresh)
            self._seen += len(fresh)
            reservations = dict(state.reservations)
            self._held = {
                id: self._held[id] if id in self._held else self.book.cost(held.intent.usages)
                for id, held in reservations.items()
            }
            return self._accrued, sum(self._held.values(), Decimal(0))
