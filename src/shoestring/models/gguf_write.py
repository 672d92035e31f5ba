"""A model folder → one GGUF file, laid out as llama.cpp's converter and quantiser lay it out.

`models.gguf` reads what this writes: the names of tensors are its names turned round. Tensors go from the folder to the
file one at a time. Which tensor gets which type in Q4_K_M: llama.cpp, src/llama-quant.cpp (docs/export.md says where this
differs).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shoestring.models import families, gguf, gguf_vocab, kquants, rope, shards
from shoestring.models.config import DecoderConfig
from shoestring.models.decoder import Decoder
from shoestring.models.folder import read_config
from shoestring.models.tokenizer import Tokenizer
from shoestring.records import UserError

KINDS = ("f16", "q8_0", "q4_k_m")
ARCH = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "smollm3": "smollm3", "gemma3": "gemma3"}
BIASED = ("llama", "qwen2")  # architectures in which llama.cpp adds biases
FALLBACK = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}
FILE_TYPE = {"f16": 1, "q8_0": 7, "q4_k_m": 15}  # llama_ftype
LARGEST_HALF = 65504.0
GEMMA_PERIOD = 6  # llama.cpp takes every sixth layer for a global one where the file does not say


@dataclass
class Written:
    """What went into the file. types: tensors by their type; fell_back: those whose rows a k-quant does not divide, by
    "wanted → got"; pre: the pre-tokenizer's name; notes: what the reader of the file should know, one line each."""

    path: Path
    bytes: int
    pre: str
    types: Counter[str] = field(default_factory=Counter)
    fell_back: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def write(folder: Path, path: Path, kind: str, name: str = "", licence: str = "") -> Written:
    """Write `folder` as `path`, atomically. kind: one of KINDS. UserError for what llama.cpp would compute otherwise."""
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise UserError("writing GGUF needs the gguf package: pip install 'shoestring[train]'") from None
    hf, where = read_config(folder), str(folder)
    family = families.find(hf, str(folder / "config.json"))
    config = family.config(hf, str(folder / "config.json"))
    arch = ARCH[config.family]
    tokenizer = Tokenizer(folder)
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    out = GGUFWriter(str(part), arch)
    done = Written(path, 0, "")
    try:
        _header(out, config, kind, name or folder.name, licence, done, where)
        done.pre = gguf_vocab.add(out, tokenizer, config.vocab, where)
        plan = list(_plan(family, config, arch, kind, done))
        _write_tensors(out, plan, shards.reader(folder), config, arch, done)
        part.rename(path)
    except OSError as e:
        raise UserError(f"{path}: could not be written ({e.strerror or e}); free space or choose another --out") from None
    finally:
        with suppress(OSError, AttributeError):
            out.close()
        part.unlink(missing_ok=True)
    done.bytes = path.stat().st_size
    return done


# the header


def _header(out: Any, c: DecoderConfig, kind: str, name: str, licence: str, done: Written, where: str) -> None:
    arch = ARCH[c.family]
    if (c.qkv_bias or c.out_bias or c.mlp_bias) and arch not in BIASED:
        raise UserError(f"{where}: llama.cpp's {arch} has no biases and this model has; export cannot keep what it computes")
    out.add_type("model")
    out.add_name(name)
    if licence:
        out.add_license(licence)
    out.add_file_type(FILE_TYPE[kind])
    out.add_quantization_version(2)
    out.add_block_count(c.layers)
    out.add_embedding_length(c.hidden)
    out.add_feed_forward_length(c.intermediate)
    out.add_head_count(c.heads)
    out.add_head_count_kv(c.kv_heads)
    out.add_key_length(c.head_dim)
    out.add_value_length(c.head_dim)
    out.add_layer_norm_rms_eps(c.norm_eps)
    out.add_vocab_size(c.vocab)
    out.add_rope_dimension_count(c.head_dim)
    out.add_rope_freq_base(c.ropes[0].theta)
    context = _rope(out, c, done, where)
    if arch == "gemma3":
        _gemma(out, c, where)
    elif any(c.windows):
        window = min(w for w in c.windows if w)
        if window < context:
            context = window
            done.notes.append(f"llama.cpp has no sliding window in {arch}: the context is cut to the window, {window} tokens")
    if arch == "smollm3" and c.rope_of != tuple(-1 if (i + 1) % 4 == 0 else 0 for i in range(c.layers)):
        raise UserError(f"{where}: llama.cpp leaves every fourth layer of smollm3 unrotated and this model others")
    if arch != "gemma3" and abs(c.attention_scale * c.head_dim**0.5 - 1) > 1e-6:
        raise UserError(f"{where}: an attention scale other than head_dim ** -0.5 has no place in a {arch} file")
    out.add_context_length(context)


