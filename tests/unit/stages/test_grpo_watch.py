"""The watch over the reward: each sign fires on its own case and on no healthy one, once aloud, and after a resume too."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from shoestring.records import Problem, Trace
from shoestring.rewards._mixture import Mixture
from shoestring.stages import _grpo_watch as watching
from shoestring.stages._grpo_watch import Listening, Measures, Watch, measure, repetition, signs, together

STEPS = 16


def trace(tokens: list[int], nats: float = 1.0, score: float | None = 0.0, forced: int = 0) -> Trace:
    n = len(tokens)
    sampled = (True,) * (n - forced) + (False,) * forced
    return Trace("p", (1,), tuple(tokens), sampled, tuple(-nats if s else 0.0 for s in sampled), "stop", "m", score=score)


def course(**last: Any) -> list[Measures]:
    """A stage whose measures go evenly from the first to the last; beside what is given, a healthy one."""
    first = {"length": 20.0, "repetition": 0.02, "entropy": 1.0, "right": 0.2, "form": None}
    rng = random.Random(0)
    out = []
    for step in range(STEPS):
        at = step / (STEPS - 1)
        values: dict[str, Any] = {}
        for key, start in first.items():
            a, b = last[key] if isinstance(last.get(key), tuple) else (start, last.get(key, start))
            values[key] = None if a is None else (1 - at) * a + at * b + (0.02 * rng.uniform(-1, 1) if key == "right" else 0)
        out.append(Measures(step + 1, **values))
    return out


HACKS = {
    "length": {"length": 60.0},
    "repetition": {"repetition": 0.4, "right": 0.5},
    "form": {"form": (0.3, 0.9)},
    "entropy": {"entropy": 0.05, "right": 0.5},
}
HEALTHY = {
    "learning": {"right": 0.7},
    "thinking longer and better": {"length": 80.0, "right": 0.6},
    "form first, answers after": {"form": (0.3, 1.0), "right": 0.5},
    "solved": {"entropy": 0.02, "right": (0.5, 1.05)},
    "sharper": {"entropy": 0.4, "right": 0.4},
    "nothing learnt": {},
    "a little longer": {"length": 30.0},
    "short answers, half as long again": {"length": (3.0, 7.0)},
    "without form": {"form": (0.0, 0.05)},
    "repeats as the base did": {"repetition": (0.3, 0.4)},
}


@pytest.mark.parametrize("sign", HACKS)
def test_each_sign_fires_on_its_case_alone(sign: str) -> None:
    assert set(signs(course(**HACKS[sign]))) == {sign}
    assert set(HACKS) == set(watching.SIGNS)


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_course_is_silent_at_every_step(name: str) -> None:
    made = course(**HEALTHY[name])
    assert not any(signs(made[:n]) for n in range(len(made) + 1))


def test_nothing_is_said_of_a_short_stage() -> None:
    made = course(entropy=0.0, length=500.0, repetition=1.0)
    assert not signs(made[: 2 * watching.WINDOW - 1])


def test_measures_look_at_what_the_model_wrote() -> None:
    answers = [trace([1, 2, 3, 4] * 5, 0.5, 1.0, forced=8), trace(list(range(12)), 1.0, None)]
    m = measure(3, answers)
    wanted: list[Any] = [3, 12.0, pytest.approx((1 - 4 / 9) / 2), pytest.approx(0.75), 1.0, None]
    assert m == Measures(*wanted)
    mixed = measure(3, answers, {"grader": 0.2, "format": 0.6, "overlong": 0.2, "mine.py:f": 9.0})
    assert (mixed.right, mixed.form) == (0.2, pytest.approx(0.4))
    assert measure(3, answers, {"mine.py:f": 9.0}).right == 1.0
    assert measure(1, []) == Measures(1, 0.0, 0.0, 0.0, 0.0, None)


def test_repetition() -> None:
    assert repetition([7] * 20) == pytest.approx(1 - 1 / 17)
    assert repetition(list(range(20))) == repetition([7] * 7) == repetition([]) == 0.0


def test_a_sign_is_said_once_and_a_resumed_watch_goes_on(tmp_path: Path) -> None:
    def step(n: int) -> list[Trace]:
        return [trace([3, 1, 2] * (3 + 4 * n), 1.0)]

    whole = Watch(tmp_path / "a.jsonl", "grpo", 0)
    told = [whole.look(n, step(n)) for n in range(1, 13)]
    assert [("notice" in t, "watch" in t) for t in told] == [(n == 8, n >= 8) for n in range(1, 13)]
    assert told[7]["notice"].startswith("grpo: step 8: watch the reward: answers grow and are not right more often (length ")
    parts, again = [], Watch(tmp_path / "b.jsonl", "grpo", 0)
    for n in range(1, 11):
        parts.append(again.look(n, step(n)))
    again = Watch(tmp_path / "b.jsonl", "grpo", 6)  # steps 7 to 10 are done again
    parts = parts[:6] + [again.look(n, step(n)) for n in range(7, 13)]
    assert parts == told
    last = Watch(tmp_path / "b.jsonl", "grpo", 12)
    assert last.seen == whole.seen and last.said == {"length"}


def test_a_listening_mixture_pays_what_the_mixture_pays() -> None:
    problems = [Problem.make(f"{i} + 1", str(i + 1)) for i in range(3)]
    texts = ["Answer: 1", "Answer: 7", "three"]
    plain, heard = Mixture({"grader": 1.0, "format": 0.2}), Listening(Mixture({"grader": 1.0, "format": 0.2}))
    assert heard.score_many(texts, problems) == plain.score_many(texts, problems)
    assert heard.take() == {"grader": pytest.approx(1 / 3), "format": pytest.approx(2 / 3)} and heard.take() == {}
    assert heard.grade(texts[0], problems[0]) == plain.grade(texts[0], problems[0])
    heard.check(problems[0])
    assert watching.listening(None) is None


def test_what_is_said_by_several_is_said_line_by_line() -> None:
    made = together({"a": 1, "notice": "x"}, {"b": 2}, {"notice": "y"})
    assert made == {"a": 1, "b": 2, "notice": "x\ny"} and together({"a": 1}, {}) == {"a": 1}
