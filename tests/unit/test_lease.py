"""The lease clock: whatever the schedule of steps, reservations and kills, every second is posted once."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.cost.budget import Budget
from shoestring.cost.ledger import Ledger
from shoestring.cost.prices import Price, PriceBook
from shoestring.lease import HEARTBEAT, Lease, forget_beat, recover, reopen
from shoestring.records import Intent, PriceRef, Usage, UserError

SKU = "this/machine-second"
BOOK = PriceBook([(SKU, Price(Decimal(1), "second", PriceRef("test", "2026-01-01")))])  # a dollar is a second
NOW = 1_800_000_000.0


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def make(folder: Path, limit: float = 1e6, attempt: str = "a1", clock: Clock | None = None) -> tuple[Lease, Clock]:
    clock = clock or Clock()
    ledger = Ledger.open(folder / "ledger.jsonl")
    ledger.begin(attempt, lease_start=clock.now)
    return Lease(ledger, Budget(Decimal(str(limit)), BOOK, ledger), SKU, attempt, folder, clock.now, clock), clock


def intent(seconds: float) -> Intent:
    return Intent("sft", 1, (Usage(SKU, seconds, "second", "sft"),))


def by_outcome(ledger: Ledger) -> dict[str, float]:
    sums: dict[str, float] = {}
    for u in ledger.usages():
        sums[u.outcome] = sums.get(u.outcome, 0.0) + u.quantity
    return sums


seconds = st.floats(0, 500, allow_nan=False)
steps = st.lists(
    st.tuples(
        st.booleans(),  # ask before it
        seconds,  # pause before the step
        seconds,  # the step
        st.floats(-1, 3),  # what the stage says of it, in terms of the truth
        st.sampled_from(["useful", "replayed"]),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(steps, seconds)
def test_outcomes_sum_to_the_lease(schedule: list[tuple[bool, float, float, float, Any]], rest: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        lease, clock = make(Path(name))
        useful = 0.0
        for asked, pause, step, claim, outcome in schedule:
            clock.now += pause
            if asked:
                assert lease.ask(intent(step), 1.0)
            clock.now += step
            lease.settle(step * claim, outcome)
            useful += step * max(0.0, claim)
        clock.now += rest
        lease.close("done")
        sums = by_outcome(lease.ledger)
        assert sum(sums.values()) == pytest.approx(clock.now - NOW, abs=1e-6 * len(schedule) + 0.03)
        assert sums.get("useful", 0) + sums.get("replayed", 0) <= useful + 1e-6, "a step is never billed as longer"
        assert not lease.ledger.open_reservations()
        ends = sorted((u.start, u.end) for u in lease.ledger.usages())
        for (_, end), (start, _) in zip(ends, ends[1:], strict=False):
            assert start >= end - 1e-5, "no second is posted twice"
        lease.ledger.close()


@settings(max_examples=60, deadline=None)
@given(steps, seconds, st.floats(0, 1.0), st.booleans())
def test_a_kill_loses_at_most_a_beat(
    schedule: list[tuple[bool, float, float, float, Any]], rest: float, beat: float, inside: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lease, clock = make(folder)
        for asked, pause, step, claim, outcome in schedule:
            clock.now += pause
            if asked:
                lease.ask(intent(step), 1.0)
            clock.now += step
            lease.settle(step * claim, outcome)
        if inside:
            lease.ask(intent(rest / 2), 1.0)  # a step that took longer than it said
        clock.now += rest
        (folder / HEARTBEAT).write_text(repr(clock.now - beat))
        before = [u for u in lease.ledger.usages()]
        lease.ledger.close()

        again = Ledger.open(folder / "ledger.jsonl")
        begun = dict(again.state.attempts["a1"])
        assert begun["process"]["pid"] == os.getpid()
        again.state.attempts["a1"] = begun | {"process": {"pid": 2**22 + 7}}  # it is dead
        lost = recover(again, SKU, folder)
        after = again.usages()
        assert after[: len(before)] == before
        assert {u.outcome for u in lost} <= {"failed"}
        total = sum(u.quantity for u in after)
        assert clock.now - NOW - beat - 0.03 <= total <= clock.now - NOW + 0.03
        assert not again.open_reservations() and again.state.ended["a1"] == "killed"
        assert recover(again, SKU, folder) == [], "once"
        again.close()


@pytest.mark.parametrize("content", ["", "x", None])
def test_recover_without_a_heartbeat(tmp_path: Path, content: str | None) -> None:
    """Then the last post is the last that is known."""
    lease, clock = make(tmp_path)
    clock.now += 10
    lease.settle(4.0)
    clock.now += 50
    lease.ledger.close()
    if content is not None:
        (tmp_path / HEARTBEAT).write_text(content)
    with Ledger.open(tmp_path / "ledger.jsonl") as again:
        assert recover(again, SKU, tmp_path) == []
        assert sum(u.quantity for u in again.usages()) == pytest.approx(10)
        assert again.state.ended == {"a1": "killed"}


def test_an_old_heartbeat_does_not_bill_a_new_attempt(tmp_path: Path) -> None:
    (tmp_path / HEARTBEAT).write_text(repr(NOW - 500))
    lease, clock = make(tmp_path)
    lease.ledger.close()
    with Ledger.open(tmp_path / "ledger.jsonl") as again:
        assert recover(again, SKU, tmp_path) == []


def test_the_ceiling_counts_what_was_not_posted_yet(tmp_path: Path) -> None:
    lease, clock = make(tmp_path, limit=100)
    clock.now += 30
    assert lease.spent() == pytest.approx(30) and lease.left() == pytest.approx(70)
    assert not lease.ask(intent(50), 20.01)
    assert lease.ask(intent(50), 19.99)
    clock.now += 60  # longer than it said
    lease.settle(60, "useful")
    assert lease.spent() == pytest.approx(90)
    assert not lease.ask(intent(5), 6)
    lease.close("budget")
    assert by_outcome(lease.ledger) == {"idle": pytest.approx(30), "useful": pytest.approx(60)}


def test_an_error_is_billed_as_failed(tmp_path: Path) -> None:
    lease, clock = make(tmp_path)
    clock.now += 5
    lease.ask(intent(9), 1)
    clock.now += 7
    lease.close("failed")
    assert by_outcome(lease.ledger) == {"idle": pytest.approx(5), "failed": pytest.approx(7)}
    assert not lease.ledger.open_reservations()


def test_small_gaps_wait(tmp_path: Path) -> None:
    """A line a millisecond would be a ledger of nothing; the time is posted with the next line."""
    lease, clock = make(tmp_path)
    for _ in range(10):
        clock.now += 0.01
        lease.settle()
    assert len(lease.ledger.usages()) < 5
    clock.now += 1
    lease.close("done")
    assert sum(by_outcome(lease.ledger).values()) == pytest.approx(1.1, abs=0.03)


def test_the_heartbeat_beats_and_goes(tmp_path: Path) -> None:
    lease, _ = make(tmp_path)
    lease.beat()
    until = time.monotonic() + 5
    while not (tmp_path / HEARTBEAT).exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert abs(float((tmp_path / HEARTBEAT).read_text()) - time.time()) < 5
    lease.close("done")
    forget_beat(tmp_path)
    forget_beat(tmp_path)
    assert not (tmp_path / HEARTBEAT).exists()


def rows(*status: str) -> list[dict[str, Any]]:
    names = ["base", "sft", "score-sft", "grpo", "score"]
    return [{"name": n, "status": s} for n, s in zip(names, status, strict=True)]


@pytest.fixture
def stopped(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def make_state(*status: str) -> dict[str, Any]:
        state = {"reached": "0.05", "stages": rows(*status), "weights": "checkpoints/sft/step-3", "model_name": "sft"}
        for i, row in enumerate(state["stages"]):
            (tmp_path / "stages" / row["name"]).mkdir(parents=True)
            (tmp_path / "verdicts").mkdir(exist_ok=True)
            (tmp_path / "verdicts" / f"{i:02d}-x.jsonl").write_text("")
        return state

    return make_state


def test_a_bigger_budget_reopens_the_stage_that_stopped(tmp_path: Path, stopped: Callable[..., dict[str, Any]]) -> None:
    state = stopped("finished", "stopped", "skipped", "skipped", "finished")
    reopen(state, tmp_path, Decimal("0.06"))
    assert [r["status"] for r in state["stages"]] == ["finished"] + ["waiting"] * 4
    assert state["weights"] is None and state["model_name"] == "base" and state["reached"] is None
    kept = sorted(p.name for p in (tmp_path / "stages").iterdir())
    assert kept == ["base", "sft"], "its own work stands; scores of weights that will move do not"
    assert [p.name for p in (tmp_path / "verdicts").iterdir()] == ["00-x.jsonl"]


def test_reopening_goes_back_to_the_weights_before(tmp_path: Path, stopped: Callable[..., dict[str, Any]]) -> None:
    state = stopped("finished", "finished", "finished", "stopped", "finished")
    state["stages"][1]["weights"] = "checkpoints/sft/step-9"
    state["weights"], state["model_name"] = "checkpoints/grpo/step-2", "grpo"
    reopen(state, tmp_path, Decimal("1"))
    assert (state["weights"], state["model_name"]) == ("checkpoints/sft/step-9", "sft")
    assert [r["status"] for r in state["stages"]] == ["finished"] * 3 + ["waiting"] * 2


def test_the_same_budget_does_not_reopen(tmp_path: Path, stopped: Callable[..., dict[str, Any]]) -> None:
    state = stopped("finished", "stopped", "skipped", "skipped", "finished")
    for budget in ("0.05", "0.04"):
        with pytest.raises(UserError, match="has reached its budget of 0.05 USD"):
            reopen(state, tmp_path, Decimal(budget))
    assert state["stages"][1]["status"] == "stopped"
    state["reached"] = None
    reopen(state, tmp_path, Decimal("0.05"))
    assert state["stages"][1]["status"] == "stopped", "an interrupted run is resumed as it stands"
