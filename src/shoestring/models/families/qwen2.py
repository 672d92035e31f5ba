"""Qwen2 and Qwen2.5: biases on q, k and v; later layers with a sliding window where `use_sliding_window` is on.

Yang et al. 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoestring.models.config import DecoderConfig
from shoestring.models.families import common

ARCHITECTURES = ("Qwen2ForCausalLM",)
read, write = common.read, common.write


def config(hf: Mapping[str, Any], where: str) -> DecoderConfig:
    """Translate config.json. UserError for a variant that would compute something else."""
    return common.config(hf, where, "qwen2", qkv_bias=True)
