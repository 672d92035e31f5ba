"""The lease clock: which second belongs to what, and what a killed process leaves behind.

Seconds between two posts are split into the step's own (useful or replayed) and idle: the outcomes of an attempt sum
to its lease. Storage that is provisioned as long as the lease runs is posted in the same lines as its seconds. A thread
touches a heartbeat file every second, so that the end of a killed attempt is known.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from shoestring.cost.accounts import is_lease
from shoestring.cost.beside import Beside
from shoestring.cost.budget import Budget
from shoestring.cost.ledger import Ledger
from shoestring.records import Intent, Outcome, Usage, UserError

BEAT = 1.0
NOTHING = Beside()
DUST = 1e-4  # seconds that are not worth a line of their own at the end
HEARTBEAT = "heartbeat"


class Lease:
    """Meters one attempt on one machine sku. Times are unix seconds; `clock` may be a fake one in tests."""

    def __init__(
        self, ledger: Ledger, budget: Budget, sku: str, attempt: str, run_dir: Path,
        started: float, clock: Callable[[], float] = time.time, beside: Beside = NOTHING,
    ) -> None:  # fmt: skip
        self.ledger, self.budget, self.sku, self.attempt, self.clock = ledger, budget, sku, attempt, clock
        self.beside = beside
        self.posted_until = started
        self.paid = self.useful = 0.0  # seconds of the run so far, over all attempts
        for u in ledger.usages():
            self._count(u)
        self.stage = "start"
        self._held: str | None = None
        self._beat = run_dir / HEARTBEAT
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self) -> None:
        """Start the heartbeat."""

        def run() -> None:
            while not self._stop.is_set():
                try:
                    part = self._beat.with_name(HEARTBEAT + ".part")
                    part.write_text(repr(time.time()))
                    os.replace(part, self._beat)  # a kill between emptying and writing would lose the last one
                except OSError:
                    return  # the ledger will say what is wrong with the disk
                self._stop.wait(BEAT)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def _usage(self, seconds: float, end: float, outcome: Outcome) -> Usage:
        return Usage(self.sku, seconds, "second", self.stage, self.attempt, end - seconds, end, outcome)

    def _count(self, usage: Usage) -> None:
        if is_lease(usage):
            self.paid += usage.quantity
            self.useful += usage.quantity if usage.outcome == "useful" else 0.0

    def goodput(self) -> float:
        """Useful step seconds over paid seconds, of the whole run so far: 0 to 1."""
        paid = self.paid + max(0.0, self.clock() - self.posted_until)
        return self.useful / paid if paid > 0 else 1.0

    def _full(self, usages: Iterable[Usage]) -> list[Usage]:
        """These seconds, each followed by the storage that was provisioned meanwhile."""
        return [v for u in usages for v in ((u, *self.beside.during(u)) if is_lease(u) else (u,))]

    def unposted(self) -> list[Usage]:
        now = self.clock()
        gap = now - self.posted_until
        return self._full([self._usage(gap, now, "idle")]) if gap > 0 else []

    def usd_per_second(self) -> Decimal:
        """Dollars of one second of this lease, storage included."""
        return self.budget.book.cost(self._full([self._usage(1.0, self.clock(), "useful")]))

    def _stop_cost(self, seconds: float) -> list[Usage]:
        now = self.clock()
        left = () if self.has_left() else self.beside.out(self.stage, self.attempt, now)
        return [*self._full([self._usage(seconds, now, "useful")]), *left]

    def has_left(self) -> bool:
        """Whether the result's egress is posted: it leaves once a run."""
        leaving = {sku for sku, _ in self.beside.leaving}
        return bool(leaving) and any(u.sku in leaving for u in self.ledger.state.usages)

    def leave(self) -> None:
        """Post the result's egress, unless an earlier attempt did."""
        if not self.has_left():
            for u in self.beside.out(self.stage, self.attempt, self.clock()):
                self.ledger.post(u)

    def spent(self) -> float:
        """Dollars up to this second."""
        return float(self.budget.accrued() + self.budget.book.cost(self.unposted()))

    def left(self) -> float:
        return float(self.budget.limit) - self.spent()

    def ask(self, intent: Intent, stop_seconds: float) -> bool:
        """Reserve the intent if it fits under the ceiling together with the cost of stopping safely afterwards."""
        self.settle()
        whole = replace(intent, usages=tuple(self._full(intent.usages)))
        stop = self._stop_cost(stop_seconds)
        held = self.budget.reserve(whole, stop, self.unposted(), self.attempt, self.clock())
        self._held = held
        return held is not None

    def fits(self, intent: Intent, stop_seconds: float) -> bool:
        """Whether `ask` would reserve it now. A look only: it changes nothing."""
        whole = replace(intent, usages=tuple(self._full(intent.usages)))
        return self.budget.allows(whole, self._stop_cost(stop_seconds), self.unposted())

    def deadline(self, stop_seconds: float) -> float:
        """The unix second at which a step that does not end would eat into the cost of stopping safely."""
        spare = self.budget.spare(self._stop_cost(stop_seconds), self.attempt)
        return self.posted_until + float(spare / self.usd_per_second())

    def settle(self, seconds: float = 0.0, outcome: Outcome = "useful") -> None:
        """Post everything since the last post: `seconds` with `outcome`, the rest idle; close the reservation."""
        now = self.clock()
        gap = now - self.posted_until
        own = min(max(0.0, seconds), max(0.0, gap))
        usages: list[Usage] = []
        if gap - own > 0:
            usages.append(self._usage(gap - own, now - own, "idle"))
        if own > 0:
            usages.append(self._usage(own, now, outcome))
        self._post(usages, now, 0.02)

    def _post(self, usages: list[Usage], now: float, least: float) -> None:
        """`least`: a gap up to which nothing is posted where no reservation is open; it waits for the next post."""
        full = self._full(usages)
        if self._held is not None:
            self.ledger.release(self._held, full, self.clock())
            self._held = None
        elif now - self.posted_until > least:
            for u in full:
                self.ledger.post(u)
        else:
            return
        for u in usages:
            self._count(u)
        self.posted_until = now

    def close(self, reason: str) -> None:
        """Post what is left (outcome "failed" after an error) and end the attempt."""
        try:
            now = self.clock()
            outcome: Outcome = "failed" if reason == "failed" else "idle"
            gap = now - self.posted_until
            self._post([self._usage(gap, now, outcome)] if gap > 0 else [], now, DUST)
        finally:
            self._stop.set()
            if self._thread is not None:
                self._thread.join()
        self.ledger.end(self.attempt, reason, lease_end=self.posted_until)


