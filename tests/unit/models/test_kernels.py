"""The small operations against plain autograd: fp32 closely, float64 by gradcheck where they keep it, bf16 loosely."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

import torch.nn.functional as F  # noqa: E402

from shoestring.models.kernels import gate, norm_heads, rms_norm, rotate  # noqa: E402


def noise(*shape: int, seed: int = 0, dtype: Any = torch.float32) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain_norm(x: Any, weight: Any, eps: float) -> Any:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def plain_rotate(x: Any, cos: Any, sin: Any, turned: int, straight: int) -> Any:
    """transformers' apply_rotary_pos_emb: x * cos + rotate_half(x) * sin."""
    heads = x.view(x.shape[0], turned + straight, -1)
    half = heads.shape[-1] // 2
    c, s = (torch.cat((t, t), -1)[:, None] for t in (cos, sin))
    swapped = torch.cat((-heads[..., half:], heads[..., :half]), -1)
    out = torch.cat(((heads * c + swapped * s)[:, :turned], heads[:, turned:]), 1)
    return out.reshape(x.shape)


def plain_swiglu(x: Any) -> Any:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def plain_geglu(x: Any) -> Any:
    gate, up = x.chunk(2, -1)
    return F.gelu(gate, approximate="tanh") * up


def plain_norm_heads(x: Any, query: Any, key: Any, heads: int, kv_heads: int) -> Any:
    parts = x.view(x.shape[0], heads + 2 * kv_heads, -1)
    q, k, v = parts.split([heads, kv_heads, kv_heads], 1)
    return torch.cat((plain_norm(q, query, 1e-5), plain_norm(k, key, 1e-5), v), 1).reshape(x.shape)


def angles(rows: int, half: int, dtype: Any = torch.float32) -> tuple[Any, Any]:
    a = noise(rows, half, seed=9, dtype=dtype) * 3
    return a.cos(), a.sin()


def compare(ours: Any, twin: Any, inputs: list[Any], tolerance: float) -> None:
    """Values and gradients of `ours` on `inputs` against `twin` on their float64 copies."""
    a = [x.clone().requires_grad_() for x in inputs]
    b = [x.double().requires_grad_() for x in inputs]
    out, reference = ours(*a), twin(*b)
    assert out.dtype == inputs[0].dtype
    upstream = noise(*out.shape, seed=5, dtype=out.dtype)
    out.backward(upstream)
    reference.backward(upstream.double())
    for x, y in [(out, reference), *((p.grad, q.grad) for p, q in zip(a, b, strict=True))]:
        assert bool((x.double() - y).abs().max() <= tolerance * y.abs().max())
    with torch.no_grad():
        assert torch.allclose(ours(*inputs).double(), reference, atol=tolerance * float(reference.detach().abs().max()))


CASES = [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)]


@pytest.mark.parametrize(("dtype", "tolerance"), CASES, ids=str)
def test_rms_norm(dtype: Any, tolerance: float) -> None:
    inputs = [noise(17, 24, dtype=dtype) * 3, noise(24, seed=1, dtype=dtype) + 1]
    compare(lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: plain_norm(x, w, 1e-5), inputs, tolerance)


def test_rms_norm_feels_eps_and_survives_zeros() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    rms_norm(x, torch.ones(8), 1e-5).sum().backward()
    assert torch.isfinite(x.grad).all()
    small = noise(4, 8) * 1e-3
    assert not torch.allclose(rms_norm(small, torch.ones(8), 1e-5), rms_norm(small, torch.ones(8), 1e-8))


@pytest.mark.parametrize(("dtype", "tolerance"), CASES, ids=str)
@pytest.mark.parametrize(("turned", "straight"), [(3, 1), (4, 0), (1, 2)])
def test_rotate(dtype: Any, tolerance: float, turned: int, straight: int) -> None:
    cos, sin = angles(11, 4)
    narrow = (cos.to(dtype).double(), sin.to(dtype).double())  # the kernel rounds the angles to the input's type
    compare(
        lambda x: rotate(x, cos, sin, turned, straight),
        lambda x: plain_rotate(x, *narrow, turned, straight),
        [noise(11, (turned + straight) * 8, dtype=dtype)],
        tolerance,
    )


def test_rotate_keeps_lengths_and_leaves_the_rest() -> None:
    x = noise(9, 5 * 8)
    out = rotate(x, *angles(9, 4), 3, 2).view(9, 5, 8)
    assert torch.allclose(out.norm(dim=-1), x.view(9, 5, 8).norm(dim=-1), atol=1e-5)
    assert torch.equal(out[:, 3:], x.view(9, 5, 8)[:, 3:])


@pytest.mark.parametrize(("dtype", "tolerance"), CASES, ids=str)
def test_swiglu(dtype: Any, tolerance: float) -> None:
    compare(lambda x: gate(x, "silu"), plain_swiglu, [noise(13, 20, dtype=dtype) * 4], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), CASES, ids=str)
def test_geglu(dtype: Any, tolerance: float) -> None:
    compare(lambda x: gate(x, "gelu_tanh"), plain_geglu, [noise(13, 20, dtype=dtype) * 4], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), CASES, ids=str)
def test_norm_heads(dtype: Any, tolerance: float) -> None:
    compare(
        lambda x, q, k: norm_heads(x, q, k, 1e-5, 3, 2),
        lambda x, q, k: plain_norm_heads(x, q, k, 3, 2),
        [noise(11, 7 * 8, dtype=dtype) * 2, noise(8, seed=1, dtype=dtype) + 1, noise(8, seed=2, dtype=dtype) + 1],
        tolerance,
    )


def test_gradcheck_in_float64() -> None:
    """rms_norm computes in fp32 by design, so it is compared above instead."""
    cos, sin = angles(3, 2, torch.float64)
    x = noise(3, 12, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: rotate(y, cos, sin, 2, 1), (x,))
    assert all(torch.autograd.gradcheck(lambda x, a=a: gate(x, a), (x,)) for a in ("silu", "gelu_tanh"))


def test_the_decoder_is_made_of_them(tiny_decoder: Any, relative: Any) -> None:
    """One layer, written out with the plain twins, against Decoder.logits."""
    from shoestring.records import Document

    model = tiny_decoder(layers=1, tied=False)
    c, ids = model.config, torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    (block,) = model.blocks
    x = model.embedding[ids]
    qkv = plain_norm(x, block.attention_norm, c.norm_eps) @ block.qkv.T
    qkv = plain_rotate(qkv, *model.rope(torch.arange(8)), c.heads + c.kv_heads, c.kv_heads).view(8, -1, c.head_dim)
    q, k, v = qkv.split([c.heads, c.kv_heads, c.kv_heads], 1)
    k, v = (t.repeat_interleave(c.group, 1).transpose(0, 1) for t in (k, v))
    s = (q.transpose(0, 1) @ k.transpose(1, 2)) / c.head_dim**0.5
    s = s.masked_fill(torch.ones(8, 8).triu(1).bool(), float("-inf"))
    x = x + (s.softmax(-1) @ v).transpose(0, 1).reshape(8, -1) @ block.out.T
    x = x + plain_swiglu(plain_norm(x, block.mlp_norm, c.norm_eps) @ block.gate_up.T) @ block.down.T
    logits = plain_norm(x, model.norm, c.norm_eps) @ model.head.T
    assert relative(model.logits(ids, torch.arange(8), [Document(0, 8)]), logits) < 1e-5
