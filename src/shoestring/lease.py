"""The lease clock: which second belongs to what, and what a killed process leaves behind.

Seconds between two posts are split into the step's own (useful or replayed) and idle: the outcomes of an attempt sum
to its lease. A thread touches a heartbeat file every second, so that the end of a killed attempt is known.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from shoestring.cost.budget import Budget
from shoestring.cost.ledger import Ledger
from shoestring.records import Intent, Outcome, Usage, UserError

BEAT = 1.0
HEARTBEAT = "heartbeat"


class Lease:
    """Meters one attempt on one machine sku. Times are unix seconds; `clock` may be a fake one in tests."""

    def __init__(
        self, ledger: Ledger, budget: Budget, sku: str, attempt: str, run_dir: Path,
        started: float, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.ledger, self.budget, self.sku, self.attempt, self.clock = ledger, budget, sku, attempt, clock
        self.posted_until = started
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

    def _idle(self, now: float) -> list[Usage]:
        gap = now - self.posted_until
        return [self._usage(gap, now, "idle")] if gap > 0 else []

    def unposted(self) -> list[Usage]:
        return self._idle(self.clock())

    def spent(self) -> float:
        """Dollars up to this second."""
        return float(self.budget.accrued() + self.budget.book.cost(self.unposted()))

    def left(self) -> float:
        return float(self.budget.limit) - self.spent()

    def ask(self, intent: Intent, stop_seconds: float) -> bool:
        """Reserve the intent if it fits under the ceiling together with the cost of stopping safely afterwards."""
        self.settle()
        held = self.budget.reserve(
            intent, [self._usage(stop_seconds, self.clock(), "useful")], self.unposted(), self.attempt
        )
        self._held = held
        return held is not None

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
        if self._held is not None:
            self.ledger.release(self._held, usages)
            self._held = None
        elif gap > 0.02:
            for u in usages:
                self.ledger.post(u)
        else:
            return
        self.posted_until = now

    def close(self, reason: str) -> None:
        """Post what is left (outcome "failed" after an error) and end the attempt."""
        try:
            if reason == "failed":
                self.settle(self.clock() - self.posted_until, "failed")
            else:
                self.settle()
        finally:
            self._stop.set()
            if self._thread is not None:
                self._thread.join()
        self.ledger.end(self.attempt, reason)


def recover(ledger: Ledger, sku: str, run_dir: Path) -> list[Usage]:
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
        posted = [u for u in ledger.usages() if u.attempt == attempt and u.unit == "second"]
        until = max([begun, *(u.end for u in posted)])
        gap = max(last, until) - begun - sum(u.quantity for u in posted) if begun else 0.0
        stage = posted[-1].stage if posted else "start"
        if gap > 0.01:
            usage = Usage(sku, gap, "second", stage, attempt, max(last, until) - gap, max(last, until), "failed")
            ledger.post(usage)
            lost.append(usage)
        ledger.end(attempt, "killed")
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
