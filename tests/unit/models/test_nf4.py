"""NF4 against its definition, its bounds, and bitsandbytes where that can be imported."""

from __future__ import annotations

import copy
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from shoestring.models import lora, nf4  # noqa: E402
from shoestring.records import Document, UserError  # noqa: E402

TOKENS = torch.randint(0, 61, (15,), generator=torch.Generator().manual_seed(3))
PACK = (TOKENS, torch.arange(15), [Document(0, 15)])


def slow(weight: Any, block: int = 64) -> Any:
    """Without double quantisation: the nearest level of each weight, by comparing with all of them."""
    out = torch.empty(weight.numel())
    flat = weight.reshape(-1).float()
    for i in range(0, flat.numel(), block):
        part = flat[i : i + block]
        most = part.abs().max()
        level = (part[:, None] / most.clamp(min=1e-38) - nf4.CODE).abs().argmin(1)
        out[i : i + block] = nf4.CODE[level] * most
    return out.view(weight.shape)


def test_levels_are_the_papers_quantiles() -> None:
    """Appendix E: 8 quantiles of the negative half and 9 of the positive, zero shared, over the largest."""
    offset = 0.5 * (1 - 1 / 32 + 1 - 1 / 30)
    upper = [NormalDist().inv_cdf(offset + (0.5 - offset) * i / 8) for i in range(8)]
    lower = [-NormalDist().inv_cdf(offset + (0.5 - offset) * i / 7) for i in range(7)]
    made = torch.tensor(sorted([0.0, *upper, *lower])) / upper[0]
    assert torch.allclose(made.float(), nf4.CODE, atol=2e-6)
    assert len(set(nf4.LEVELS)) == 16 and list(nf4.LEVELS) == sorted(nf4.LEVELS)


