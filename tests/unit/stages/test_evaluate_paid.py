"""Dollars a right answer at a server: the same whether the evaluation ran through, was stopped, or was killed and resumed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from shoestring.generate.teacher import Question, Reply, Spent
from shoestring.records import Intent, StepReport, Usage, UserError
from shoestring.stages import _evaluate_asks as asks
from shoestring.stages import _evaluate_bench, evaluate
from shoestring.stages.context import read_lines

PRICE = {"in": 2.0, "cached": 1.0, "out": 5.0}


class Killed(BaseException):
    """Nobody catches it, and nothing is posted after it."""


class Scripted:
    """A server's replies, of different lengths; every third request fails once and is paid for that too."""

    model, width, retries = "m", 4, 2

    def __init__(self, world: World, spent: Callable[[Spent], None]) -> None:
        self.world, self.spent = world, spent
        self.late: list[tuple[int, Reply]] = []

    def once(self, questions: Sequence[Question]) -> Generator[tuple[int, Reply], None, None]:
        left = list(range(len(questions)))
        try:
            for i, q in enumerate(questions):
                n = int(q.text.split()[2])
                if self.world.asked.total() == self.world.dies_at:
                    raise Killed
                self.world.asked[n] += 1
                self.world.seconds += 3 + n
                failed = n % 3 == 0 and self.world.asked[n] == 1
                spent = Spent(q.key(self.model), 0, {"in": 7 + n, "cached": 2, "out": 1 + n}, error="HTTP 500" if failed else "")
                self.spent(spent)
                left.remove(i)
                if n in self.world.broken:
                    yield i, Reply("", reason="error", attempts=(spent,), error="it broke off", model=self.model)
                elif failed:
                    yield i, Reply("", reason="error", attempts=(spent,), error="HTTP 500", again=True, model=self.model)
                else:
                    yield i, Reply(f"Answer: {2 * n}", usage=spent.counts, attempts=(spent,), model=self.model)
        finally:  # what is in flight is ended, and has cost something; one answer was whole by then
            for i in left[:1]:
                n = int(questions[i].text.split()[2])
                if n % 3 and n not in self.world.broken and self.world.dies_at < 0:
                    left.remove(i)
                    self.world.asked[n] += 1
                    spent = Spent(questions[i].key(self.model), 0, {"in": 7 + n, "cached": 2, "out": 1 + n})
                    self.spent(spent)
                    self.late = [(i, Reply(f"Answer: {2 * n}", usage=spent.counts, attempts=(spent,), model=self.model))]
            for i in left:
                self.spent(Spent(questions[i].key(self.model), 0, {"in": 7, "out": 1}, error="cancelled"))


class World:
    """What a pipeline would bill: posted tokens, and seconds where there is no price a token."""

    def __init__(self, paid: bool) -> None:
        self.paid, self.posted, self.seconds, self.asked, self.broken = paid, 0.0, 0.0, Counter[int](), set[int]()
        self.dies_at = -1

    def accrued(self) -> float:
        return self.posted if self.paid else self.seconds

    def cost(self, usages: Iterable[Usage]) -> float:
        return sum(u.quantity * PRICE[u.sku.rpartition("/")[2]] for u in usages)

    def drive(self, events: Any, stop: int = 10**9, kill: int = 10**9, lose: int = 10**9) -> int:
        """Reports seen; from the step `stop` on the answer is "stop"; killed at the report `kill`, or before the `lose`th useful
        usage is posted."""
        reply, seen, useful = None, 0, 0
        while True:
            try:
                event = events.send(reply)
            except StopIteration:
                return seen
            reply = None
            if isinstance(event, Usage):
                useful += event.outcome == "useful"
                if useful >= lose:
                    events.close()
                    return seen
                self.posted += self.cost([event])
            if isinstance(event, Intent):
                reply = "stop" if event.step > stop else "go"
            seen += isinstance(event, StepReport)
            if seen >= kill:
                events.close()
                return seen


