"""Rollouts of GRPO's steps: made ahead of the update or not, groups replaced by others, long answers, and a thread that ends."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shoestring.records import Trace
from shoestring.stages.grpo import Config

BASE = Config(steps=4, prompts=3, group=4, lr=5e-3, warmup=0, max_new=6, rows=64)
KEYS: dict[str, dict[str, Any]] = {
    "adapter": {"lora": 4, "kl": 0.1, "off_policy": 1, "old": "trainer", "importance": "truncated"},
    "ahead": {"variant": "dapo", "off_policy": 2, "old": "trainer", "importance": "masked", "importance_cap": 1.05},
    "ppo": {"variant": "ppo", "kl": 0.05, "off_policy": 1, "updates": 2},
}


def answer(n: int, score: float | None = 1.0) -> Trace:
    return Trace("p", (1,), (2,) * n, (True,) * n, (-1.0,) * n, "stop", "m", score=score)


def test_groups_without_variance_are_replaced_counted_and_priced(go: Any, reports: Any) -> None:
    plain, filled = reports(go("a")), reports(go("b", resample=3))
    assert any(r.extra["groups_without_variance"] for r in plain) and not any("draws" in r.extra for r in plain)
    more = [r for r in filled if "draws" in r.extra]
    assert more
    for r in filled:
        varied = r.extra["groups"] - r.extra["groups_without_variance"]
        assert varied == 3 or r.extra["draws"] == 4
        assert sum(r.extra["verdicts"].values()) == 4 * r.extra["groups"]
        assert (r.extra["usd_without_variance"] > 0) == (r.extra["groups_without_variance"] > 0)


@pytest.mark.parametrize("keys", [{}, {"curriculum": "moving", "replay": 0.3}, {"off_policy": 1}], ids=["plain", "moving", "ahead"])
def test_what_a_step_has_asked_it_does_not_ask_again(
    keys: dict[str, Any], go: Any, same: Any, reports: Any, tmp_path: Path
) -> None:  # fmt: skip
    """Resampled groups are of other problems (18 in the pool, 12 asked at most), in a run that was cut off as in one that was not."""
    from shoestring.stages.context import read_lines

    whole = reports(go("whole", resample=3, **keys))
    assert any("draws" in r.extra for r in whole), "nothing was drawn again"

    def asked(where: str) -> list[list[str]]:
        steps = sorted((tmp_path / where / "work" / "grpo").glob("step-*.jsonl"))
        return [[r["problem_id"] for r in read_lines(p)][:: BASE.group] for p in steps]

    for ids in asked("whole"):
        assert len(set(ids)) == len(ids)
    for until in (1, 2, None):
        go("parts", until, resample=3, **keys)
    assert asked("parts") == asked("whole") and same("whole", "parts")


def test_a_failed_update_leaves_no_thread(go: Any, same: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the update raised comes out as it was raised; the rollouts beside it end at their next token, in their thread; and
    the stage goes on from where it was."""
    from shoestring.generate.engine import Session
    from shoestring.stages._grpo_update import Learner
    from shoestring.stages.context import Overrun

    go("whole", **KEYS["ahead"], often=True)
    inner, learn = Session.step, Learner.learn
    steps: list[str] = []

    def slow(session: Any) -> Any:
        if threading.current_thread().name == "rollouts-ahead":
            steps.append("step")
            time.sleep(0.02)
        return inner(session)

    def running() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name == "rollouts-ahead"]

    for raised in (ValueError("broken"), Overrun(), KeyboardInterrupt()):

        def fail(learner: Any, groups: Any, raised: BaseException = raised) -> Any:
            if learner.trainer.step < 1:
                return learn(learner, groups)
            while len(steps) < 2:  # the rollouts are under way
                time.sleep(0.001)
            assert running()
            raise raised

        with monkeypatch.context() as m:
            m.setattr(Session, "step", slow)
            m.setattr(Learner, "learn", fail)
            with pytest.raises(type(raised)) as found:
                go("broken", **KEYS["ahead"], often=True)
        assert found.value is raised and found.value.__cause__ is None
        assert not running(), "a thread outlived its stage"
        steps.clear()
    go("broken", **KEYS["ahead"], often=True)
    assert same("whole", "broken")


def test_failed_rollouts_end_the_stage_with_their_own_error(go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoestring.generate.engine import Session

    inner, raised = Session.step, RuntimeError("the engine broke")

    def broken(session: Any) -> Any:
        if threading.current_thread().name == "rollouts-ahead":
            raise raised
        return inner(session)

    monkeypatch.setattr(Session, "step", broken)
    with pytest.raises(RuntimeError) as found:
        go("a", off_policy=1)
    assert found.value is raised
    assert not [t for t in threading.enumerate() if t.name == "rollouts-ahead"]


def test_a_long_answer_pays() -> None:
    from shoestring.stages._grpo_ahead import shaped

    made, long = shaped([answer(6), answer(8), answer(10), answer(9, None)], 10, 4)
    assert [t.score for t in made] == [1.0, 0.5, 0.0, None] and long == 3


@pytest.mark.parametrize("variant", ["ppo", "bnpo"])
def test_whose_long_answers_pay(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all answers are right a group teaches nothing, and stays as it is; a critic learns from it, and its length counts."""
    from shoestring.stages import _grpo_roll
    from shoestring.stages._grpo_ahead import Asker, Rolled

    groups = [[answer(2), answer(6)], [answer(6), answer(2, 0.0)]]
    monkeypatch.setattr(_grpo_roll, "roll", lambda *a: groups)
    config, nothing = dataclasses.replace(BASE, variant=variant, overlong=2), SimpleNamespace(seed=1)
    asker, rolled = Asker({}, config, nothing, None, None, None), Rolled(0, 0, [])  # pyright: ignore[reportArgumentType]
    asker._roll(None, rolled, [], nothing)  # pyright: ignore[reportArgumentType]
    first = [1.0, 0.0] if variant == "ppo" else [1.0, 1.0]
    assert [[t.score for t in g] for g in rolled.groups] == [first, [0.0, 0.0]]
    assert rolled.long == (2 if variant == "ppo" else 1)


@pytest.mark.parametrize("which", ["adapter", "ahead", "ppo"])
def test_overlapped_or_not_is_the_same_run(which: str, go: Any, same: Any, reports: Any) -> None:
    """The weights that rollouts are made with follow from the step; a thread beside the update changes no bit."""
    told = [[(r.loss, r.reward) for r in reports(go(w, overlap=o, **KEYS[which]))] for w, o in (("a", True), ("b", False))]
    assert told[0] == told[1] and same("a", "b")


def test_lag_changes_what_is_rolled(go: Any, reports: Any) -> None:
    a, b = (reports(go(w, off_policy=k)) for w, k in (("a", 0), ("b", 1)))
    assert a[0].loss == b[0].loss and [r.loss for r in a] != [r.loss for r in b]


