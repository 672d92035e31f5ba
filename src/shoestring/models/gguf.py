"""GGUF → a Hugging Face folder, once, in the cache.

The `gguf` package dequantises; the tokenizer and chat template come through transformers' own GGUF reader. What
llama.cpp's converter changed is undone: q and k rows interleaved for its rotary kernel go back to halves order, Gemma's
1 + w norms to w, Llama 3's frequency factors to the parameters that they were made from.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from shoestring.estimate.machine import cache_folder
from shoestring.models import families, rope, shards
from shoestring.records import UserError, content_hash

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",  # Mistral and SmolLM2 are stored under this name too
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
PERMUTED = ("llama", "smollm3")  # llama.cpp's converter interleaves the rows of q and k in these
WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA_LAYER = LAYER | {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
Value = Callable[..., Any]


def _hf_name(name: str, arch: str) -> str:
    if name in WHOLE:
        return WHOLE[name]
    kinds = GEMMA_LAYER if arch == "gemma3" else LAYER
    parts = name.split(".")  # blk.N.kind.weight
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in kinds and parts[3] in ("weight", "bias"):
        return f"model.layers.{parts[1]}.{kinds[parts[2]]}.{parts[3]}"
    raise UserError(f"GGUF tensor {name} has no place in a {arch} model")


def _unpermute(w: torch.Tensor, heads: int) -> torch.Tensor:
    """[heads * d, ...] from interleaved pairs to halves."""
    return w.view(heads, w.shape[0] // heads // 2, 2, -1).transpose(1, 2).reshape(w.shape)


def _reader(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError("reading GGUF needs the gguf package: pip install 'shoestring[train]'") from None
    try:
        return GGUFReader(str(path))
    except (OSError, ValueError, IndexError) as e:
        raise UserError(f"{path}: not a readable GGUF file ({e})") from None


def read_config(reader: Any, where: Path) -> dict[str, Any]:
    """config.json of the model in an open GGUF file. UserError for what none of the families computes."""

    def value(key: str, default: Any = None) -> Any:
        field = reader.get_field(key)
        return default if field is None else field.contents()

    arch = value("general.architecture")
    if arch not in ARCHITECTURES:
        raise UserError(f"{where}: GGUF architecture {arch!r} is not supported; known: {', '.join(sorted(ARCHITECTURES))}")

    def own(key: str, default: Any = ...) -> Any:
        found = value(f"{arch}.{key}", None if default is ... else default)
        if found is None and default is ...:
            raise UserError(f'{where}: the GGUF header lacks "{arch}.{key}"')
        if isinstance(found, list) and key != "attention.sliding_window_pattern":
            if len(set(found)) != 1:
                raise UserError(f"{where}: {arch}.{key} differs from layer to layer, which no family here has")
            return found[0]
        return found

    names = {t.name: t for t in reader.tensors}
    if "token_embd.weight" not in names:
        raise UserError(f"{where}: a GGUF without token_embd.weight")
    heads, hidden = int(own("attention.head_count")), int(own("embedding_length"))
    head_dim = int(own("attention.key_length", hidden // heads))
    if int(own("rope.dimension_count", head_dim)) != head_dim:
        raise UserError(f"{where}: rotary embedding of part of a head is not supported")
    if int(own("attention.value_length", head_dim)) != head_dim:
        raise UserError(f"{where}: values of another width than keys are not supported")
    biased = {n.split(".")[2] for n in names if n.endswith(".bias")}
    if ("attn_q" in biased) != (arch == "qwen2" or "attn_output" in biased) or (arch == "qwen2" and "attn_output" in biased):
        raise UserError(
            f"{where}: these attention biases ({', '.join(sorted(biased)) or 'none'}) are not those of a {arch} model"
        )
    config = {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": "gemma3_text" if arch == "gemma3" else arch,
        "hidden_size": hidden,
        "intermediate_size": int(own("feed_forward_length")),
        "num_hidden_layers": int(own("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(own("attention.head_count_kv", heads)),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "attention_bias": "attn_output" in biased,
        "mlp_bias": "ffn_down" in biased,
        "rms_norm_eps": float(own("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(own("rope.freq_base", 10000.0)),
        "vocab_size": int(names["token_embd.weight"].shape[1]),
        "max_position_embeddings": int(own("context_length")),
        "tie_word_embeddings": "output.weight" not in names,
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "pad_token_id": value("tokenizer.ggml.padding_token_id"),
        "dtype": "float32",
    }
    if scaling := _scaling(own, names, config, where):
        config["rope_scaling"] = scaling
    if arch in ("qwen2", "qwen3"):
        config["use_sliding_window"] = False  # llama.cpp reads no window for these
    elif arch == "gemma3":
        config |= _gemma(own, config)
    return config


def _scaling(own: Value, names: dict[str, Any], config: dict[str, Any], where: Path) -> dict[str, Any] | None:
    """`rope_scaling` for config.json, from the header's keys or from the table of Llama 3's factors."""
    kind = own("rope.scaling.type", "linear")  # llama.cpp's default, which a factor of one makes none
    factor = float(own("rope.scaling.factor", own("rope.scale_linear", 0.0)) or 1.0)
    for key, plain in (("attn_factor", 1.0), ("yarn_ext_factor", 1.0), ("yarn_attn_factor", 1.0), ("yarn_log_multiplier", 0.0)):
        if float(own(f"rope.scaling.{key}", plain)) != plain:
            raise UserError(f"{where}: rope.scaling.{key} is not supported; use the model's safetensors")
    if "rope_freqs.weight" in names:
        return _llama3(torch.from_numpy(names["rope_freqs.weight"].data.copy()).float(), config, where)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        made = {"rope_type": "yarn", "factor": factor}
        made["original_max_position_embeddings"] = int(own("rope.scaling.original_context_length"))
        for theirs, ours in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
            if (given := own(f"rope.scaling.{theirs}", None)) is not None:
                made[ours] = float(given)
        return made
    raise UserError(f"{where}: rope scaling {kind!r} is not supported; known: linear, yarn, llama3")


def _llama3(factors: torch.Tensor, config: dict[str, Any], where: Path) -> dict[str, Any] | None:
    """The llama3 parameters whose factors these are [head_dim / 2]; as released the bounds are 1 and 4 over 8,192."""
    if bool((factors == 1).all()):
        return None
    made = rope.Rope(config["rope_theta"], "llama3", factor=float(factors.max()), original=8192)
    plain = rope.frequencies(rope.Rope(made.theta), config["head_dim"])
    if factors.shape != plain.shape or not torch.allclose(
        plain / rope.frequencies(made, config["head_dim"]), factors, rtol=1e-3
    ):
        raise UserError(f"{where}: rope_freqs.weight is no table of Llama 3's rope scaling; use the model's safetensors")
    return {
        "rope_type": "llama3", "factor": round(made.factor, 4), "low_freq_factor": made.low, "high_freq_factor": made.high,
        "original_max_position_embeddings": made.original,
    }  # fmt: skip


def _gemma(own: Value, config: dict[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    pattern = own("attention.sliding_window_pattern", 6)
    slides = pattern if isinstance(pattern, list) else [(i + 1) % int(pattern) != 0 for i in range(layers)]
    # llama.cpp knows the 27B by its depth: its queries are scaled by hidden / heads, the others' by the head's width
    scalar = config["hidden_size"] // config["num_attention_heads"] if layers == 62 else config["head_dim"]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window": int(own("attention.sliding_window")),
        "layer_types": ["sliding_attention" if s else "full_attention" for s in slides],
        "rope_theta": float(own("rope.freq_base", 1_000_000.0)),
        "rope_local_base_freq": float(own("rope.freq_base_swa", 10_000.0)),
        "final_logit_softcapping": own("final_logit_softcapping", None) or None,
        "attn_logit_softcapping": own("attn_logit_softcapping", None) or None,
    }


def tensors(reader: Any, config: dict[str, Any], where: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(Hugging Face name, fp32 tensor) of an open GGUF file, one at a time."""
    found = Lookup(reader, config, where)
    for name in found.names:
        yield name, found(name)


