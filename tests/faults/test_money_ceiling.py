"""The ceiling under chance: random prices, slow steps, failures, teachers that are asked again, all on a fake clock."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Generator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import stub_run

from shoestring import pipeline
from shoestring.cost.accounts import balances, journal
from shoestring.cost.budget import Budget
from shoestring.cost.ledger import Ledger
from shoestring.cost.prices import TOKEN, Price, PriceBook
from shoestring.lease import Lease
from shoestring.pipeline import Pipeline
from shoestring.records import Artifact, Checkpoint, Intent, PriceRef, StepReport, Usage, UserError
from shoestring.stages.context import Context, Overrun, Pace

TEACHER = "teacher:test/model/out"
TEXT = stub_run.recipe_text("evaluate base", "distill", "sft", "grpo", "evaluate score", rate="{rate}", more="{more}")


class Clock:
    """A clock that only `work` and `sleep` move, with the alarm that the system's clock would ring."""

    def __init__(self) -> None:
        self.now, self.until, self.rang = 1_800_000_000.0, math.inf, False
        self.rings = 0
        self.watchdog = self

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        if self.now + seconds > self.until:
            self.now, self.until, self.rang = max(self.now, self.until) + 0.001, math.inf, True
            self.rings += 1
            raise Overrun
        self.now += seconds

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def arm(self, until: float, now: float) -> None:
        self.until = until

    def disarm(self) -> None:
        self.until = math.inf

    def close(self) -> None:
        self.until = math.inf


