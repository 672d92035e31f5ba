"""What a config.json leaves unsaid, family by family, and which keys a layer sees. Read by the plan and by the loader.

A hub config may omit a key whose value is the default of its class in transformers; these are those defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_QWEN = {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28, "max_position_embeddings": 32768}
DEFAULTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"max_position_embeddings": 2048},
    "MistralForCausalLM": {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131_072},
    "Qwen2ForCausalLM": _QWEN,
    "Qwen3ForCausalLM": _QWEN | {"head_dim": 128},
    "SmolLM3ForCausalLM": {
        "num_key_value_heads": 4, "tie_word_embeddings": True, "max_position_embeddings": 32768,
        "no_rope_layer_interval": 4,
    },
    "Gemma3ForCausalLM": {
        "num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True, "max_position_embeddings": 131_072,
        "sliding_window": 4096, "query_pre_attn_scalar": 256, "sliding_window_pattern": 6,
        "hidden_activation": "gelu_pytorch_tanh",
    },
}  # fmt: skip


def architecture(keys: Mapping[str, Any]) -> str:
    """The architecture that a config names first, or "" for none."""
    named = keys.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def completed(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config.json with its family's defaults for those that it does not have."""
    return {**DEFAULTS.get(architecture(keys), {}), **keys}


def rope_layers(keys: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """SmolLM3: which layers turn their heads (`no_rope_layers` holds 1 where they do). Yang et al. 2025 (NoPE)."""
    given = keys.get("no_rope_layers")
    if given is None:
        every = int(keys.get("no_rope_layer_interval") or 4)
        return tuple((i + 1) % every != 0 for i in range(layers))
    if not isinstance(given, list) or len(given) < layers:
        raise ValueError(f"no_rope_layers must list {layers} layers")
    return tuple(bool(x) for x in given[:layers])


def layer_windows(keys: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """Each layer's sliding window, 0 for full attention; () where no layer has one. ValueError for keys that disagree."""
    keys = completed(keys)
    family, window = architecture(keys).removesuffix("ForCausalLM"), keys.get("sliding_window")
    switched = family in ("Qwen2", "Qwen3", "SmolLM3")
    if not window or family not in ("Mistral", "Gemma3") and not (switched and keys.get("use_sliding_window")):
        return ()
    types = keys.get("layer_types")
    if family == "Mistral":
        slides = [True] * layers
    elif types is not None:
        if not isinstance(types, list) or len(types) != layers:
            raise ValueError(f"layer_types must list {layers} layers")
        slides = [t == "sliding_attention" for t in types]
    elif family == "Gemma3":
        slides = [(i + 1) % int(keys["sliding_window_pattern"]) != 0 for i in range(layers)]
    elif family == "SmolLM3":
        slides = [not turned for turned in rope_layers(keys, layers)]
    else:
        slides = [i >= int(keys["max_window_layers"]) for i in range(layers)]
    return tuple(int(window) if s else 0 for s in slides) if any(slides) else ()
