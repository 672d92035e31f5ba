"""kill -9 at 50 random instants of a process that only meters: no second is lost, none is posted twice, the books balance."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from shoestring import lease as leases
from shoestring.cost.accounts import balances, journal, lease_of
from shoestring.cost.beside import Beside
from shoestring.cost.budget import Budget
from shoestring.cost.ledger import Ledger
from shoestring.cost.prices import Price, PriceBook
from shoestring.cost.provisioned import MONTH_SECONDS
from shoestring.lease import Lease, recover
from shoestring.records import Intent, PriceRef, Usage

SKU, DISK, TEACHER = "x/machine-second", "storage:x/disk", "teacher:x/y/out"
REF = PriceRef("a test", "2026-01-01")
KILLS, BEAT = 50, 0.01
BESIDE = Beside(DISK, 100.0)


def book() -> PriceBook:
    return PriceBook([
        (SKU, Price(Decimal("0.001"), "second", REF)), (DISK, Price(Decimal("0.1"), "gb-month", REF)),
        (TEACHER, Price(Decimal("0.000001"), "token", REF)),
    ])  # fmt: skip


def meter(folder: Path, attempt: str, seed: int, ready: Any) -> None:
    """A run's metering without its work: recover what the last one left, then step after step until it is killed."""
    leases.BEAT = BEAT
    rng = random.Random(seed)
    ledger = Ledger.open(folder / "ledger.jsonl")
    recover(ledger, SKU, folder, BESIDE)
    started = time.time()
    ledger.begin(attempt, lease_start=started)
    lease = Lease(ledger, Budget(Decimal(1000), book(), ledger), SKU, attempt, folder, started, beside=BESIDE)
    lease.beat()
    ready.set()
    step = 0
    while True:
        lease.stage = rng.choice(["sft", "grpo"])
        usages = [Usage(SKU, 0.05, "second", lease.stage)]
        assert lease.ask(Intent(lease.stage, step, tuple(usages)), 1.0)
        began = time.time()
        time.sleep(rng.uniform(0, 0.006))
        if rng.random() < 0.3:
            ledger.post(Usage(TEACHER, 1.0, "token", lease.stage, attempt))
        lease.settle(time.time() - began, rng.choice(["useful", "replayed"]))
        if rng.random() < 0.3:
            time.sleep(rng.uniform(0, 0.03))  # idle: nothing is reserved
        step += 1


def test_killed_at_fifty_random_instants(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    rng = random.Random(50)
    died: dict[str, float] = {}
    before: list[bytes] = []
    for kill in range(KILLS):
        ready = context.Event()
        process = context.Process(target=meter, args=(tmp_path, f"a{kill}", kill, ready))
        process.start()
        if rng.random() < 0.9:  # else anywhere in its start, the recovery of the one before included
            assert ready.wait(30)
        time.sleep(rng.uniform(0, 0.1))
        assert process.pid and process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        died[f"a{kill}"] = time.time()
        raw = (tmp_path / "ledger.jsonl").read_bytes()
        lines = raw[: raw.rfind(b"\n") + 1].splitlines()
        assert lines[: len(before)] == before, "the ledger only grows"
        before = lines
    with Ledger.open(tmp_path / "ledger.jsonl") as ledger:
        recover(ledger, SKU, tmp_path, BESIDE)
        assert ledger.verify() >= len(before), "the chain holds, and attributed + idle = lease in every attempt"
        state = ledger.state
        assert recover(ledger, SKU, tmp_path, BESIDE) == [] and not ledger.open_reservations() and not state.stopping
        assert len(state.leases) == len(state.attempts) >= 0.8 * KILLS
        for attempt, (start, end) in state.leases.items():
            attributed, idle = lease_of(state, attempt)
            assert float(attributed + idle) == pytest.approx(end - start, abs=0.02)
            assert end == pytest.approx(died[attempt], abs=0.25), "up to the kill, give or take a heartbeat of a busy machine"
        outcomes = {u.outcome for u in state.usages}
        assert {"useful", "idle", "replayed", "failed"} <= outcomes
        seconds = sum(u.quantity for u in state.usages if u.sku == SKU)
        assert sum(u.quantity for u in state.usages if u.sku == DISK) == pytest.approx(100 * seconds / MONTH_SECONDS, rel=0.02)
        totals: dict[str, Decimal] = {}
        for (_, unit), value in balances(journal(state)).items():
            totals[unit] = totals.get(unit, Decimal(0)) + value
        assert totals == {"second": 0, "gb-month": 0, "token": 0}
