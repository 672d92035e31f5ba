"""SmolLM3: Llama's layout, every fourth layer without rotary embedding (NoPE). Bakouch et al. 2025 (the model's report)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoestring.estimate.variants import completed, rope_layers
from shoestring.models.config import DecoderConfig
from shoestring.models.families import common
from shoestring.records import UserError

ARCHITECTURES = ("SmolLM3ForCausalLM",)
read, write = common.read, common.write


def config(hf: Mapping[str, Any], where: str) -> DecoderConfig:
    """Translate config.json. UserError for a variant that would compute something else."""
    try:
        turned = rope_layers(completed(hf), int(hf["num_hidden_layers"]))
    except KeyError as missing:
        raise UserError(f"{where}: config.json lacks {missing}") from None
    except (TypeError, ValueError) as e:
        raise UserError(f"{where}: {e}") from None
    attention, mlp = bool(hf.get("attention_bias")), bool(hf.get("mlp_bias"))
    return common.config(
        hf, where, "smollm3", theta=2_000_000.0, qkv_bias=attention, out_bias=attention, mlp_bias=mlp,
        rope_of=tuple(0 if t else -1 for t in turned),
    )  # fmt: skip