def recover(ledger: Ledger, sku: str, run_dir: Path, beside: Beside = NOTHING) -> list[Usage]:
    """Bill what dead attempts used and never posted: up to their last heartbeat, outcome "failed"."""
    try:
        last = float((run_dir / HEARTBEAT).read_text())
    except (OSError, ValueError):
        last = 0.0
    state = ledger.refresh()
    open_attempts = [a for a in state.attempts if a not in state.ended]
    newest = max((u.end for u in state.usages), default=0.0)
    if not open_attempts:
        return []
    lost: list[Usage] = list(ledger.recover(max(last, newest)))
    for attempt in open_attempts:
        begun = float(state.attempts[attempt].get("lease_start", 0.0))
        posted = [u for u in ledger.usages() if u.attempt == attempt and is_lease(u)]
        until = max([begun, *(u.end for u in posted)])
        gap = max(last, until) - begun - sum(u.quantity for u in posted) if begun else 0.0
        stage = posted[-1].stage if posted else "start"
        if gap > DUST:
            usage = Usage(sku, gap, "second", stage, attempt, max(last, until) - gap, max(last, until), "failed")
            for u in (usage, *beside.during(usage)):
                ledger.post(u)
                lost.append(u)
        ledger.end(attempt, "killed", lease_end=max(last, until) if begun else None)
    return lost


def reopen(state: dict[str, Any], run_dir: Path, budget: Decimal) -> None:
    """A run that stopped at its budget goes on from that stage under a bigger one; what was scored then is redone."""
    reached = state["reached"]
    if reached is None:
        return
    if budget <= Decimal(reached):
        raise UserError(
            f"{run_dir}: this run has reached its budget of {reached} USD; "
            "give a bigger one to go on, as in --set budget='1 USD'"
        )
    rows = state["stages"]
    at = next((i for i, r in enumerate(rows) if r["status"] in ("stopped", "skipped")), len(rows))
    for i, row in enumerate(rows[at:], at):
        row["status"] = "waiting"
        if i > at:  # the stage that stopped keeps what it had done
            shutil.rmtree(run_dir / "stages" / row["name"], ignore_errors=True)
        for old in (run_dir / "verdicts").glob(f"{i:02d}-*"):
            old.unlink()
    made = [r for r in rows[:at] if r.get("weights")]
    state["weights"] = made[-1]["weights"] if made else None
    state["model_name"] = made[-1]["name"] if made else "base"
    state["reached"] = None


def forget_beat(run_dir: Path) -> None:
    """A finished run keeps no heartbeat."""
    with contextlib.suppress(OSError):
        os.unlink(run_dir / HEARTBEAT)
