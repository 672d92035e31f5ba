"""GRPO's update inside the stage: every variant, the reference, several updates, rollouts ahead, PPO; killed and resumed."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shoestring.records import Checkpoint, StepReport, UserError
from shoestring.stages import grpo
from shoestring.stages.grpo import Config
from shoestring.train.variants import VARIANTS

BASE = Config(steps=4, prompts=3, group=4, lr=5e-3, warmup=0, max_new=6, rows=64)
KEYS: dict[str, dict[str, Any]] = {
    "reference": {"kl": 0.1, "reference_every": 2, "updates": 2, "minibatches": 2},
    "adapter": {"lora": 4, "kl": 0.1, "off_policy": 1, "old": "trainer", "importance": "truncated"},
    "ahead": {"variant": "dapo", "off_policy": 2, "old": "trainer", "importance": "masked", "importance_cap": 1.05},
    "ppo": {"variant": "ppo", "kl": 0.05, "off_policy": 1, "updates": 2},
    "quiet": {"kl": 0.1, "kl_estimator": "k1"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_and_says_so(variant: str, go: Any, reports: Any) -> None:
    done = [r for r in reports(go("a", variant=variant)) if r.loss is not None]
    assert done and all(r.extra["variant"] == variant and r.grad_norm > 0 for r in done)
    for r in done:
        assert set(r.extra["mismatch"]) == {"outside", "mean", "min", "max", "q01", "q50", "q99"}
        assert r.extra["mismatch"]["mean"] == pytest.approx(1.0, abs=0.05)
        assert ("value_loss" in r.extra and "explained_variance" in r.extra) == (variant == "ppo")


def test_what_is_asked_for_engages(go: Any, reports: Any) -> None:
    for r in reports(go("a", **KEYS["reference"])):
        assert r.extra["updates"] == 2 * min(2, r.extra["groups"] - r.extra["groups_without_variance"])
        assert r.extra["reference_age"] == (r.step - 1) % 2
        assert r.extra["kl"] >= 0
    aged = reports(go("b", **KEYS["quiet"]))
    assert [r.extra["reference_age"] for r in aged] == [0, 1, 2, 3] and aged[-1].extra["kl"] != 0
    for r in reports(go("c", **KEYS["adapter"])):
        assert r.extra["weights_behind"] == min(1, r.step - 1)
        assert r.extra["importance_mean"] == pytest.approx(1.0, abs=0.2) and r.extra["importance_truncated"] < 10
        assert r.extra["live"].startswith("p/q ")
    ahead = reports(go("d", **KEYS["ahead"]))
    assert [r.extra["weights_behind"] for r in ahead] == [0, 1, 2, 2]
    assert sum(r.extra["importance_masked"] for r in ahead) > 0, "two steps old, and no token was masked"


@pytest.mark.parametrize("which", KEYS)
def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(which: str, go: Any, same: Any, reports: Any) -> None:
    whole, parts = go("whole", **KEYS[which]), []
    for until in (0, 2, 3):
        parts += go("parts", until, **KEYS[which])
        assert isinstance(parts[-1], Checkpoint) and parts[-1].step == until
    parts += go("parts", **KEYS[which])
    told = [[(r.step, r.loss, r.reward, r.extra.get("reference_age")) for r in reports(e)] for e in (whole, parts)]
    assert told[0] == told[1] and same("whole", "parts")


def _until_killed(at: int, run: Any) -> bool:
    """Run in a child that kills itself (SIGKILL) at its `at`-th event: a decoding step, a descent, a save, a file; whether it
    was killed before the end."""
    import torch

    from shoestring.generate.engine import Session
    from shoestring.stages import _grpo_ahead
    from shoestring.stages.trainer import Trainer

    pid = os.fork()
    if pid:
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    try:
        torch.set_num_threads(1)
        left = [at]

        def counted(inner: Any) -> Any:
            def call(*a: Any, **k: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return inner(*a, **k)

            return call

        for owner, name in (
            (Session, "step"),
            (Trainer, "descend"),
            (Trainer, "save"),
            (_grpo_ahead, "write"),
            (grpo, "write_lines"),
        ):
            setattr(owner, name, counted(getattr(owner, name)))
        run()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def _killed(which: str, kills: int, go: Any, same: Any) -> None:
    pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    if not hasattr(os, "fork"):
        pytest.skip("the test forks, which this system cannot")
    go("whole", often=True, **KEYS[which])
    rng, landed, round_ = random.Random(f"kills/{which}/{kills}"), 0, 0
    while landed < kills:
        where = f"killed{round_}"
        if not _until_killed(rng.randint(0, 34), lambda w=where: go(w, often=True, **KEYS[which])):
            assert same("whole", where)  # it got to the end: the next kills fall into a new run
            round_ += 1
            assert round_ < 3 * kills
        else:
            landed += 1
    go(f"killed{round_}", often=True, **KEYS[which])
    assert same("whole", f"killed{round_}")


@pytest.mark.parametrize("which", ["reference", "adapter", "ppo"])
def test_killed_three_times_is_the_same_run(which: str, go: Any, same: Any) -> None:
    _killed(which, 3, go, same)


@pytest.mark.slow
@pytest.mark.parametrize("which", KEYS)
def test_killed_at_twenty_random_instants(which: str, go: Any, same: Any) -> None:
    _killed(which, 20, go, same)


@pytest.mark.parametrize("quantised", [False, True])
def test_an_adapter_switched_off_is_the_policy_that_the_stage_began_with(quantised: bool, tiny_decoder: Any) -> None:
    import torch

    from shoestring.models import lora, nf4
    from shoestring.records import Document
    from shoestring.stages._grpo_reference import Reference

    model = tiny_decoder()
    if quantised:
        nf4.quantise_model(model)
    x = (torch.arange(9), torch.arange(9), [Document(0, 9)])
    before = model.logits(*x)
    lora.attach(model, lora.LoraConfig(4), 0)
    made = Reference(model)
    with torch.no_grad():
        for n, p in lora.trainable(model).items():
            p.add_(0.3 if n.endswith("_B") else 0.0)
    moved = model.logits(*x)
    with made.standing_in():
        assert torch.equal(model.logits(*x), before)
    assert torch.equal(model.logits(*x), moved) and not torch.equal(moved, before) and not made.tensors()
    made.replace(3)
    with torch.no_grad():
        next(iter(lora.trainable(model).values())).add_(1.0)
    with made.standing_in():
        assert torch.equal(model.logits(*x), moved)
    again = Reference(model)
    again.restore(made.tensors())
    with again.standing_in():
        assert torch.equal(model.logits(*x), moved) and again.since == 3


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"variant": "gpro"}, "did you mean"), ({"kl_estimator": "k1"}, "needs kl"), ({"reference_every": 2}, "needs kl"),
        ({"importance": "truncated"}, "needs old"), ({"importance_cap": 3.0}, "importance_cap"), ({"overlap": False}, "off_policy"),
        ({"variant": "cispo", "clip_low": 0.1}, "clip_low means nothing"), ({"gamma": 0.9}, "needs variant"),
        ({"variant": "ppo", "lora": 4}, "lora"), ({"variant": "ppo", "scale": "std"}, "scale belongs to groups"),
        ({"minibatches": 4}, "minibatches"), ({"overlong": 7}, "overlong"), ({"updates": 0}, "updates"), ({"kl": -1.0}, "kl"),
        ({"lr": float("inf")}, "lr = inf"), ({"temperature": float("nan")}, "temperature = nan"),
        ({"variant": "ppo", "gae_lambda": 1.5}, "gae_lambda"), ({"clip_low": 1.5}, "clip_low"), ({"scale": "max"}, "scale"),
    ],
)  # fmt: skip
def test_what_nothing_would_read_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(BASE, **keys)


def test_the_memory_of_what_stands_beside(make_context: Any, grpo_inputs: Any, drive: Any, tmp_path: Path) -> None:
    from shoestring.estimate.flops import ModelShape

    shape = ModelShape(2, 32, 4, 2, 8, 48, 61, True)
    n = shape.parameters()
    assert dataclasses.replace(BASE).beside(shape) == {}
    assert dataclasses.replace(BASE, kl=0.1, off_policy=1).beside(shape) == {"reference": 2 * n, "rollout weights": 2 * n}
    assert dataclasses.replace(BASE, kl=0.1, lora=4).beside(shape) == {}
    assert dataclasses.replace(BASE, variant="ppo").beside(shape) == {"critic": 18 * n}
    small = dataclasses.replace(BASE, kl=0.1, memory_gib=0.1)
    with pytest.raises(UserError, match=r"reference .* GiB; leave out kl"):
        drive(grpo.run(small, grpo_inputs, make_context(tmp_path / "x", "grpo")))


def test_the_plan_counts_what_is_asked_for() -> None:
    from shoestring.estimate.flops import ModelShape
    from shoestring.estimate.machine import prior
    from shoestring.stages.context import Facts

    shape = ModelShape(30, 576, 9, 3, 64, 1536, 49152, True)
    facts = Facts(shape, prior(frozenset(), 2), "x/machine-second", "grpo", trained=True)

    def of(**keys: Any) -> Any:
        return grpo.forecast(dataclasses.replace(BASE, **keys), facts)

    plain, held, twice, ppo, more = of(), of(kl=0.1), of(updates=2), of(variant="ppo"), of(resample=2)
    assert plain.parts["scoring"] == 0 < held.parts["scoring"] and held.flops > plain.flops
    assert twice.parts["update"] == pytest.approx(2 * plain.parts["update"])
    assert ppo.parts["update"] > 2 * plain.parts["update"] and ppo.memory["critic"] == 18 * shape.parameters()
    assert more.parts["rollouts"] > 1.3 * plain.parts["rollouts"] and "reference" in held.memory
    assert of(old="trainer").usages[0].quantity > plain.usages[0].quantity


def test_reports_are_of_every_step(go: Any) -> None:
    assert [e.step for e in go("a", **KEYS["ppo"]) if isinstance(e, StepReport)] == [1, 2, 3, 4]


def test_the_ratio_is_taken_at_the_temperature_of_the_rollout(go: Any, reports: Any) -> None:
    """At 0.7 engine and trainer agree to bf16's error; at another temperature they would be far apart."""
    for old in ("engine", "trainer"):
        for r in reports(go(old, old=old, temperature=0.7, kl=0.1)):
            if r.loss is not None:
                assert r.extra["mismatch"]["mean"] == pytest.approx(1.0, abs=0.05) and r.extra["mismatch"]["outside"] < 0.3


