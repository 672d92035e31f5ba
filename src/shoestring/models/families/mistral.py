"""Mistral 7B and its like: Llama's layout, every layer with one sliding window where the config names it.

Jiang et al. 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoestring.models.config import DecoderConfig
from shoestring.models.families import common

ARCHITECTURES = ("MistralForCausalLM",)
read, write = common.read, common.write


def config(hf: Mapping[str, Any], where: str) -> DecoderConfig:
    """Translate config.json. UserError for a variant that would compute something else."""
    return common.config(hf, where, "mistral")
