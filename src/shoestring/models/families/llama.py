"""Llama 2 and 3, SmolLM2 and every model stored as LlamaForCausalLM. Touvron et al. 2023; Grattafiori et al. 2024."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoestring.models.config import DecoderConfig
from shoestring.models.families import common

ARCHITECTURES = ("LlamaForCausalLM",)
read, write = common.read, common.write


def config(hf: Mapping[str, Any], where: str) -> DecoderConfig:
    """Translate config.json. UserError for a variant that would compute something else."""
    attention, mlp = bool(hf.get("attention_bias")), bool(hf.get("mlp_bias"))
    return common.config(hf, where, "llama", qkv_bias=attention, out_bias=attention, mlp_bias=mlp)
