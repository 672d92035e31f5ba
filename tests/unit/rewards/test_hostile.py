"""Answers that are meant to hurt: every one ends in time, pays nothing, is counted, and the next one is graded as ever."""

import os
import time

import pytest

from shoestring import rewards
from shoestring.records import Problem
from shoestring.rewards import _pool

pytest.importorskip("math_verify", reason="needs math-verify: pip install 'shoestring[math]'")
math = rewards.get("math")

BOMBS = [
    "10^{10^{10}}", "10^(10^10)", "9**9**9**9", "factorial(10**9)", "1000000000!", "(x+1)^{100000}", "2^{2^{2^{2^{2^{2}}}}}",
    "\\sum_{i=1}^{10^{12}} i^i", "\\binom{10^9}{5\\cdot 10^8}", "\\prod_{n=1}^{1000000} (x+n)", "(" * 39 + "1" + ")" * 39,
    "\\frac{" * 30 + "1", "\\sqrt{" * 35 + "2" + "}" * 35, "__import__('os').system('touch /tmp/x')", "\x00", "\ud800", "9" * 1999,
]  # fmt: skip
LARGE = [
    "\\frac{1}{" * 10**5, "x^" * 3 * 10**5, "{" * 10**6, "\\text{" * 10**5, "1+" * 5 * 10**5, "9" * 10**6, "[" * 10**6,
]  # fmt: skip


def problem(gold: str = "x + 5") -> Problem:
    return Problem.make("q", gold, grader="math")


def test_bombs_end_in_time_and_are_counted(monkeypatch) -> None:
    pool = _pool.Pool("math", seconds=0.15, workers=1)
    monkeypatch.setattr(_pool, "shared", lambda kind: pool)
    start = time.monotonic()
    verdicts = math.score_many([f"Answer: {b}" for b in BOMBS], [problem()] * len(BOMBS))
    assert time.monotonic() - start < 60
    assert all(v.score == 0.0 for v in verdicts)
    counted = rewards.tally(verdicts)
    assert counted.get("timeout", 0) >= 3, counted
    assert sum(counted.values()) == len(BOMBS) and set(counted) <= {*rewards.STOPPED, "wrong", "unreadable", "no answer"}
    assert math.grade("Answer: 5 + x", problem()) == 1.0
    assert len(pool._workers) <= pool.size
    pool.close()


def test_a_megabyte_is_not_handed_on() -> None:
    start = time.process_time()
    verdicts = math.score_many([f"Answer: {b}" for b in LARGE], [problem()] * len(LARGE))
    assert {v.reason for v in verdicts} == {"hostile"} and time.process_time() - start < 10
    for gold in LARGE:
        with pytest.raises(ValueError, match="too long|is empty"):
            math.check(problem(gold))


def test_a_worker_that_will_not_stop_is_killed_and_replaced() -> None:
    pool = _pool.Pool("math", seconds=0.3, workers=1)
    try:
        assert pool.run([{"gold": "x", "answer": "x"}]) == [{"score": 1.0}]
        first = pool._workers[0].child.pid
        os.kill(first, 19)  # stopped: it can neither answer nor ring its own bell
        assert pool.run([{"gold": "x", "answer": "x"}]) == [{"stopped": "timeout"}]
        assert pool.killed == 1 and pool.restarted == 1
        pool._workers[0].child.kill()
        assert pool.run([{"gold": "x", "answer": "x"}])[0] in ({"stopped": "crashed"}, {"score": 1.0})
        assert pool.run([{"gold": "x", "answer": "y"}, {"gold": "2", "answer": "2"}]) == [{"score": 0.0}, {"score": 1.0}]
    finally:
        pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_a_pool_that_cannot_start_says_why() -> None:
    from shoestring.records import UserError

    with pytest.raises(UserError, match="nothing_such grader's worker did not start: .*_work_nothing_such"):
        _pool.Pool("nothing_such", workers=1).run([{}])


def test_grades_of_every_kind() -> None:
    """A small part of the slow test below, for its verdicts."""
    graded(100)


@pytest.mark.slow  # half a minute of algebra
def test_ten_thousand_grades_in_a_minute(monkeypatch, capsys) -> None:
    """Judged by the clock on a quiet machine; on a busy one by the processor seconds that it took, over the cores."""
    pool = _pool.Pool("math")
    monkeypatch.setattr(_pool, "shared", lambda kind: pool)
    started, wall = processor_seconds(), time.monotonic()
    graded(10_000)
    wall = time.monotonic() - wall
    pool.close()  # its workers are waited for here, and so counted
    used = processor_seconds() - started
    busy = os.getloadavg()[0] > pool.size + 0.5
    with capsys.disabled():
        print(f"\n10,000 mixed grades: {used:.1f} processor s on {pool.size} workers, {wall:.1f} s by the clock, busy: {busy}")
    assert used / pool.size < 60
    assert wall < 60 or busy


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    return sum(os.times()[:4])


def graded(n: int) -> None:
    """Grades n answers, no two alike: a fifth each plain numbers, fractions, polynomials, sets, intervals."""
    rows = []
    for i in range(n):
        k = i // 5 + 2
        rows.append([
            (f"{k:,}.50", f"{k}.5"), (f"\\frac{{{k}}}{{7}}", f"{2 * k}/14"), (f"(x+{k})^2", f"x^2+{2 * k}x+{k * k}"),
            (f"\\{{{k}, -{k}\\}}", f"-{k}, {k}"), (f"({k}, \\infty)", f"[{k}, \\infty)"),
        ][i % 5])  # fmt: skip
    verdicts = math.score_many([f"so \\boxed{{{a}}}" for _, a in rows], [problem(g) for g, _ in rows])
    assert [v.score for v in verdicts] == [float(i % 5 != 4) for i in range(n)]
