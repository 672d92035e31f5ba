"""Llama 2 and 3, SmolLM2 and every model stored as LlamaForCausalLM without biases.

Source of the layout: transformers' Llama classes (separate q, k, v and gate, up projections).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from shoestring.models.config import DecoderConfig
from shoestring.models.decoder import Decoder
from shoestring.records import UserError

ARCHITECTURES = ("LlamaForCausalLM",)
PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def config(hf: Mapping[str, Any], where: str) -> DecoderConfig:
    """Translate config.json. UserError for a variant that would compute something else."""
    for key in ("attention_bias", "mlp_bias"):
        if hf.get(key):
            raise UserError(f"{where}: {key} = true is not supported by the llama family yet")
    if hf.get("hidden_act", "silu") != "silu":
        raise UserError(f"{where}: hidden_act = {hf['hidden_act']!r} is not supported; the llama family has silu")
    rope = hf.get("rope_parameters") or {}
    scaling = hf.get("rope_scaling") or {}
    kind = rope.get("rope_type") or scaling.get("rope_type") or scaling.get("type") or "default"
    if kind != "default":
        raise UserError(f"{where}: rope scaling {kind!r} is not supported yet; use a model with default rope")
    try:
        hidden, heads = int(hf["hidden_size"]), int(hf["num_attention_heads"])
        return DecoderConfig(
            family="llama",
            layers=int(hf["num_hidden_layers"]),
            hidden=hidden,
            heads=heads,
            kv_heads=int(hf.get("num_key_value_heads") or heads),
            head_dim=int(hf.get("head_dim") or hidden // heads),
            intermediate=int(hf["intermediate_size"]),
            vocab=int(hf["vocab_size"]),
            norm_eps=float(hf.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta") or hf.get("rope_theta") or 10000.0),
            tied=bool(hf.get("tie_word_embeddings", False)),
            max_positions=int(hf.get("max_position_embeddings", 2048)),
        )
    except KeyError as missing:
        raise UserError(f"{where}: config.json lacks {missing}") from None
    except (TypeError, ValueError, ZeroDivisionError) as e:
        raise UserError(f"{where}: a size in config.json makes no sense ({e})") from None


def _pieces(c: DecoderConfig) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Our parameter, the HF tensors that make it (stacked by rows), and their row counts."""
    yield "embedding", "model.embed_tokens.weight", (c.vocab,)
    yield "norm", "model.norm.weight", (c.hidden,)
    if not c.tied:
        yield "head", "lm_head.weight", (c.vocab,)
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    for i in range(c.layers):
        us, hf = f"blocks.{i}.", f"model.layers.{i}."
        yield us + "attention_norm", hf + "input_layernorm.weight", (c.hidden,)
        yield us + "mlp_norm", hf + "post_attention_layernorm.weight", (c.hidden,)
        at = hf + "self_attn.{}_proj.weight"
        yield us + "qkv", ";".join(at.format(x) for x in "qkv"), (q, kv, kv)
        yield us + "out", at.format("o"), (c.hidden,)
        mlp = hf + "mlp.{}_proj.weight"
        yield us + "gate_up", f"{mlp.format('gate')};{mlp.format('up')}", (c.intermediate,) * 2
        yield us + "down", mlp.format("down"), (c.hidden,)


def read(model: Decoder, tensor: Callable[[str], torch.Tensor]) -> None:
    """Fill `model` from HF tensors given by name."""
    with torch.no_grad():
        for ours, theirs, rows in _pieces(model.config):
            target = model.get_parameter(ours)
            start = 0
            for name, count in zip(theirs.split(";"), rows, strict=True):
                source = tensor(name)
                part = target[start : start + count]
                if source.dtype not in PLAIN:
                    raise UserError(f"{name}: stored as {source.dtype}; quantised weights need their plain copy")
                if tuple(source.shape) != tuple(part.shape):
                    raise UserError(f"{name}: shape {tuple(source.shape)}, config.json says {tuple(part.shape)}")
                part.copy_(source)
                start += count


def write(model: Decoder, source: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """HF tensors from ours (a mapping by our parameter names, any dtype), contiguous, one copy each."""
    out: dict[str, torch.Tensor] = {}
    for ours, theirs, rows in _pieces(model.config):
        for name, part in zip(theirs.split(";"), source[ours].detach().split(list(rows)), strict=True):
            out[name] = part.clone()
    return out
