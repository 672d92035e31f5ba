"""Optimisers on masters: torch's AdamW in fp32, small updates kept under bf16, clipping, exact resume of every one."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from torch import nn  # noqa: E402

from shoestring.train.optimiser import NAMES, MasterAdamW, MasterOptimiser, make  # noqa: E402
from shoestring.train.schedules import rate  # noqa: E402


class Net(nn.Module):
    def __init__(self, seed: int = 0, dtype: Any = torch.float32) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.a = nn.Parameter(torch.randn(6, 5, generator=g).to(dtype))
        self.scale = nn.Parameter(torch.ones(5, dtype=dtype))
        self.frozen = nn.Parameter(torch.ones(3, dtype=dtype), requires_grad=False)

    def loss(self, seed: int) -> Any:
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)).to(self.a.dtype)
        return ((x @ self.a) * self.scale).float().pow(2).mean()


def cosine(step: int, total: int, warmup: int) -> float:
    return rate("cosine", step, total, warmup)


def named(model: nn.Module) -> dict[str, Any]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def test_is_torchs_adamw_in_fp32() -> None:
    """Weight decay on matrices only, two micro-batches a step, a schedule."""
    ours, theirs = Net(), Net()
    mine = MasterAdamW(ours, 1e-2, (0.9, 0.95), weight_decay=0.1)
    reference = torch.optim.AdamW(
        [{"params": [theirs.a], "weight_decay": 0.1}, {"params": [theirs.scale], "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
    )
    for step in range(12):
        for part in (0, 1):
            ours.loss(2 * step + part).backward()
            theirs.loss(2 * step + part).backward()
        for group in reference.param_groups:
            group["lr"] = 1e-2 * cosine(step, 12, 3)
        expected = torch.nn.utils.clip_grad_norm_([theirs.a, theirs.scale], 0.5)
        norm = mine.step(cosine(step, 12, 3), 0.5)
        reference.step()
        reference.zero_grad()
        assert norm == pytest.approx(float(expected), rel=1e-6) and ours.a.grad is None
        for name, p in ours.named_parameters():
            assert torch.allclose(p, theirs.get_parameter(name), rtol=1e-6, atol=1e-7), (step, name)
    assert torch.equal(ours.frozen, torch.ones(3)) and "frozen" not in mine.masters


def test_masters_keep_updates_that_bf16_would_lose() -> None:
    model = Net(dtype=torch.bfloat16)
    start = named(model)
    mine = MasterAdamW(model, 1e-5)
    first = {n: m.clone() for n, m in mine.masters.items()}
    for _ in range(3):
        model.a.sum().backward()
        mine.step(1.0, 0.0)
    assert (model.a != start["a"]).float().mean() < 0.1  # too small to be seen in bf16 yet,
    assert torch.allclose(first["a"] - mine.masters["a"], torch.full((6, 5), 3e-5), rtol=5e-2)  # and kept
    for _ in range(1500):
        model.a.sum().backward()
        mine.step(1.0, 0.0)
    assert (start["a"].float() - model.a.float()).mean().item() == pytest.approx(1503e-5, rel=0.05)
    assert model.a.dtype == torch.bfloat16 and torch.equal(model.a, mine.masters["a"].bfloat16())


def test_given_masters_are_used_and_published() -> None:
    model = Net(dtype=torch.bfloat16)
    masters = {"a": torch.full((6, 5), 1.001), "scale": torch.full((5,), 0.5)}
    mine = MasterAdamW(model, 1e-3, masters=masters)
    assert torch.equal(model.a, masters["a"].bfloat16()) and mine.masters["a"] is masters["a"]


def test_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    mine = MasterAdamW(model, 1e-3)
    seen: list[float] = []
    monkeypatch.setattr(mine, "_update", lambda name, master, grad, lr: seen.append(float(grad.norm())))
    for limit in (0.25, 1e6, 0.0):
        (model.a.sum() * 7).backward()
        norm = mine.step(1.0, limit)
        assert norm == pytest.approx(7 * math.sqrt(30), rel=1e-5)
    assert seen == pytest.approx([0.25, 7 * math.sqrt(30), 7 * math.sqrt(30)], rel=1e-4)


def test_one_micro_batch_keeps_narrow_gradients_and_two_make_wide_sums() -> None:
    model = Net(dtype=torch.bfloat16)
    mine = MasterAdamW(model, 1e-3)
    model.loss(0).backward()
    assert {g.dtype for g in mine.grads.values()} == {torch.bfloat16} and model.a.grad is None
    first = {n: g.clone() for n, g in mine.grads.items()}
    model.loss(1).backward()
    assert {g.dtype for g in mine.grads.values()} == {torch.float32}
    other = Net(dtype=torch.bfloat16)
    other.loss(1).backward()
    for n, g in mine.grads.items():
        assert torch.equal(g, first[n].float() + other.get_parameter(n).grad.float())
    mine.step(1.0, 0.0)
    assert not mine.grads


def test_a_parameter_without_a_gradient_stays() -> None:
    model = Net()
    mine = MasterAdamW(model, 1e-2)
    before = named(model)
    model.a.sum().backward()
    mine.step(1.0, 1.0)
    assert torch.equal(model.scale, before["scale"]) and not torch.equal(model.a, before["a"])
    assert mine.tensors()["step/scale"] == 0 and not mine.tensors()["exp_avg/scale"].any()
    assert mine.step(1.0, 1.0) == 0.0  # nothing at all


def test_zero_forgets_what_a_broken_step_left() -> None:
    model = Net()
    mine = MasterAdamW(model, 1e-2)
    model.loss(0).backward()
    model.a.grad = torch.ones_like(model.a)
    mine.zero()
    assert not mine.grads and model.a.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_skipped_and_forgotten(bad: float) -> None:
    a, b = Net(), Net()
    left, right = MasterAdamW(a, 1e-2), MasterAdamW(b, 1e-2)
    before = named(a)
    (a.a.sum() * bad).backward()
    assert not math.isfinite(left.step(1.0, 1.0))
    assert all(torch.equal(p, before[n]) for n, p in a.named_parameters())
    assert left.state["a"]["step"] == 0
    for model, optimiser in ((a, left), (b, right)):
        model.loss(1).backward()
        optimiser.step(1.0, 1.0)
    assert all(torch.equal(p, b.get_parameter(n)) for n, p in a.named_parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("at", [0, 1, 5])
def test_restored_is_uninterrupted_bit_for_bit(name: Any, dtype: Any, at: int, tiny_decoder: Any) -> None:
    """On a decoder with an embedding above 4,096 weights, so that 8 bits and Muon's matrices engage."""
    from shoestring.records import Document

    def made() -> tuple[Any, MasterOptimiser]:
        model = tiny_decoder(vocab=200).to(dtype)
        return model, make(name, model, 3e-2, weight_decay=0.01)

    def steps(model: Any, optimiser: MasterOptimiser, start: int, end: int) -> None:
        for i in range(start, end):
            ids = torch.randint(0, 200, (9,), generator=torch.Generator().manual_seed(i))
            model.logits(ids, torch.arange(9), [Document(0, 9)]).float().pow(2).mean().backward()
            optimiser.step(cosine(i, 9, 2), 1.0)

    whole, one = made()
    steps(whole, one, 0, 9)
    first, two = made()
    steps(first, two, 0, at)
    state = {k: v.clone() for k, v in two.tensors().items()}
    resumed, three = made()
    three.restore(state)
    steps(resumed, three, at, 9)
    assert one.tensors().keys() == three.tensors().keys()
    assert all(torch.equal(v, three.tensors()[k]) for k, v in one.tensors().items())
    assert all(torch.equal(p, whole.get_parameter(n)) for n, p in resumed.named_parameters())
    kinds = {k.partition("/")[0] for k in one.tensors()}
    assert kinds >= {"adamw": {"exp_avg"}, "adamw8bit": {"exp_avg_largest"}, "muon": {"momentum", "exp_avg"}}[name]


def test_a_checkpoint_without_a_master_is_not_restored_in_silence() -> None:
    mine = MasterAdamW(Net(), 1e-2)
    with pytest.raises(KeyError):
        mine.restore({"master/a": torch.zeros(6, 5)})


def test_closed_hooks_leave_gradients_alone() -> None:
    model = Net()
    mine = MasterAdamW(model, 1e-2)
    mine.close()
    model.loss(0).backward()
    assert model.a.grad is not None and not mine.grads


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(ValueError, match="adamw8bit"):
        make("sgd", Net(), 1e-3)  # type: ignore[arg-type]
