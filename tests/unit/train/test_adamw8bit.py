"""8-bit moments: the bound on every stored value, the bytes, and a problem solved as fp32 AdamW solves it."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from torch import nn  # noqa: E402

from shoestring.train.adamw8bit import BLOCK, AdamW8bit, decode, dynamic_map, encode  # noqa: E402
from shoestring.train.optimiser import MasterAdamW  # noqa: E402


def test_the_maps_are_dense_near_zero() -> None:
    for signed in (True, False):
        m = dynamic_map(signed)
        assert len(m) == 256 and bool((m[1:] > m[:-1]).all()) and 0.0 in m.tolist() and m[-1] == 1.0
        small = m[m > 0][0]
        assert small < 1e-6 and float((m[m > 0.1].diff() / m[m > 0.1][1:]).max()) < 0.13
    assert float(dynamic_map(True)[0]) == pytest.approx(-0.993, abs=1e-3)


def values(n: int, seed: int, spread: float) -> Any:
    """Magnitudes over many powers of ten, as moments have them."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=g) * 10 ** (torch.randn(n, generator=g) * spread)


@pytest.mark.parametrize("n", [1, 255, 256, 257, 5000])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_every_error_is_within_its_bound(n: int, signed: bool, spread: float) -> None:
    x = values(n, n, spread)
    x = x if signed else x.square()
    codes, largest = encode(x, signed)
    assert codes.dtype == torch.uint8 and codes.shape == (n,) and len(largest) == -(-n // BLOCK)
    back = decode(codes, largest, signed)
    m = dynamic_map(signed).double()
    scale = largest.double().repeat_interleave(BLOCK)[:n]
    unit = x.double() / scale
    # the slow twin: the nearest of all 256 numbers
    nearest = (unit[:, None] - m[None]).abs().amin(-1)
    smallest = float(m[m > 0][0])
    bound = nearest + 2 * unit.abs() * 2**-8 + (0.0 if signed else smallest * (unit < smallest)) + 1e-12
    assert bool(((back.double() / scale - unit).abs() <= bound).all())


def test_zeros_stay_zeros_and_a_positive_second_moment_never_becomes_one() -> None:
    for signed in (True, False):
        assert not decode(*encode(torch.zeros(300), signed), signed).any()
    x = torch.full((256,), 1e-12)
    x[0] = 1.0
    assert bool((decode(*encode(x, False), False) > 0).all())


class Regression(nn.Module):
    """A two-layer net on a fixed teacher; both matrices are above the size that is kept in 8 bits."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.up = nn.Parameter(torch.randn(64, 80, generator=g) * 0.1)
        self.down = nn.Parameter(torch.randn(80, 64, generator=g) * 0.1)
        self.scale = nn.Parameter(torch.ones(64))

    def forward(self, x: Any) -> Any:
        return torch.tanh(x @ self.up) @ self.down * self.scale


def train(kind: Any, steps: int = 150) -> tuple[Any, list[float]]:
    teacher, student = Regression(1), Regression(2)
    optimiser = kind(student, 3e-3, (0.9, 0.95), 0.01)
    losses = []
    for i in range(steps):
        x = torch.randn(64, 64, generator=torch.Generator().manual_seed(i))
        loss = (student(x) - teacher(x).detach()).pow(2).mean()
        loss.backward()
        optimiser.step(1.0, 0.0)
        losses.append(float(loss.detach()))
    return optimiser, losses


def test_converges_as_fp32_does() -> None:
    (wide, a), (narrow, b) = train(MasterAdamW), train(AdamW8bit)
    assert a[0] == b[0] and sum(a[-10:]) < 0.2 * sum(a[:10])
    assert sum(b[-10:]) == pytest.approx(sum(a[-10:]), rel=0.05)
    weights = 64 * 80
    assert narrow.state_bytes() == 2 * (2 * weights + 2 * 4 * weights // BLOCK + 4) + 2 * 4 * 64 + 4
    assert narrow.state_bytes() < 0.27 * wide.state_bytes()
    assert set(narrow.state["up"]) == {"step", "exp_avg", "exp_avg_largest", "exp_avg_sq", "exp_avg_sq_largest"}
    assert narrow.state["scale"]["exp_avg"].dtype == torch.float32


def test_the_first_update_is_adamws() -> None:
    """Before anything was stored in 8 bits the two are the same computation."""
    a, b = Regression(), Regression()
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    for model, kind in ((a, MasterAdamW), (b, AdamW8bit)):
        optimiser = kind(model, 1e-2, (0.9, 0.95), 0.1)
        model(x).pow(2).mean().backward()
        optimiser.step(1.0, 0.0)
    for n, p in a.named_parameters():
        assert torch.allclose(p, b.get_parameter(n), rtol=1e-5, atol=1e-7), n