class Lookup:
    """Hugging Face name → fp32 tensor of an open GGUF file, dequantised when it is asked for. `names` in the file's order."""

    def __init__(self, reader: Any, config: dict[str, Any], where: Path) -> None:
        self.config, self.where = config, where
        self.arch = next(a for a, name in ARCHITECTURES.items() if name in config["architectures"])
        kept = [t for t in reader.tensors if t.name != "rope_freqs.weight" and ".attn_rot_embd" not in t.name]
        self._stored = {_hf_name(t.name, self.arch): t for t in kept}
        self.names = list(self._stored)

    def __call__(self, name: str) -> torch.Tensor:
        from gguf.quants import dequantize

        if name not in self._stored:
            raise UserError(f"{self.where}: the tensor for {name} is missing from the file")
        t = self._stored[name]
        try:
            w = torch.from_numpy(dequantize(t.data, t.tensor_type).copy())
        except NotImplementedError:
            raise UserError(f"{self.where}: {t.name} is stored as {t.tensor_type.name}, which cannot be read here") from None
        side = name.split(".")[-2]
        if self.arch in PERMUTED and side in ("q_proj", "k_proj"):
            w = _unpermute(w, self.config["num_attention_heads" if side == "q_proj" else "num_key_value_heads"])
        if self.arch == "gemma3" and name.endswith("norm.weight"):
            w = w - 1
        return w.contiguous()


def _tokenizer(path: Path) -> Any:
    """transformers' own reading of the file's vocabulary, merges and template."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except ValueError:  # an architecture that its model loader does not list (smollm3); the vocabulary is plain
        pass
    try:
        return PreTrainedTokenizerFast.from_pretrained(str(path.parent), gguf_file=path.name)
    except (OSError, ValueError, KeyError) as e:
        raise UserError(f"{path}: no usable tokenizer in the file ({str(e).splitlines()[0]})") from None


def convert(path: Path, folder: Path) -> Path:
    """Dequantise `path` into `folder` (fp32 safetensors, config.json, tokenizer). Atomic: renamed when whole."""
    reader = _reader(path)
    config = read_config(reader, path)
    families.find(config, str(path)).config(config, str(path))  # refuses a variant before the work
    tokenizer = _tokenizer(path)
    part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        shards.write(part, tensors(reader, config, path))
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tokenizer.save_pretrained(str(part))
    except (OSError, SafetensorError) as e:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(f"{part}: the converted model could not be written ({e}); set SHOESTRING_CACHE") from None
    except UserError:
        shutil.rmtree(part, ignore_errors=True)
        raise
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
