"""What the training stages share: memory that runs out, the forecast in the report, checkpoints kept, keys that engage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from shoestring.estimate.flops import ModelShape  # noqa: E402
from shoestring.estimate.memory import choose_recompute, rollout_bytes  # noqa: E402
from shoestring.records import Checkpoint, UserError  # noqa: E402
from shoestring.stages import grpo, sft  # noqa: E402
from shoestring.stages.context import Facts  # noqa: E402
from shoestring.stages.trainer import out_of_memory  # noqa: E402

SETTINGS: dict[str, Any] = dict(epochs=3, batch=4, lr=1e-2, rows=64)
REFUSED = "[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


class Failing:
    """Stands for the block: its n-th passes fail as an allocator does, in the middle of a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException, *fail: int) -> None:
        from shoestring.train import step

        self.calls, inner = 0, step.linear_cross_entropy

        def loss(*args: Any) -> Any:
            self.calls += 1
            if self.calls in fail:
                raise error
            return inner(*args)

        monkeypatch.setattr(step, "linear_cross_entropy", loss)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(REFUSED), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_step_without_memory_is_done_again_at_half_the_rows(
    error: BaseException,
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
    reports: Any,
) -> None:
    """The first micro-batch of step 1 is done, the second fails: nothing may be counted twice."""
    plain = reports(run("plain"))
    Failing(monkeypatch, error, 2)
    events = run("failing")
    told = reports(events)
    assert [r.step for r in told] == [r.step for r in plain]
    assert told[0].extra["rows"] == 32 and "out of memory at 64 rows" in told[0].extra["notice"]
    assert "rows" not in told[1].extra and "notice" not in told[1].extra
    assert told[0].loss == pytest.approx(plain[0].loss, rel=1e-2)
    assert told[0].grad_norm == pytest.approx(plain[0].grad_norm, rel=2e-2)  # twice would be far off
    assert told[-1].loss == pytest.approx(plain[-1].loss, rel=0.2)