def test_every_key_of_the_update_changes_it(go: Any, same: Any) -> None:
    keys: list[dict[str, Any]] = [
        {"critic_lr": 1e-3}, {"gamma": 0.5}, {"gae_lambda": 0.1}, {"value_clip": 1e-4}, {"kl": 0.5}, {"updates": 1},
        {"old": "trainer"}, {"clip_high": 1e-3}, {"minibatches": 2}, {"temperature": 0.5}, {"overlong": 6},
    ]  # fmt: skip
    ppo = {"variant": "ppo", "updates": 2, "steps": 3}
    go("plain", **ppo)
    for key in keys:
        go(f"with {key}", **(ppo | key))
        assert not same("plain", f"with {key}"), key


def test_a_steps_flops_are_those_of_its_answers() -> None:
    """By a slow count: what is beside an example in its batch costs it nothing, and every pass has a price."""
    from shoestring.estimate.flops import ModelShape, forward_flops, generation_flops, training_flops
    from shoestring.records import Trace

    shape = ModelShape(2, 32, 4, 2, 8, 48, 61, True)

    def trace(n: int) -> Trace:
        return Trace("p", (1,) * 9, (2,) * n, (True,) * n, (-1.0,) * n, "stop", "m", score=1.0)

    def of(config: Config, groups: list[list[Trace]], rows: int = 0, scored: int = 0, judged: int = 0) -> float:
        n = [9 + len(t.tokens) for g in groups for t in g] if rows else []
        words = sum(n) - 9 * len(n)
        result = SimpleNamespace(rows=rows, predictions=words)
        learnt: Any = SimpleNamespace(lengths=n, result=result, scored=scored, judged=judged)
        rolled: Any = SimpleNamespace(groups=groups)
        return grpo.step_flops(config, shape, rolled, learnt)

    one = [[trace(5), trace(5)], [trace(20), trace(20)]]
    rolled = generation_flops(shape, 9, 5, 2) + generation_flops(shape, 9, 20, 2)
    assert of(BASE, one) == pytest.approx(rolled)
    assert of(BASE, [[trace(5), trace(20)]]) == pytest.approx(rolled / 2)  # unequal answers of one group
    lengths = [14, 14, 29, 29]
    learnt = training_flops(shape, lengths, head_tokens=50)
    assert of(BASE, one, rows=86) == pytest.approx(rolled + learnt)
    scored = forward_flops(shape, lengths, head_tokens=50)
    assert of(BASE, one, rows=86, scored=2 * 86, judged=2 * 50) == pytest.approx(rolled + learnt + 2 * scored)
    ppo = dataclasses.replace(BASE, variant="ppo")
    assert of(ppo, one, rows=86) == pytest.approx(rolled + 2 * learnt)


def test_checkpoints_hold_what_stands_beside(go: Any, tmp_path: Path) -> None:
    """The plan keeps the seconds of the last checkpoint back; it is as large as it says."""
    from shoestring.estimate.flops import ModelShape

    shape = ModelShape(2, 32, 4, 2, 8, 48, 61, True)
    n = shape.parameters()
    cases: list[tuple[str, dict[str, Any], int]] = [
        ("a", {}, 12), ("b", {"variant": "ppo"}, 24), ("c", {"kl": 0.1, "reference_every": 1}, 14), ("d", {"kl": 0.1}, 12)
    ]  # fmt: skip
    for where, keys, bytes_each in cases:
        size = bytes_each * n
        assert dataclasses.replace(BASE, **keys).checkpoint_bytes(shape) == size
        made = go(where, 3, **keys)[-1]
        assert (made.path / "state.safetensors").stat().st_size == pytest.approx(size, rel=0.1)
