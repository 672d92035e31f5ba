"""GRPO: which problems a step draws, what a group without variance costs, and resuming to the same weights."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring import rewards
from shoestring.records import Checkpoint, Problem, StepReport, UserError
from shoestring.stages import grpo
from shoestring.stages.context import write_lines
from shoestring.stages.grpo import Config, draw
from shoestring.stages.prompts import to_row


def make_pool(*sizes: int) -> dict[str, list[Problem]]:
    return {
        f"family{f}": [Problem.make(f"question {f}/{i}", str(i), domain=f"family{f}") for i in range(n)]
        for f, n in enumerate(sizes)
    }


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 7), st.integers(0, 5))
def test_families_take_turns_and_each_goes_through_its_problems(sizes: list[int], prompts: int, seed: int) -> None:
    pool, config = make_pool(*sizes), Config(prompts=prompts)
    flat = [p for step in range(40) for p in draw(pool, config, seed, step)]
    for at, p in enumerate(flat):
        assert p.domain == f"family{at % len(sizes)}"
    for f, n in enumerate(sizes):
        own = [p.id for p in flat if p.domain == f"family{f}"]
        for epoch in range(len(own) // n):
            assert len(set(own[epoch * n : (epoch + 1) * n])) == n
    counts = Counter(p.domain for p in flat)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_draw_is_a_function_of_seed_and_step() -> None:
    pool, config = make_pool(9, 9), Config(prompts=4)
    assert draw(pool, config, 1, 5) == draw(dict(reversed(pool.items())), config, 1, 5)
    assert len({tuple(p.id for s in range(4) for p in draw(pool, config, seed, s)) for seed in range(6)}) == 6


CONFIG = Config(steps=4, prompts=3, group=4, lr=5e-3, warmup=2, max_new=6, rows=64)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    problems = [p for ps in make_pool(5, 4).values() for p in ps]
    chosen = problems[:1]
    return {
        "pool": write_lines(tmp_path / "pool.jsonl", [to_row(p) for p in problems]),
        "problems": write_lines(tmp_path / "problems.jsonl", [to_row(p) for p in chosen]),
    }


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward: 1 where the answer's letters sum to an even number; family1's answers are always right."""
    from shoestring.stages import workbench

    def grade(text: str, problem: Problem) -> float:
        return 1.0 if problem.domain == "family1" else float(sum(map(ord, text)) % 2 == 0)

    def score_all(texts: list[str], problems: list[Problem], **columns: Any) -> list[rewards.Verdict]:
        return [rewards.of_score(grade(t, p)) for t, p in zip(texts, problems, strict=True)]

    monkeypatch.setattr(workbench, "rewards", SimpleNamespace(score_all=score_all, tally=rewards.tally))


def run(make_context: Any, drive: Any, where: Path, inputs: Any, until: int | None = None, **rest: Any) -> list[Any]:
    return drive(grpo.run(CONFIG, inputs, make_context(where, "grpo", **rest)), until)


@pytest.mark.usefixtures("parity")
def test_groups_without_variance_are_counted_priced_and_left_out(
    make_context: Any, drive: Any, inputs: Any, tmp_path: Path
) -> None:
    events = run(make_context, drive, tmp_path / "a", inputs)
    reports = [e for e in events if isinstance(e, StepReport)]
    assert [r.step for r in reports] == [1, 2, 3, 4]
    for step, r in enumerate(reports):
        pool = {f: ps for f, ps in make_pool(5, 4).items()}
        pool["family0"] = pool["family0"][1:]  # what SFT was taught is left out
        sure = sum(p.domain == "family1" for p in draw(pool, CONFIG, 3, step))
        assert sure <= r.extra["groups_without_variance"] <= r.extra["groups"] == 3
        assert 0 < r.extra["usd_without_variance"] < r.seconds * 1e-5
        assert r.reward is not None and 0 < r.reward <= 1
        if r.loss is not None:
            assert r.grad_norm and r.useful_tokens and r.extra["ratio_outside"] < 0.5
    assert any(r.loss is not None for r in reports)


