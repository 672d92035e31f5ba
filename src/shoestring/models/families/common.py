"""What the families share: sizes out of config.json, and the layout of transformers' Llama-like classes.

Source of the layout: transformers (separate q, k, v and gate, up projections, biases beside them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from shoestring.estimate.variants import completed, layer_windows
from shoestring.models import rope
from shoestring.models.config import DecoderConfig
from shoestring.models.decoder import Decoder
from shoestring.records import UserError

PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def config(hf: Mapping[str, Any], where: str, family: str, theta: float = 10000.0, **more: Any) -> DecoderConfig:
    """The DecoderConfig of a config.json. theta: the family's rotary base where the file names none; more: its variants.

    UserError for a missing key, for sizes that make no sense and for a variant that would compute something else.
    """
    keys = completed(hf)
    activation = keys.get("hidden_activation") or keys.get("hidden_act") or "silu"
    if activation not in ACTIVATIONS:
        raise UserError(f"{where}: hidden_act = {activation!r} is not supported; known: {', '.join(ACTIVATIONS)}")
    try:
        layers, positions = int(keys["num_hidden_layers"]), int(keys["max_position_embeddings"])
        hidden, heads = int(keys["hidden_size"]), int(keys["num_attention_heads"])
        more = {"windows": layer_windows(keys, layers)} | more
        if "ropes" not in more:
            more["ropes"] = (one_rope(keys, theta, where),)
        return DecoderConfig(
            family=family,
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=int(keys.get("num_key_value_heads") or heads),
            head_dim=int(keys.get("head_dim") or hidden // heads),
            intermediate=int(keys["intermediate_size"]),
            vocab=int(keys["vocab_size"]),
            norm_eps=float(keys.get("rms_norm_eps", 1e-6)),
            rope_theta=more["ropes"][0].theta,
            tied=bool(keys.get("tie_word_embeddings", False)),
            max_positions=positions,
            activation=ACTIVATIONS[activation],
            **more,
        )
    except KeyError as missing:
        raise UserError(f"{where}: config.json lacks {missing}") from None
    except (TypeError, ValueError, ZeroDivisionError) as e:
        raise UserError(f"{where}: a size in config.json makes no sense ({e})") from None


def one_rope(keys: Mapping[str, Any], theta: float, where: str) -> rope.Rope:
    """The rotary table of a family that has one. `rope_scaling`, the older spelling, wins as it does in transformers."""
    table = keys.get("rope_scaling") or keys.get("rope_parameters") or {}
    if any(isinstance(v, Mapping) for v in table.values()):
        raise UserError(f"{where}: rope parameters by layer type are not supported in this family")
    return make_rope(keys, table, float(keys.get("rope_theta") or theta), where)


def make_rope(keys: Mapping[str, Any], table: Mapping[str, Any], theta: float, where: str) -> rope.Rope:
    """A rotary table from its parameters and the positions that `keys` name."""
    if keys.get("partial_rotary_factor"):
        table = {"partial_rotary_factor": keys["partial_rotary_factor"], **table}
    original = keys.get("original_max_position_embeddings")
    return rope.parse(table, theta, int(keys["max_position_embeddings"]), original, where)


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
        if c.post_norms:
            yield us + "attention_post_norm", hf + "post_attention_layernorm.weight", (c.hidden,)
            yield us + "mlp_norm", hf + "pre_feedforward_layernorm.weight", (c.hidden,)
            yield us + "mlp_post_norm", hf + "post_feedforward_layernorm.weight", (c.hidden,)
        else:
            yield us + "mlp_norm", hf + "post_attention_layernorm.weight", (c.hidden,)
        if c.qk_norm:
            yield us + "query_norm", hf + "self_attn.q_norm.weight", (c.head_dim,)
            yield us + "key_norm", hf + "self_attn.k_norm.weight", (c.head_dim,)
        for name, parts, rows, bias in (
            ("qkv", "self_attn.{q,k,v}_proj", (q, kv, kv), c.qkv_bias),
            ("out", "self_attn.{o}_proj", (c.hidden,), c.out_bias),
            ("gate_up", "mlp.{gate,up}_proj", (c.intermediate,) * 2, c.mlp_bias),
            ("down", "mlp.{down}_proj", (c.hidden,), c.mlp_bias),
        ):
            before, rest = parts.split("{")
            each, after = rest.split("}")
            full = [hf + before + x + after for x in each.split(",")]
            yield us + name, ";".join(f"{x}.weight" for x in full), rows
            if bias:
                yield f"{us}{name}_bias", ";".join(f"{x}.bias" for x in full), rows


def read(model: Decoder, tensor: Callable[[str], torch.Tensor], norm_offset: float = 0.0) -> None:
    """Fill `model` from HF tensors given by name. norm_offset: what the files leave out of every norm's weight."""
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
                part.copy_(source.float() + norm_offset if norm_offset and ours.endswith("norm") else source)
                start += count


def write(model: Decoder, source: Mapping[str, torch.Tensor], norm_offset: float = 0.0) -> dict[str, torch.Tensor]:
    """HF tensors from ours (a mapping by our parameter names, any dtype), contiguous, one copy each."""
    out: dict[str, torch.Tensor] = {}
    for ours, theirs, rows in _pieces(model.config):
        whole = source[ours].detach()
        if norm_offset and ours.endswith("norm"):
            whole = (whole.float() - norm_offset).to(whole.dtype)
        for name, part in zip(theirs.split(";"), whole.split(list(rows)), strict=True):
            out[name] = part.clone()
    return out
