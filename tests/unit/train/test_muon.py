"""Muon: against torch's own on whole matrices, fused matrices by their parts, AdamW for the rest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from torch import nn  # noqa: E402

from shoestring.records import Document  # noqa: E402
from shoestring.train.muon import Muon, orthogonal, parts  # noqa: E402
from shoestring.train.optimiser import MasterAdamW  # noqa: E402


@pytest.mark.parametrize("shape", [(24, 24), (12, 40), (40, 12)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(x, torch.float32))
    assert float(values.min()) > 0.5 and float(values.max()) < 1.3
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    assert float((orthogonal(x, torch.float32) * (u @ v)).sum()) > 0.8 * min(shape)  # the same directions


def test_is_torchs_muon_on_a_whole_matrix() -> None:
    """torch keeps the momentum as a sum scaled alike, iterates in bf16 and scales by 0.2 sqrt(larger side)."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inner = nn.Module()
            inner.down = nn.Parameter(torch.randn(20, 48, generator=torch.Generator().manual_seed(0)))
            self.blocks = nn.ModuleList([inner])
            self.config = SimpleNamespace(heads=1, kv_heads=1, head_dim=4)

    ours, theirs = One(), One()
    mine = Muon(ours, 1e-2, weight_decay=0.1)
    reference = torch.optim.Muon(theirs.parameters(), lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for i in range(6):
        g = torch.randn(20, 48, generator=torch.Generator().manual_seed(i + 1))
        for model in (ours, theirs):
            (model.blocks[0].down * g).sum().backward()
        mine.step(1.0, 0.0)
        reference.step()
        reference.zero_grad()
        a, b = ours.blocks[0].down.detach(), theirs.blocks[0].down.detach()
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5), i


def step(model: Any, optimiser: Any) -> dict[str, Any]:
    before = {n: m.clone() for n, m in optimiser.masters.items()}
    ids = torch.arange(30) % 61
    model.logits(ids, torch.arange(30), [Document(0, 30)]).float().pow(2).mean().backward()
    optimiser.step(1.0, 0.0)
    return {n: before[n] - m for n, m in optimiser.masters.items()}


def test_fused_matrices_are_orthogonalised_by_their_parts(tiny_decoder: Any) -> None:
    """6 query heads and 2 key-value heads of 4: parts of 24, 8 and 8 rows; gate and up of 40. The first step's direction is
    the gradient's own."""
    model, other = tiny_decoder(), tiny_decoder()
    moved = step(model, Muon(model, 1.0))
    other.logits(torch.arange(30) % 61, torch.arange(30), [Document(0, 30)]).float().pow(2).mean().backward()
    for name, rows in (("qkv", [24, 8, 8]), ("gate_up", [40, 40]), ("out", [24]), ("down", [24])):
        grad = other.get_parameter(f"blocks.1.{name}").grad
        mine = moved[f"blocks.1.{name}"]
        for part, g in zip(mine.split(rows), grad.split(rows), strict=True):
            assert float(part.norm()) == pytest.approx(float(expected(g).norm()), rel=0.05)
            assert float((part - expected(g)).norm() / part.norm()) < 0.1, name  # bf16 iterations blur small directions
        if len(rows) > 1:
            assert float((mine - expected(grad)).norm() / mine.norm()) > 0.2, name


def expected(g: Any) -> Any:
    return 0.2 * max(g.shape) ** 0.5 * orthogonal(g).float()


def test_the_rest_is_adamws(tiny_decoder: Any) -> None:
    a, b = tiny_decoder(tied=False, qkv_bias=True), tiny_decoder(tied=False, qkv_bias=True)
    one, two = Muon(a, 1e-2), MasterAdamW(b, 1e-2)
    left, right = step(a, one), step(b, two)
    assert set(one.matrices) == {f"blocks.{i}.{n}" for i in (0, 1) for n in ("qkv", "out", "gate_up", "down")}
    for name in left:
        same = torch.equal(left[name], right[name])
        assert same == (name not in one.matrices), name
    assert one.state_bytes() < two.state_bytes()


@pytest.mark.parametrize("shape", [(96, 96), (32, 160), (160, 32)])
def test_the_updates_size_is_adamws(shape: tuple[int, int]) -> None:
    """Liu et al.: a root mean square of about 0.2, whatever the shape, so that a learning rate carries over."""
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    update = 0.2 * max(shape) ** 0.5 * orthogonal(g).float()
    assert 0.15 < float(update.pow(2).mean().sqrt()) < 0.25


def test_adapters_are_left_to_adamw() -> None:
    c = SimpleNamespace(heads=4, kv_heads=2, head_dim=8)
    assert parts("blocks.0.adapters.qkv.a", 8, c) is None and parts("embedding", 8, c) is None
    assert parts("blocks.3.qkv", 64, c) == [32, 16, 16] and parts("blocks.3.down", 64, c) == [64]