@pytest.mark.usefixtures("parity")
def test_what_is_asked_and_what_is_trained(
    make_context: Any, drive: Any, inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every request has noise of its own; a group is one prompt; only groups with variance reach the update."""
    from shoestring.data import packing
    from shoestring.generate.engine import Engine

    asked: list[list[Any]] = []
    trained: list[list[Any]] = []
    generate, pack = Engine.generate, packing.pack
    monkeypatch.setattr(Engine, "generate", lambda self, r, *rest: (asked.append(list(r)), generate(self, r, *rest))[1])
    monkeypatch.setattr(packing, "pack", lambda examples, rows: (trained.append(examples), pack(examples, rows))[1])
    events = run(make_context, drive, tmp_path / "a", inputs)
    everything = [r for requests in asked for r in requests]
    assert len(everything) == 4 * 12 and len({r.seed for r in everything}) == 4 * 12
    assert all(r.stop == frozenset([1]) and r.max_new == 6 and r.temperature == 1.0 for r in everything)
    for requests in asked:
        assert [len({r.prompt for r in requests[i : i + 4]}) for i in (0, 4, 8)] == [1, 1, 1]
    reports = [e for e in events if isinstance(e, StepReport)]
    varied = [r.extra["groups"] - r.extra["groups_without_variance"] for r in reports]
    assert [len(examples) for examples in trained] == [4 * v for v in varied if v]
    for examples in trained:
        assert all(e.advantage != 0 and e.logprob is not None for e in examples)
        for i in range(0, len(examples), 4):
            assert sum(e.advantage for e in examples[i : i + 4]) == pytest.approx(0, abs=1e-9)


@pytest.mark.usefixtures("parity")
@pytest.mark.parametrize("stops", [[0], [2], [1, 3, 3]])
def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(
    stops: list[int], make_context: Any, drive: Any, inputs: Any, tmp_path: Path, final_state: Any
) -> None:
    import torch

    whole = run(make_context, drive, tmp_path / "whole", inputs)
    parts = []
    for until in stops:
        part = run(make_context, drive, tmp_path / "parts", inputs, until)
        assert isinstance(part[-1], Checkpoint) and part[-1].step == until
        parts += part
    parts += run(make_context, drive, tmp_path / "parts", inputs)
    told = [[(e.step, e.loss, e.reward) for e in events if isinstance(e, StepReport)] for events in (whole, parts)]
    assert told[0] == told[1]
    a, b = (final_state(tmp_path / where / "checkpoints" / "grpo") for where in ("whole", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.usefixtures("parity")
def test_goes_on_from_the_weights_of_the_stage_before(
    make_context: Any, drive: Any, inputs: Any, tmp_path: Path, final_state: Any
) -> None:
    """Those weights are read whole, at fp32, and another seed ends elsewhere."""
    import torch

    run(make_context, drive, tmp_path / "a", inputs)
    before = final_state(tmp_path / "a" / "checkpoints" / "grpo")
    weights = tmp_path / "a" / "checkpoints" / "grpo" / "step-4"
    (stopped,) = (
        e for e in run(make_context, drive, tmp_path / "b", inputs, 0, weights=weights) if isinstance(e, Checkpoint)
    )
    from shoestring.train.checkpoints import read_tensors

    masters = read_tensors(stopped.path, "master/")
    assert masters and all(torch.equal(v, before[k]) for k, v in masters.items())
    ends = []
    for seed in (3, 4):
        run(make_context, drive, tmp_path / f"s{seed}", inputs, weights=weights, seed=seed)
        ends.append(final_state(tmp_path / f"s{seed}" / "checkpoints" / "grpo"))
    assert any(not torch.equal(ends[0][k], ends[1][k]) for k in masters)


def test_nothing_left_to_practise_on_is_one_clear_line(make_context: Any, drive: Any, inputs: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no problems are left"):
        run(make_context, drive, tmp_path / "a", {**inputs, "problems": inputs["pool"]})
    with pytest.raises(UserError, match="needs pool; put a curate stage"):
        run(make_context, drive, tmp_path / "a", {})


def test_what_cannot_fit_the_window_is_refused_before_a_step(make_context: Any, drive: Any, inputs: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a prompt of \d+ tokens, an answer of 100000 are more than the model's window of \d+"):
        drive(grpo.run(dataclasses.replace(CONFIG, max_new=100_000), inputs, make_context(tmp_path / "a", "grpo")))
    assert not list(tmp_path.rglob("step-*.jsonl"))


def test_a_finished_steps_rollouts_that_are_gone_are_missed(tmp_path: Path) -> None:
    from shoestring.stages._grpo_draw import Lately, step_file

    step_file(tmp_path, 1).write_text("")
    assert not Lately.read(tmp_path, 1).seen
    with pytest.raises(UserError, match=r"step-000002\.jsonl: a finished step's rollouts are gone"):
        Lately.read(tmp_path, 2)


@pytest.mark.usefixtures("parity")
def test_verdicts_are_counted(make_context: Any, drive: Any, inputs: Any, tmp_path: Path) -> None:
    for r in (e for e in run(make_context, drive, tmp_path / "a", inputs) if isinstance(e, StepReport)):
        counted = r.extra["verdicts"]
        assert sum(counted.values()) == 12 and set(counted) <= {"right", "wrong"}
        assert r.reward == pytest.approx(counted.get("right", 0) / 12)


def test_rewards_of_the_user(make_context: Any, drive: Any, inputs: Any, tmp_path: Path) -> None:
    """A mixture is what is paid, after its self-test."""
    body = "from shoestring import answers\ndef right(completions, answer, lengths=None, **columns):\n"
    body += "    found = [answers.equal(answers.extract(c), a) for c, a in zip(completions, answer)]\n"
    body += "    return [2.0 if f else 0.5 if lengths and i % 3 == 0 else 0.0 for i, f in enumerate(found)]\n"
    file = tmp_path / "mine.py"
    file.write_text(body + "def any(completions, **columns): return [1.0 for c in completions]\n")
    config = dataclasses.replace(CONFIG, steps=2, rewards={f"{file}:right": 2.0})
    reports = [e for e in drive(grpo.run(config, inputs, make_context(tmp_path / "a", "grpo"))) if isinstance(e, StepReport)]
    assert [r.reward for r in reports] == [pytest.approx(4 / 12)] * 2  # untrained letters: a third earn 2 × 0.5
    assert [r.extra["verdicts"] for r in reports] == [{"right": 4, "wrong": 8}] * 2
    with pytest.raises(UserError, match="fails its self-test"):
        config = dataclasses.replace(CONFIG, rewards={"grader": 0.1, f"{file}:any": 1.0})
        drive(grpo.run(config, inputs, make_context(tmp_path / "b", "grpo")))
    with pytest.raises(UserError, match="no function 'none'"):
        grpo.check(dataclasses.replace(CONFIG, rewards={f"{file}:none": 1.0}), "")
    with pytest.raises(ValueError, match="rewards is empty"):
        dataclasses.replace(CONFIG, rewards={})


def test_the_reported_reward_is_of_answers_with_a_score(make_context: Any, drive: Any, inputs: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from shoestring import answers\ndef some(completions, answer, lengths=None, **columns):\n"
        "    found = [answers.equal(answers.extract(c), a) for c, a in zip(completions, answer)]\n"
        "    if lengths is None: return [1.0 if f else 0.0 for f in found]\n"
        "    return [1.0 if f or i % 4 == 0 else None if i % 4 == 1 else 0.0 for i, f in enumerate(found)]\n"
    )
    config = dataclasses.replace(CONFIG, steps=2, rewards={f"{file}:some": 1.0})
    reports = [e for e in drive(grpo.run(config, inputs, make_context(tmp_path / "a", "grpo"))) if isinstance(e, StepReport)]
    assert [r.reward for r in reports] == [pytest.approx(1 / 3)] * 2  # of twelve, three are skipped and three are paid


def test_an_answer_without_a_score_takes_no_part() -> None:
    from shoestring.records import Trace

    def trace(score: float | None) -> Trace:
        return Trace("p", (1,), (2,), (True,), (-1.0,), "stop", "m", score=score)

    data, flat, _ = grpo.learnable([[trace(1.0), trace(None), trace(0.0)], [trace(None), trace(1.0)], [trace(None)] * 2], "none")
    assert [e.advantage for e in data] == [0.5, -0.5] and flat == 2