@pytest.mark.parametrize("shape", [(64, 128), (5, 40), (3, 7), (1, 1), (700, 640)])
def test_single_quantisation_is_the_nearest_level(shape: tuple[int, int]) -> None:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    back = nf4.dequantise(nf4.quantise(w, double=False))
    assert back.shape == w.shape and torch.allclose(back, slow(w), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 40), columns=st.integers(1, 50), power=st.integers(-12, 6),
    spread=st.floats(0.0, 4.0), double=st.booleans(),
)  # fmt: skip
def test_the_error_is_bounded(seed: int, rows: int, columns: int, power: int, spread: float, double: bool) -> None:
    """Half the widest gap between levels times the block's magnitude, and the magnitude's own error."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=g) * 10.0**power * torch.exp(spread * torch.randn(rows, 1, generator=g))
    q = nf4.quantise(w, double=double)
    most = torch.nn.functional.pad(w.reshape(-1), (0, -w.numel() % 64)).view(-1, 64).abs().amax(1)
    gap = float((nf4.CODE[1:] - nf4.CODE[:-1]).max()) / 2
    slack = torch.zeros_like(most)
    if double:
        assert q.outer is not None
        outer = q.outer.repeat_interleave(nf4.OUTER)[: most.numel()]
        slack = outer * 0.9 / 64 / 2  # half the widest gap of the dynamic type
        assert bool(((nf4.magnitudes(q) - most).abs() <= slack * 1.001 + 1e-6 * most).all())
    bound = (most * gap * 1.001 + slack * 1.001 + 1e-30).repeat_interleave(64)[: w.numel()].view(w.shape)
    assert bool(((nf4.dequantise(q) - w).abs() <= bound).all())


def test_zeros_stay_zeros_and_odd_input_is_refused() -> None:
    assert not nf4.dequantise(nf4.quantise(torch.zeros(8, 64))).any()
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not finite"):
            nf4.quantise(torch.tensor([[1.0, bad]]))
    with pytest.raises(ValueError, match="even"):
        nf4.quantise(torch.ones(2, 2), block=7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_value_is_rounded_once(dtype: Any) -> None:
    q = nf4.quantise(torch.randn(300, 2048, generator=torch.Generator().manual_seed(1)).to(dtype))  # several chunks
    assert torch.equal(nf4.dequantise(q, dtype), nf4.dequantise(q).to(dtype))


@pytest.mark.parametrize(("shape", "double", "bits"), [((2048, 2048), True, 4.127), ((2048, 2048), False, 4.5)])
def test_bits_a_weight_by_counting_bytes(shape: tuple[int, int], double: bool, bits: float) -> None:
    q = nf4.quantise(torch.randn(shape), double=double)
    held = (q.packed, q.absmax, q.outer, q.mean)
    stored = sum(t.untyped_storage().nbytes() for t in held if t is not None)  # no hidden larger buffer behind a view
    assert stored == q.bytes() and round(8 * stored / (shape[0] * shape[1]), 3) == bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(96, 128), (576, 1536), (31, 66)])
def test_codes_and_values_are_those_of_bitsandbytes(shape: tuple[int, int], dtype: Any) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes: pip install 'shoestring[test]'")
    w = (torch.randn(shape, generator=torch.Generator().manual_seed(4)) * 0.05).to(dtype)
    n = w.numel()
    assert torch.equal(functional.get_4bit_type("nf4", device="cpu"), nf4.CODE)
    assert torch.equal(functional.create_dynamic_map(), nf4.DYNAMIC)
    for double in (False, True):
        q = nf4.quantise(w, double=double)
        codes, state = functional.quantize_4bit(w, quant_type="nf4", blocksize=64, compress_statistics=double)
        assert torch.equal(q.packed[: (n + 1) // 2], codes.view(-1))
        theirs = functional.dequantize_4bit(codes, state)
        assert theirs.dtype == dtype
        if double:  # its CPU kernel misses the nearest of the 256 levels now and then; ours never does
            outer = state.state2.absmax
            assert torch.equal(q.mean, state.offset) and torch.equal(q.outer, outer)
            exact = nf4.magnitudes(nf4.quantise(w, double=False))
            hers = nf4.Quantised(q.packed, state.absmax, outer, state.offset, q.shape, q.block)
            apart = (q.absmax.int() - state.absmax.int()).abs()
            assert int(apart.max()) <= 1 and float(apart.float().mean()) <= 0.01
            ours_off, theirs_off = ((nf4.magnitudes(x) - exact).abs() for x in (q, hers))
            assert bool((ours_off <= theirs_off + 1e-7).all())
            q = hers
        tight = 1e-6 if dtype == torch.float32 else 2**-8  # it may round the block's magnitude to bf16 first
        back = nf4.dequantise(q, dtype)
        assert float((back.float() - theirs.float()).abs().max() / theirs.float().abs().max()) <= tight


def test_a_quantised_model_is_the_plain_one_with_dequantised_weights(
    tiny_decoder: Callable[..., Any], relative: Callable[..., float]
) -> None:
    model, plain = tiny_decoder(qkv_bias=True), tiny_decoder(qkv_bias=True)
    weights = sum(getattr(b, n).numel() for b in plain.blocks for n in lora.FUSED)
    done = nf4.quantise_model(model)
    held = sum(b.numel() * b.element_size() for n, b in model.named_buffers() if n.startswith("blocks"))
    assert done == {"matrices": 8, "weights": weights, "bytes": held}
    assert not any(n.endswith(tuple(lora.FUSED)) for n, _ in model.named_parameters())
    with torch.no_grad():
        for b, p in zip(model.blocks, plain.blocks, strict=True):
            for n in lora.FUSED:
                getattr(p, n).copy_(getattr(b, n).dequantise(torch.float32))
    assert torch.equal(model.weight(model.blocks[0], "qkv"), plain.blocks[0].qkv)
    ours, theirs = model.logits(*PACK), plain.logits(*PACK)
    assert relative(ours, theirs) <= 1e-5
    ours.square().mean().backward()
    theirs.square().mean().backward()
    for name, p in model.named_parameters():  # norms, biases, embedding: the gradient to x went through every matrix
        assert relative(p.grad, plain.get_parameter(name).grad) <= 1e-5, name
    with pytest.raises(ValueError, match="quantised already"):
        nf4.quantise_model(model)


def test_casting_and_copying_keep_the_codes(tiny_decoder: Callable[..., Any]) -> None:
    model = tiny_decoder()
    nf4.quantise_model(model)
    before = model.blocks[0].down.dequantise(torch.float32)
    for other in (copy.deepcopy(model).to(torch.bfloat16), copy.deepcopy(model).half().float()):
        assert torch.equal(other.blocks[0].down.dequantise(torch.float32), before)
        assert other.blocks[0].down.dtype == other.embedding.dtype == model.weight(other.blocks[0], "down").dtype
        assert other.blocks[0].adapters["down"] is other.blocks[0].adapted["down"]
    single = nf4.Nf4Matrix(nf4.quantise(torch.randn(8, 64), double=False), torch.float32).bfloat16()
    assert single.absmax.dtype == torch.float32 and single.dtype == torch.bfloat16


def test_the_backward_pass_keeps_no_dense_matrix(tiny_decoder: Callable[..., Any]) -> None:
    model = tiny_decoder()
    nf4.quantise_model(model)
    lora.attach(model, lora.LoraConfig(2, 4.0), seed=1)
    kept: list[tuple[int, ...]] = []

    def keep(t: Any) -> Any:
        kept.append(tuple(t.shape))
        return t

    x = torch.randn(7, 24, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model.project(model.blocks[0], "gate_up", x).sum().backward()
    assert kept and (80, 24) not in kept and x.grad is not None


def test_damaged_weights_are_named(tiny_decoder: Callable[..., Any]) -> None:
    model = tiny_decoder()
    with torch.no_grad():
        model.blocks[1].out[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"blocks\.1\.out: weights that are not finite"):
        nf4.quantise_model(model)


@pytest.mark.parametrize("quantised", [False, True], ids=["dense", "nf4"])
def test_recomputed_activations_give_the_same_gradients(quantised: bool, tiny_decoder: Callable[..., Any]) -> None:
    from functools import partial

    from torch.utils.checkpoint import checkpoint

    def gradients(wrap: Any) -> list[Any]:
        model = tiny_decoder()
        if quantised:
            nf4.quantise_model(model)
        own = lora.attach(model, lora.LoraConfig(2, 4.0), seed=1)
        model.wrap = wrap
        model.logits(*PACK).square().mean().backward()
        return [p.grad for p in own.values()]

    plain, again = gradients(None), gradients(lambda f: partial(checkpoint, f, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True)) and any(g.any() for g in plain)