def _rope(out: Any, c: DecoderConfig, done: Written, where: str) -> int:
    """The scaling's keys. Returns the context length, which dynamic scaling cuts to where it begins."""
    from gguf import RopeScalingType as Kind

    r = c.ropes[0]
    if r.kind == "dynamic":
        done.notes.append(f"llama.cpp has no dynamic rope scaling: the context is cut to the unscaled {r.original} tokens")
        return min(c.max_positions, r.original)
    if r.kind == "llama3" and ARCH[c.family] != "llama":
        raise UserError(f"{where}: llama.cpp reads llama3 rope scaling in the llama architecture only")
    if r.kind in ("linear", "yarn"):
        out.add_rope_scaling_type(Kind(r.kind))
        out.add_rope_scaling_factor(r.factor)
    if r.kind == "yarn":
        plain = rope.parse(
            {"rope_type": "yarn", "factor": r.factor, "original_max_position_embeddings": r.original}, r.theta, r.original,
            None, where,
        )  # fmt: skip
        if abs(plain.attention_factor - r.attention_factor) > 1e-6 or not r.truncate:
            raise UserError(f"{where}: YaRN with an attention factor or a ramp of its own is not what llama.cpp computes")
        out.add_rope_scaling_orig_ctx_len(r.original)
        if (r.fast, r.slow) != (plain.fast, plain.slow):
            out.add_rope_scaling_yarn_beta_fast(r.fast)
            out.add_rope_scaling_yarn_beta_slow(r.slow)
    return c.max_positions


def _gemma(out: Any, c: DecoderConfig, where: str) -> None:
    # llama.cpp knows the 27B by its 62 layers and scales its queries by hidden / heads
    width = c.hidden // c.heads if c.layers == 62 else c.head_dim
    if abs(c.attention_scale * width**0.5 - 1) > 1e-6:
        raise UserError(f"{where}: query_pre_attn_scalar is not the {width} that llama.cpp's gemma3 computes with")
    local = c.ropes[1]
    if local.kind != "default":
        raise UserError(f"{where}: rope scaling of the local layers has no place in a gemma3 file")
    slides = [w > 0 for w in c.windows] or [False] * c.layers
    period = next((i + 1 for i, s in enumerate(slides) if not s), c.layers + 1)
    turned = [0 if (i + 1) % period == 0 else 1 for i in range(c.layers)]
    if slides != [bool(t) for t in turned] or tuple(turned) != c.rope_of:
        raise UserError(f"{where}: local and global layers do not alternate with a period, which a gemma3 file needs")
    if any(slides):
        out.add_sliding_window(max(c.windows))
    if period != GEMMA_PERIOD and c.layers >= min(period, GEMMA_PERIOD):
        out.add_sliding_window_pattern(period)
    out.add_rope_freq_base_swa(local.theta)


# the tensors


@dataclass(frozen=True)
class Planned:
    """theirs: the Hugging Face name. shape: of rows and columns, or of one row."""

    name: str
    theirs: str
    shape: tuple[int, ...]
    type: str


def _gguf_name(theirs: str, arch: str) -> str:
    whole = {v: k for k, v in gguf.WHOLE.items()}
    if theirs in whole:
        return whole[theirs]
    kinds = {v: k for k, v in (gguf.GEMMA_LAYER if arch == "gemma3" else gguf.LAYER).items()}
    _, _, layer, rest = theirs.split(".", 3)  # model.layers.N.kind.weight
    kind, _, what = rest.rpartition(".")
    return f"blk.{layer}.{kinds[kind]}.{what}"


