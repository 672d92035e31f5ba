"""Gemma 3, text: local and global layers with their own rotary tables, norms around each sublayer, scaled embeddings.

Gemma Team 2025. Norm weights are stored as w and used as 1 + w; our parameter holds 1 + w.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from shoestring.estimate.variants import completed
from shoestring.models.config import DecoderConfig
from shoestring.models.families import common
from shoestring.models.rope import Rope
from shoestring.records import UserError

ARCHITECTURES = ("Gemma3ForCausalLM",)
read, write = partial(common.read, norm_offset=1.0), partial(common.write, norm_offset=1.0)


def _ropes(keys: Mapping[str, Any], where: str) -> tuple[Rope, Rope]:
    """(global, local). Scaling is the global table's; the older spelling has two bases and one `rope_scaling`."""
    tables = keys.get("rope_parameters") or {}
    full = {**(tables.get("full_attention") or {}), **(keys.get("rope_scaling") or {})}
    local = tables.get("sliding_attention") or {}
    return (
        common.make_rope(keys, full, float(keys.get("rope_theta") or 1_000_000.0), where),
        common.make_rope(keys, local, float(keys.get("rope_local_base_freq") or 10_000.0), where),
    )


def config(hf: Mapping[str, Any], where: str) -> DecoderConfig:
    """Translate config.json. UserError for a variant that would compute something else, such as soft-capped logits."""
    keys = completed(hf)
    for key in ("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"):
        if keys.get(key):
            raise UserError(f"{where}: {key} = {keys[key]} is not supported; the gemma3 family has it off")
    try:
        layers = int(keys["num_hidden_layers"])
        types = keys.get("layer_types")
        pattern = int(keys["sliding_window_pattern"])
        local = [types[i] == "sliding_attention" if types else (i + 1) % pattern != 0 for i in range(layers)]
        scale, width = float(keys["query_pre_attn_scalar"]) ** -0.5, float(keys["hidden_size"]) ** 0.5
    except KeyError as missing:
        raise UserError(f"{where}: config.json lacks {missing}") from None
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as e:
        raise UserError(f"{where}: a size in config.json makes no sense ({e})") from None
    bias = bool(keys.get("attention_bias"))
    return common.config(
        hf, where, "gemma3", qkv_bias=bias, out_bias=bias, qk_norm=True, post_norms=True,
        ropes=_ropes(keys, where), rope_of=tuple(int(x) for x in local), attention_scale=scale, embedding_scale=width,
    )  # fmt: skip