@pytest.fixture
def go(make_context: Any, tmp_path: Path, monkeypatch: Any) -> Callable[..., Any]:
    """go(where, world, **how to end) → the rows, [] before the end."""
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps({"question": f"what is {i} and {i}", "answer": f"#### {2 * i}"}) + "\n" for i in range(12)))
    monkeypatch.setattr(asks, "SLOTS", 6)

    def run(where: str, world: World, **end: int) -> list[dict[str, Any]]:
        monkeypatch.setattr(_evaluate_bench, "_teachers", lambda c, x, t, spent: lambda setting: Scripted(world, spent))
        config = evaluate.Config(
            benchmarks=["gsm8k"], data={"gsm8k": str(path)}, endpoint="http://127.0.0.1:9/v1", endpoint_model="m",
            endpoint_price="own/m" if world.paid else "machine",
        )  # fmt: skip
        world.drive(evaluate.run(config, {}, make_context(tmp_path / where, "score", accrued=world.accrued, cost=world.cost)), **end)
        found = (tmp_path / where / asks.FOLDER).glob("*.jsonl")
        return [r for p in found for r in read_lines(p) if "problem_id" in r]

    return run


def by_problem(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {r["problem_id"]: r["usd"] for r in rows}


ENDS = [{"kill": 3}, {"kill": 8}, {"kill": 13}, {"stop": 3}, {"stop": 8}, {"lose": 4}, {"lose": 8}, {"lose": 21}]


@pytest.mark.parametrize("end", ENDS)
def test_a_resumed_evaluation_counts_every_cached_reply(go: Any, end: dict[str, int]) -> None:
    whole, cut = World(True), World(True)
    expected = by_problem(go("whole", whole))
    assert len(expected) == 12 and sum(expected.values()) == pytest.approx(whole.posted)
    go("cut", cut, **end)
    begun = cut.asked.total()
    got = by_problem(go("cut", cut))
    assert cut.asked.total() <= whole.asked.total() + (begun < whole.asked.total()), "cached replies are not asked again"
    assert got == pytest.approx(expected)
    if "lose" not in end:  # there the kill's open reservation is on the bill
        assert cut.posted >= sum(got.values()) - 1e-9


def test_twice_interrupted(go: Any) -> None:
    expected = by_problem(go("whole", World(True)))
    cut = World(True)
    go("cut", cut, stop=3)
    go("cut", cut, kill=2)
    assert by_problem(go("cut", cut)) == pytest.approx(expected)
    assert cut.posted > sum(expected.values()), "what was cancelled is in the bill, and is no cost of the answers"


@pytest.mark.parametrize("dies_at", [2, 4, 7, 13])
def test_seconds_of_a_server_on_this_machine(go: Any, dies_at: int) -> None:
    """Without a price a token there is a report a batch only: a kill within one loses no reply's seconds."""
    whole, cut = World(False), World(False)
    expected = go("whole", whole)
    assert sum(by_problem(expected).values()) == pytest.approx(whole.seconds)
    cut.dies_at = dies_at
    with pytest.raises(Killed):
        go("cut", cut)
    cut.dies_at = -1
    rows = go("cut", cut)
    assert cut.asked == whole.asked, "cached replies are not asked again"
    assert by_problem(rows) == pytest.approx(by_problem(expected))


def test_a_failure_that_was_paid_for_is_asked_again(go: Any) -> None:
    """The evaluation ends at it; going on asks that one anew instead of failing on its cached failure for ever."""
    world = World(True)
    world.broken = {4}
    with pytest.raises(UserError, match="it broke off"):
        go("a", world)
    before = world.asked.copy()
    world.broken = set()
    rows = go("a", world)
    assert len(rows) == 12 and world.asked[4] == before[4] + 1 and world.asked[1] == before[1]
    assert sum(by_problem(rows).values()) == pytest.approx(world.posted)