class Chance(stub_run.World):
    """A run whose steps take what they like."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        super().__init__(folder)
        self.clock, self.rng = Clock(), rng
        self.failures = rng.randrange(3)
        self.seconds = {"sft": 600.0, "grpo": 900.0, "evaluate": 120.0, "distill": 300.0}
        self.stages = {
            "distill": self.teaches, "evaluate": self.grades,
            "sft": self.learns("sft", 30), "grpo": self.learns("grpo", 30),
        }  # fmt: skip
        self.teacher_usd = Decimal(str(round(rng.choice([1e-8, 1e-6, 1e-5]) * rng.uniform(1, 9), 12)))
        self.rate = rng.choice([0.1, 2.5, 31.4, 400.0]) * rng.uniform(0.5, 2)
        self.counts = {"retries": 0, "failures": 0}

    def took(self, usual: float) -> float:
        """Mostly as usual, now and then very slow."""
        return usual * self.rng.lognormvariate(0, 0.25) * (self.rng.uniform(3, 60) if self.rng.random() < 0.04 else 1)

    def fails(self) -> None:
        if self.failures and self.rng.random() < 0.05:
            self.failures -= 1
            self.counts["failures"] += 1
            self.clock.work(self.rng.uniform(0, 5))
            raise RuntimeError("the machine went away")

    def teaches(self, config: Any, inputs: Any, context: Context) -> Generator:
        """Each attempt is asked for, charged and posted before the next; some fail and are charged all the same."""
        pace, done = Pace(20.0), context.folder / "done"
        context.folder.mkdir(parents=True, exist_ok=True)
        for call in range(int(done.read_text()) if done.exists() else 0, 12):
            while True:
                most = context.intent(call, pace.upper())
                tokens = Usage(TEACHER, 2000, TOKEN, context.stage)
                if (yield Intent(most.stage, most.step, (*most.usages, tokens), "call")) == "stop":
                    return
                seconds = self.took(5)
                self.clock.work(seconds)
                pace.add(seconds)
                failed = self.rng.random() < 0.3
                self.counts["retries"] += failed
                yield Usage(TEACHER, self.rng.randrange(2001), TOKEN, context.stage, outcome="failed" if failed else "useful")
                yield StepReport(context.stage, call + 1, 12, seconds)
                if not failed:
                    break
            done.write_text(str(call + 1))
        (context.folder / "traces.jsonl").write_text("")
        yield Artifact("traces", context.folder / "traces.jsonl")

    def learns(self, name: str, total: int) -> stub_run.Stage:
        def save(context: Context, step: int) -> Checkpoint:
            path = context.checkpoints / f"step-{step}"
            path.mkdir(parents=True, exist_ok=True)
            header = json.dumps({"master/w": {}}).encode()
            (path / "state.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
            (path / "manifest.json").write_text("{}")
            return Checkpoint(path, name, step, context.recipe_hash)

        def run(config: Any, inputs: Any, context: Context) -> Generator:
            found = [int(p.parent.name[5:]) for p in context.checkpoints.glob("step-*/manifest.json")]
            step, pace = max(found, default=0), context.first(60.0)
            self.clock.work(2.0)  # the model is read
            while step < total:
                if (yield context.intent(step + 1, pace.upper())) == "stop":
                    yield save(context, step)
                    return
                self.fails()
                seconds = self.took(20)
                self.clock.work(seconds)
                pace.add(seconds)
                step += 1
                yield StepReport(name, step, total, seconds, 10, 10, loss=1.0 / step)
                if step % 3 == 0:
                    yield save(context, step)
            yield save(context, total)

        return run

    def grades(self, config: Any, inputs: Any, context: Context) -> Generator:
        """As the real one: chunk by chunk, and what was graded is the score."""
        pace, right = context.first(60.0), 0
        for chunk in range(6):
            if (yield context.intent(chunk, pace.upper(), "evaluation")) == "stop":
                break
            try:
                seconds = self.took(15)
                self.clock.work(seconds)
            except Overrun:
                break
            pace.add(seconds)
            right += 1
            yield StepReport(context.stage, chunk + 1, 6, seconds, reward=0.5)
        if right:
            stub_run.write_verdict(context)

    def book(self) -> PriceBook:
        book = PriceBook()
        ref = PriceRef("a test", "2026-01-01")
        book.add(TEACHER, Price(self.teacher_usd * Decimal(str(self.rate)), TOKEN, ref))
        book.add("storage:test/disk", Price(Decimal("0.1"), "gb-month", ref))
        book.add("egress:test/0-", Price(Decimal("0.09"), "gb", ref))
        return book

    def begin(self, budget: str, resume: bool, more: str) -> Pipeline:
        return self.pipeline(budget, resume, TEXT, rate=f"{self.rate:.6f}", more=more)


@pytest.fixture
def chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Chance]:
    def made(seed: int) -> Chance:
        stub = stub_run.make(tmp_path, monkeypatch)
        world = Chance(tmp_path, random.Random(f"ceiling/{seed}"))
        stub.stages, stub.seconds = world.stages, world.seconds
        resolve = pipeline.resolve

        def with_teacher(r: Any) -> Any:
            book, sku = resolve(r)
            for name, price in world.book()._prices.items():
                book.add(name, price)
            return book, sku

        monkeypatch.setattr(pipeline, "resolve", with_teacher)
        monkeypatch.setattr(os, "fsync", lambda fd: None)  # the disk is not what is tested here
        return world

    return made


@pytest.mark.parametrize("seed", range(30))
def test_no_run_ends_above_its_budget_or_without_a_score(chance: Callable[[int], Chance], seed: int) -> None:
    world = chance(seed)
    whole = 2400 * world.rate / 3600
    budget = f"{whole * world.rng.choice([0.02, 0.15, 0.3, 0.5, 0.8, 1.1, 1.6]):.6f}"
    more = ""
    if seed % 3 == 0:  # cheap enough beside the machine that the plan, which leaves it out, is right about the least
        gb = max(0.001, whole * 0.002)
        more = f'storage = {{ provider = "test", kind = "disk", gb = {gb:.4f} }}\negress = {{ provider = "test", gb = {gb / 10:.4f} }}'
    resume = False
    while True:
        try:
            ending = world.begin(budget, resume, more).run()
            break
        except RuntimeError:
            resume = True
            world.clock.sleep(world.rng.uniform(10, 5000))  # somebody sees it later: not leased, not billed
        except UserError as e:
            assert "too small" in str(e) and not world.folder.exists(), f"{e}; {world.counts}"
            assert Decimal(budget) < Decimal(str(0.2 * whole))
            return
    total = Decimal(json.loads((world.folder / "bill.json").read_text())["marginal"]["total"])
    assert total <= Decimal(budget)
    state = world.state()
    print(f"seed {seed}: {ending.status}, {total} of {budget}, {state['model_name']}, {world.counts}, rang {world.clock.rings}")
    assert ending.status in ("finished", "stopped") and (world.folder / "model").exists()
    assert list((world.folder / "verdicts").glob(f"*-{state['model_name']}.jsonl")), (state["stages"], world.counts)
    assert state["weights"] is None or (world.folder / state["weights"] / "manifest.json").exists()
    with Ledger.open(world.folder / "ledger.jsonl") as ledger:
        ledger.verify()
        assert not ledger.open_reservations() and len(ledger.state.leases) == state["attempts"]
        sums: dict[str, Decimal] = {}
        for (_, unit), value in balances(journal(ledger.state)).items():
            sums[unit] = sums.get(unit, Decimal(0)) + value
        assert not any(sums.values())
        assert sum(u.sku.startswith("egress:") for u in ledger.usages()) == bool(more)
    rows = [json.loads(line) for line in (world.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(r["usd_spent"] + r["usd_left"] == pytest.approx(float(budget)) for r in rows)
    assert all(r["usd_per_hour"] > 0 and r["usd_forecast_end"] >= r["usd_spent"] and 0 <= r["goodput"] <= 1 for r in rows)


def test_a_step_that_does_not_end_is_ended(chance: Callable[[int], Chance]) -> None:
    """It takes a thousand times what it said: the weights of the last checkpoint are scored, the step is discarded."""
    world = chance(1000)
    world.failures, world.teacher_usd, steps = 0, Decimal("0.0000001"), iter(range(10**6))
    world.took = lambda usual: usual * (1000 if usual == 20 and next(steps) == 7 else 1)  # type: ignore[method-assign]
    world.begin(f"{2400 * world.rate / 3600:.6f}", False, "").run()
    state = world.state()
    assert state["weights"] == "checkpoints/sft/step-6" and state["status"] == "stopped"
    bill = json.loads((world.folder / "bill.json").read_text())
    assert {"sft"} == {line["stage"] for line in bill["lines"] if line["outcome"] == "discarded"}
    assert Decimal(bill["marginal"]["total"]) <= Decimal(bill["budget"])
    assert (world.folder / "verdicts" / "04-sft.jsonl").exists()


SKU = "x/machine-second"


def work(folder: Path, who: str, stop: float, together: Any) -> None:
    """A run of short steps that keeps `stop` seconds for its end, and needs them."""
    book = PriceBook([(SKU, Price(Decimal(1), "second", PriceRef("a test", "2026-01-01")))])
    together.wait(30)
    ledger = Ledger.open(folder / "ledger.jsonl")
    started = time.time()
    ledger.begin(who, lease_start=started)
    lease = Lease(ledger, Budget(Decimal("3"), book, ledger), SKU, who, folder / who, started)
    step = 0
    while lease.ask(Intent("sft", step, (Usage(SKU, 0.08, "second", "sft"),)), stop):
        time.sleep(0.05)
        lease.settle(0.05)
        step += 1
    lease.settle()
    time.sleep(stop * 0.9)  # the last checkpoint and the score
    lease.close("budget")
    if not step:
        raise SystemExit(3)


def test_two_runs_on_one_budget_cannot_spend_one_anothers_reserve(tmp_path: Path) -> None:
    """Two real processes: each keeps what the other needs to stop. A dollar is a second."""
    context = multiprocessing.get_context("fork")
    together = context.Barrier(2)
    workers = [context.Process(target=work, args=(tmp_path, who, stop, together)) for who, stop in (("a", 0.4), ("b", 0.7))]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
        assert w.exitcode == 0
    with Ledger.open(tmp_path / "ledger.jsonl") as ledger:
        spent = sum(u.quantity for u in ledger.usages())
        assert 2.2 < spent <= 3.0 and not ledger.open_reservations()
        ledger.verify()
