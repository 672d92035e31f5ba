"""Rotary tables against transformers' own functions, far out too, and what a config may and may not say."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'shoestring[train]'")

from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding  # noqa: E402

from shoestring.models.rope import Rope, angles, frequencies, parse  # noqa: E402
from shoestring.records import UserError  # noqa: E402

TABLES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 1024},
    "llama3": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 2048},
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLES)
def test_angles_are_transformers_to_the_last_bit(kind: str) -> None:
    """At 30,000 positions too, where one unit in the last place of a frequency is two milliradians."""
    config = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=4096, rope_parameters=dict(TABLES[kind])
    )
    theirs = LlamaRotaryEmbedding(config)
    rope = parse(TABLES[kind], 1e4, 4096, None, "config")
    for length in (8, 5000, 30000):
        positions = torch.arange(length - 8, length)
        lengths = torch.full((8,), length)
        cos, sin = angles(rope, frequencies(rope, 64), positions, lengths)
        c, s = theirs(torch.zeros(1), positions[None])
        assert torch.equal(cos, c[0, :, :32]) and torch.equal(sin, s[0, :, :32])


def test_dynamic_takes_each_rows_own_length() -> None:
    rope = Rope(1e4, "dynamic", factor=2.0, original=16)
    short = frequencies(rope, 8)
    positions = torch.tensor([5, 5, 40])
    cos, _ = angles(rope, short, positions, torch.tensor([10, 64, 64]))
    assert torch.equal(cos[0], (5 * short).cos())
    assert torch.equal(cos[1], (5 * frequencies(rope, 8, 64)).cos()) and not torch.equal(cos[0], cos[1])
    decoded, _ = angles(rope, short, positions, None)  # in decoding the row is the last of its sequence
    assert torch.equal(decoded[0], cos[0]) and torch.equal(decoded[2], (40 * frequencies(rope, 8, 41)).cos())


def test_spellings_old_and_new() -> None:
    assert parse({}, 1e5, 64, None, "c") == Rope(1e5)
    assert parse({"type": "linear", "factor": 2}, 1e4, 64, None, "c") == Rope(1e4, "linear", factor=2.0)
    beside = parse({"rope_type": "yarn", "factor": None}, 1e4, 4096, 1024, "c")
    assert beside.original == 1024 and beside.factor == 4.0 and beside.attention_factor == pytest.approx(1.1386, abs=1e-4)


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({"rope_type": "longrope"}, "'longrope' is not supported; known: default, linear, dynamic, yarn, llama3"),
        ({"rope_type": "linear"}, "'linear' lacks 'factor'"),
        ({"rope_type": "linear", "factor": "two"}, "two"),
        ({"rope_type": "linear", "factor": 0}, "positive"),
        ({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}, "high_freq_factor above"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_a_table_that_cannot_be_met_is_one_clear_line(table: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word) as e:
        parse(table, 1e4, 64, None, "config.json")
    assert str(e.value).startswith("config.json: ") and "\n" not in str(e.value)