def _plan(family: Any, c: DecoderConfig, arch: str, kind: str, done: Written) -> Iterator[Planned]:
    with torch.device("meta"):  # names and shapes without a weight
        shapes = family.write(model := Decoder(c), dict(model.named_parameters()))
    for theirs, empty in shapes.items():
        name = _gguf_name(theirs, arch)
        wanted = wanted_type(name, kind, c.layers, c.tied) if empty.ndim == 2 else "F32"
        got = fitting_type(wanted, empty.shape[-1])
        if got != wanted:
            done.fell_back[f"{wanted} → {got}"] += 1
        done.types[got] += 1
        yield Planned(name, theirs, tuple(empty.shape), got)


def wanted_type(name: str, kind: str, layers: int, tied: bool) -> str:
    """The type of a matrix before its shape is looked at."""
    if kind != "q4_k_m":
        return kind.upper()
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return "Q6_K"
    if ".attn_v." in name or ".ffn_down." in name:
        i, eighth = int(name.split(".")[1]), layers // 8
        if i < eighth or i >= 7 * layers // 8 or (i - eighth) % 3 == 2:
            return "Q6_K"
        if layers == 80 and ".attn_v." in name:
            return "Q6_K"  # llama.cpp takes Q5_K in its 70B, which is not written here
    return "Q4_K"


def fitting_type(wanted: str, columns: int) -> str:
    """`wanted` where rows of so many columns are whole blocks of it, else the type that llama.cpp falls back on."""
    from gguf import GGML_QUANT_SIZES
    from gguf import GGMLQuantizationType as Type

    for kind in (wanted, FALLBACK.get(wanted, "F16"), "F16"):
        if columns % GGML_QUANT_SIZES[Type[kind]][0] == 0:
            return kind
    raise AssertionError("F16 has blocks of one")


def encode(w: np.ndarray, kind: str) -> np.ndarray:
    """fp32 values [rows, columns] as they are stored."""
    from gguf import GGMLQuantizationType as Type
    from gguf.quants import quantize

    if kind == "Q4_K":
        return kquants.q4_k(w)
    if kind == "Q6_K":
        return kquants.q6_k(w)
    return quantize(w, Type[kind])


def _permute(w: torch.Tensor, heads: int) -> torch.Tensor:
    """[heads * d, ...] from halves to the interleaved pairs of llama.cpp's rotary kernel."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, -1).transpose(1, 2).reshape(w.shape)


def _write_tensors(out: Any, plan: list[Planned], tensor: Any, c: DecoderConfig, arch: str, done: Written) -> None:
    from gguf import GGML_QUANT_SIZES
    from gguf import GGMLQuantizationType as Type

    factors = None
    if c.ropes[0].kind == "llama3":
        factors = rope.frequencies(rope.Rope(c.ropes[0].theta), c.head_dim) / rope.frequencies(c.ropes[0], c.head_dim)
        out.add_tensor_info("rope_freqs.weight", tuple(factors.shape), np.dtype(np.float32), 4 * factors.numel())
        done.types["F32"] += 1
    for p in plan:
        block, size = GGML_QUANT_SIZES[Type[p.type]]
        count = int(np.prod(p.shape))
        out.add_tensor_info(p.name, p.shape, np.dtype(np.float32), count // block * size, raw_dtype=Type[p.type])
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_ti_data_to_file()
    if factors is not None:
        out.write_tensor_data(factors.numpy())
    for p in plan:
        w = tensor(p.theirs).float()
        if tuple(w.shape) != p.shape:
            raise UserError(f"{p.theirs}: shape {tuple(w.shape)}, config.json says {p.shape}")
        side = p.name.split(".")[-2]
        if arch in gguf.PERMUTED and side in ("attn_q", "attn_k"):
            w = _permute(w, c.heads if side == "attn_q" else c.kv_heads)
        if arch == "gemma3" and p.name.endswith("norm.weight"):
            w = w + 1
        if p.type == "F16" and w.abs().max() > LARGEST_HALF:
            raise UserError(f"{p.theirs}: values up to {float(w.abs().max()):.3g} do not fit fp16; export q8_0 instead")
        out.write_tensor_data(encode(w.contiguous().numpy(), p.type))