def test_the_halved_rows_outlive_a_stop(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, final_state: Any) -> None:
    from shoestring.train import step

    with monkeypatch.context() as m:
        Failing(m, MemoryError(), 2)
        run("whole")
    with monkeypatch.context() as m:
        Failing(m, MemoryError(), 2)
        run("parts", 3)
    widest: list[int] = []
    inner = step.accumulate
    monkeypatch.setattr(step, "accumulate", lambda *a: (widest.append(max(len(b.tokens) for b in a[1])), inner(*a))[1])
    run("parts")
    assert max(widest) <= 45  # 32, or the longest trace
    a, b = (final_state(tmp_path / where / "checkpoints" / "sft") for where in ("whole", "parts"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_second_failure_is_one_clear_line(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Failing(monkeypatch, RuntimeError(REFUSED), 2, 3)
    with pytest.raises(UserError, match=r"step 1: out of memory with 64 packed rows.* with 32 .*lower rows") as e:
        run("failing")
    assert "\n" not in str(e.value)


def test_another_error_is_not_taken_for_memory(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Failing(monkeypatch, RuntimeError("shapes differ"), 1)
    with pytest.raises(RuntimeError, match="shapes differ"):
        run("failing")
    assert not out_of_memory(ValueError("can't allocate memory"))


def test_no_memory_for_the_optimisers_state_is_one_clear_line(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoestring.train.optimiser import MasterAdamW

    def fail(*args: Any) -> None:
        raise RuntimeError(REFUSED)

    monkeypatch.setattr(MasterAdamW, "_update", fail)
    with pytest.raises(UserError, match="adamw8bit"):
        run("failing")


@pytest.mark.parametrize("stated", ["auto", "none", "selective", "full"])
def test_the_policy_and_the_forecast_are_reported_once_and_change_no_bit(
    stated: str,
    run: Any,
    tmp_path: Path,
    final_state: Any,
    reports: Any,
) -> None:
    run("plain", recompute="none")
    told = reports(run("stated", recompute=stated, memory_gib=64.0))
    first = told[0].extra
    assert first["recompute"] == ("none" if stated == "auto" else stated)
    assert 0 < first["memory_forecast_gib"] < first["memory_available_gib"] == 64.0
    assert sum(first["memory_parts_gib"].values()) == pytest.approx(first["memory_forecast_gib"], abs=0.01)
    assert all("recompute" not in r.extra for r in told[1:])
    a, b = (final_state(tmp_path / where / "checkpoints" / "sft") for where in ("plain", "stated"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_too_little_memory_recomputes_in_full_and_says_so(run: Any, monkeypatch: pytest.MonkeyPatch, reports: Any) -> None:
    from shoestring.train import recompute

    used: list[str] = []
    inner = recompute.wrapper
    monkeypatch.setattr(recompute, "wrapper", lambda p: (used.append(p), inner(p))[1])
    told = reports(run("small", memory_gib=0.1))
    assert used == ["full"] and told[0].extra["recompute"] == "full" and "lower rows" in told[0].extra["notice"]


@pytest.mark.parametrize("optimiser", ["adamw8bit", "muon"])
def test_each_optimiser_learns_and_resumes_bit_for_bit(
    optimiser: str, run: Any, tmp_path: Path, final_state: Any, reports: Any
) -> None:
    whole = reports(run("whole", optimiser=optimiser))
    assert whole[-1].loss < 0.8 * whole[0].loss
    run("parts", 2, optimiser=optimiser)
    run("parts", 5, optimiser=optimiser)
    run("parts", optimiser=optimiser)
    a, b = (final_state(tmp_path / where / "checkpoints" / "sft") for where in ("whole", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert any("momentum/" in k for k in a) == (optimiser == "muon")


def test_the_schedule_is_the_one_asked_for(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoestring.train.optimiser import MasterAdamW

    factors: list[float] = []
    inner = MasterAdamW.step
    monkeypatch.setattr(MasterAdamW, "step", lambda self, f, n: (factors.append(f), inner(self, f, n))[1])
    run("wsd", schedule="wsd", decay=0.5, floor=0.2, warmup=0.25)
    assert factors == pytest.approx([0.5, 1, 1, 1, 1, 0.8, 0.6, 0.4])


@pytest.mark.parametrize("keep", [1, 3])
def test_so_many_checkpoints_are_kept(keep: int, run: Any, tmp_path: Path) -> None:
    events = run("kept", save_total_limit=keep, context={"checkpoint_seconds": 1.0})
    saved = [e.step for e in events if isinstance(e, Checkpoint)]
    assert len(saved) == 8
    left = sorted(int(p.name[5:]) for p in (tmp_path / "kept" / "checkpoints" / "sft").iterdir())
    assert left == saved[-keep:]


def test_the_plans_memory_is_the_chosen_policys() -> None:
    from shoestring.estimate.machine import prior

    shape = ModelShape(30, 576, 9, 3, 64, 1536, 49152, True)
    facts = Facts(shape, prior(frozenset(), 2), "this/machine-second", "sft", traces=100)
    for gib in (2.0, 3.5, 3.9, 64.0):
        config = sft.Config(memory_gib=gib)
        assert sft.forecast(config, facts).memory_bytes == choose_recompute(shape, 2048, memory_gib=gib).total
    beside = rollout_bytes(shape, 64, round(facts.sizes.prompt) + 48)
    expected = choose_recompute(shape, 2048, memory_gib=64.0, beside=beside).total
    assert grpo.forecast(grpo.Config(memory_gib=64.0), facts).memory_bytes == expected
    eight = sft.forecast(sft.Config(memory_gib=64.0, optimiser="adamw8bit"), facts).memory_bytes
    assert eight < sft.forecast(sft.Config(memory_gib=64.0), facts).memory_bytes - 5.9 * shape.parameters()
