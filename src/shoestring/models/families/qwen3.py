"""Qwen3 (dense): an RMS norm on every query and key head before rotation, no biases as released. Yang et al. 2025."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoestring.models.config import DecoderConfig
from shoestring.models.families import common

ARCHITECTURES = ("Qwen3ForCausalLM",)
read, write = common.read, common.write


def config(hf: Mapping[str, Any], where: str) -> DecoderConfig:
    """Translate config.json. UserError for a variant that would compute something else."""
    bias = bool(hf.get("attention_bias"))
    return common.config(hf, where, "qwen3", qk_norm=True, qkv_bias=bias, out_bias=bias)
