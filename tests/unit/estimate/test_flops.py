"""FLOPs against sums written out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.estimate.flops import (
    ModelShape,
    attention_flops,
    decode_flops,
    flops_per_token,
    forward_flops,
    generation_flops,
    seen,
    training_flops,
)  # fmt: skip

SMOL = ModelShape(30, 576, 9, 3, 64, 1536, 49152, True)
SHAPES = st.builds(
    lambda layers, hidden, kv, share, dim, inter, vocab, tied, window: ModelShape(
        layers, hidden, kv * share, kv, dim, inter, vocab, tied, (window,) * (layers - 1) + (0,)
    ),
    *[st.integers(1, 40)] * 7, st.booleans(), st.integers(0, 30),
)  # fmt: skip


def test_parameters_of_known_models() -> None:
    assert SMOL.parameters() == 134_515_008
    # Qwen2.5-0.5B: 24 · (896 + 2 · 128) are q, k and v biases
    assert ModelShape(24, 896, 14, 2, 64, 4864, 151936, True, extra=24 * (896 + 2 * 128)).parameters() == 494_032_768
    llama = ModelShape(32, 4096, 32, 8, 128, 14336, 128256, False)  # Llama-3-8B
    assert llama.parameters() == 8_030_261_248


def test_one_token_by_hand() -> None:
    shape = ModelShape(1, 2, 2, 1, 3, 5, 7, True)
    matmul = 2 * (2 * 6 + 2 * 3 + 2 * 3 + 6 * 2 + 3 * 2 * 5 + 7 * 2)
    assert forward_flops(shape, [1]) == matmul + 4 * 6 * 1
    assert forward_flops(shape, [3]) == 3 * matmul + 4 * 6 * (1 + 2 + 3)
    assert forward_flops(shape, [3], head_tokens=0) == 3 * (matmul - 2 * 7 * 2) + 4 * 6 * 6


def test_published_count_of_smollm2() -> None:
    # 0.83 GFLOP a token forward and backward was counted beside the measured tokens/s
    assert flops_per_token(SMOL, 200, training=True) == pytest.approx(0.83e9, rel=0.02)


@given(SHAPES, st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_packing_adds_nothing_and_training_is_three_forwards(shape: ModelShape, lengths: list[int]) -> None:
    assert forward_flops(shape, lengths) == pytest.approx(sum(forward_flops(shape, [n]) for n in lengths))
    assert training_flops(shape, lengths) == 3 * forward_flops(shape, lengths)
    assert forward_flops(shape, lengths) <= forward_flops(shape, [sum(lengths)])
    n = lengths[0]
    assert flops_per_token(shape, n) * n == pytest.approx(forward_flops(shape, [n]))


@given(SHAPES, st.integers(1, 40), st.integers(1, 40), st.integers(1, 8))
def test_generation_is_prefill_plus_each_decoded_token(shape: ModelShape, prompt: int, new: int, group: int) -> None:
    steps = sum(decode_flops(shape, prompt + i) for i in range(1, new))
    expected = forward_flops(shape, [prompt], head_tokens=1) + group * steps
    assert generation_flops(shape, prompt, new, group) == pytest.approx(expected)
    assert generation_flops(shape, prompt, 0) == 0


def test_attention_counts_the_causal_half() -> None:
    full = 4 * SMOL.layers * SMOL.q_width * 1000 * 1000
    assert attention_flops(SMOL, 0, 1000) == pytest.approx(full / 2, rel=2e-3)


@given(st.integers(0, 80), st.integers(0, 30))
def test_keys_seen_by_counting(length: int, window: int) -> None:
    assert seen(length, window) == sum(min(i, window) if window else i for i in range(1, length + 1))


def test_a_window_caps_what_a_token_sees() -> None:
    gemma = ModelShape(6, 8, 2, 1, 4, 16, 11, True, (4, 4, 4, 4, 4, 0))
    full = ModelShape(6, 8, 2, 1, 4, 16, 11, True)
    assert forward_flops(gemma, [4]) == forward_flops(full, [4])
    saved = 4 * 8 * 5 * sum(max(0, i - 4) for i in range(1, 21))
    assert forward_flops(full, [20]) - forward_flops(gemma, [20]) == saved
    assert decode_flops(full, 20) - decode_flops(gemma, 20) == 4 * 8 * 5 * 16


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="layers"):
        ModelShape(0, 1, 1, 1, 1, 1, 1, True)
    with pytest.raises(ValueError, match="cannot share"):
        ModelShape(1, 1, 3, 2, 1, 1, 1, True)
    with pytest.raises(ValueError, match="must name 2 layers"):
        ModelShape(2, 1, 1, 1, 1, 1, 1, True, (4,))
