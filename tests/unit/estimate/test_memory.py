"""Bytes by part, against sums written out by hand."""

from __future__ import annotations

from shoestring.estimate.flops import ModelShape
from shoestring.estimate.memory import decoding_bytes, kv_cache_bytes, rollout_training_bytes, training_bytes

SMOL = ModelShape(30, 576, 9, 3, 64, 1536, 49152, True)
STATES = ("master weights", "moments", "gradients", "compute copy")


def test_states_are_eighteen_bytes_a_weight() -> None:
    parts = training_bytes(SMOL, 2048)
    assert sum(parts[k] for k in STATES) == 18 * SMOL.parameters()
    assert parts["logits"] == 8 * 1024 * 49152
    assert training_bytes(SMOL, 100)["logits"] == 8 * 100 * 49152


def test_activations_grow_with_tokens_and_shrink_with_checkpointing() -> None:
    one, two = training_bytes(SMOL, 1000)["activations"], training_bytes(SMOL, 2000)["activations"]
    assert two == 2 * one == 2 * 1000 * 30 * (2 * (4 * 576 + 3 * 576 + 3 * 192 + 4 * 1536) + 4 * 9)
    assert training_bytes(SMOL, 1000, checkpointing=True)["activations"] < one / 7


def test_kv_cache() -> None:
    assert kv_cache_bytes(SMOL, 1) == 2 * 30 * 3 * 64 * 2  # 23,040 bytes a token
    assert decoding_bytes(SMOL, 32, 128)["kv cache"] == kv_cache_bytes(SMOL, 4096)
    parts = rollout_training_bytes(SMOL, 2048, 32, 128)
    assert parts["kv cache"] == kv_cache_bytes(SMOL, 4096) and set(STATES) < set(parts)


def test_the_quickstart_fits_under_six_gib() -> None:
    assert sum(rollout_training_bytes(SMOL, 2048, 64, 256).values()) < 6 * 2**30
