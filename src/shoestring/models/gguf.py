"""GGUF → a Hugging Face folder, once, in the cache.

The `gguf` package dequantises; the tokenizer and chat template come through transformers' own GGUF reader. llama.cpp
stores q and k rows interleaved for its rotary kernel; they are put back in halves order here.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from shoestring.estimate.machine import cache_folder
from shoestring.records import UserError, content_hash

NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _hf_name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    parts = name.split(".")  # blk.N.kind.weight
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in NAMES and parts[3] == "weight":  # a bias has no place
        return f"model.layers.{parts[1]}.{NAMES[parts[2]]}.weight"
    raise UserError(f"GGUF tensor {name} has no place in a llama model")


def _unpermute(w: torch.Tensor, heads: int) -> torch.Tensor:
    """[heads * d, hidden] from interleaved pairs to halves."""
    return w.view(heads, w.shape[0] // heads // 2, 2, w.shape[1]).transpose(1, 2).reshape(w.shape)


def convert(path: Path, folder: Path) -> Path:
    """Dequantise `path` into `folder` (fp32 safetensors, config.json, tokenizer). Atomic: renamed when whole."""
    try:
        from gguf import GGUFReader
        from gguf.quants import dequantize
    except ImportError:
        raise UserError("reading GGUF needs the gguf package: pip install 'shoestring[train]'") from None
    try:
        reader = GGUFReader(str(path))
    except (OSError, ValueError, IndexError) as e:
        raise UserError(f"{path}: not a readable GGUF file ({e})") from None

    def value(key: str, default: Any = None) -> Any:
        field = reader.get_field(key)
        return default if field is None else field.contents()

    arch = value("general.architecture")
    if arch != "llama":
        raise UserError(f"{path}: GGUF architecture {arch!r} is not supported; families: llama")
    scaling = value("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise UserError(f"{path}: rope scaling {scaling!r} is not supported yet; use a model with default rope")
    heads = int(value("llama.attention.head_count"))
    kv_heads = int(value("llama.attention.head_count_kv", heads))
    tensors: dict[str, torch.Tensor] = {}
    for t in reader.tensors:
        w = torch.from_numpy(dequantize(t.data, t.tensor_type).copy())
        name = _hf_name(t.name)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            w = _unpermute(w, heads if name.endswith("q_proj.weight") else kv_heads)
        tensors[name] = w.contiguous()
    hidden = int(value("llama.embedding_length"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": int(value("llama.feed_forward_length")),
        "num_hidden_layers": int(value("llama.block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": int(value("llama.attention.key_length", hidden // heads)),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": float(value("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": float(value("llama.rope.freq_base", 10000.0)),
        "vocab_size": int(tensors["model.embed_tokens.weight"].shape[0]),
        "max_position_embeddings": int(value("llama.context_length")),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "pad_token_id": value("tokenizer.ggml.padding_token_id"),
        "dtype": "float32",
    }
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tokenizer.save_pretrained(str(part))
    except (OSError, SafetensorError) as e:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(f"{part}: the converted model could not be written ({e}); set SHOESTRING_CACHE") from None
    try:
        part.rename(folder)
    except OSError:  # another process finished first
        shutil.rmtree(part, ignore_errors=True)
    return folder


def cached_folder(path: Path) -> Path:
    """The converted folder of a GGUF file, converting it on first use."""
    stat = path.stat()
    key = content_hash(path.name, str(stat.st_size), "1")
    folder = cache_folder() / "models" / f"{path.stem}-{key}"
    return folder if (folder / "config.json").exists() else convert(path, folder)
