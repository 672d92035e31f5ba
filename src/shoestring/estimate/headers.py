"""A model's sizes from its headers: config.json, safetensors or GGUF. Reads no weights; a GGUF takes about 20 ms.

GGUF is documented at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: magic, version, counts, then key-value
pairs, then one entry a tensor. The vocabulary and the merges are 98,000 strings in the middle, which are skipped
length by length.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from pathlib import Path
from typing import Any

from shoestring.estimate.flops import ModelShape
from shoestring.estimate.locate import locate
from shoestring.estimate.variants import completed, layer_windows
from shoestring.records import UserError

# GGUF value types: code → struct format of a scalar
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_U64 = struct.Struct("<Q")
# tensors beyond Llama's matrices and norms, by the ends of their names
_EXTRA = (".bias", "q_norm.weight", "k_norm.weight", "pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight")
_EXTRA_GGUF = (".bias", "attn_q_norm.weight", "attn_k_norm.weight", "post_attention_norm.weight", "post_ffw_norm.weight")


def model_shape(base: str) -> ModelShape:
    """The sizes of the model that `base` names (see `locate`). Raises UserError for a folder without weights, for
    headers that cannot be read and for families whose keys are unlike those of `models.families`."""
    path = locate(base)
    return shape_of_folder(path) if path.is_dir() else shape_of_gguf(path)


def shape_of_folder(folder: Path) -> ModelShape:
    """From config.json and the weights' headers, else from the folder's only .gguf."""
    safetensors = sorted(folder.glob("*.safetensors"))
    ggufs = sorted(folder.glob("*.gguf"))
    if not safetensors and not ggufs:
        raise UserError(f"{folder}: model folder without weights (no .safetensors and no .gguf in it)")
    config = folder / "config.json"
    if not config.is_file():
        if not ggufs:
            raise UserError(f"{folder}: model folder without config.json")
        if len(ggufs) > 1:
            raise UserError(f"{folder}: {len(ggufs)} .gguf files; name one of them, as in {ggufs[0]}")
        return shape_of_gguf(ggufs[0])
    try:
        keys = json.loads(config.read_bytes())
    except (OSError, ValueError) as e:
        raise UserError(f"{config}: cannot be read: {getattr(e, 'strerror', None) or e}") from None
    if not isinstance(keys, dict):
        raise UserError(f"{config}: not a table of keys")

    filled = completed(keys)

    def number(key: str, default: int | None = None) -> int:
        value = filled.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f'{config}: "{key}" is {"missing" if value is None else f"{value!r}, not a whole number"}')
        return value

    heads, hidden = number("num_attention_heads"), number("hidden_size")
    tied = keys.get("tie_word_embeddings")
    tensors = {name: shape for f in safetensors for name, shape in safetensors_shapes(f).items()}
    if tied is None:  # the default differs from family to family: the weights know
        tied = not any(name.endswith("lm_head.weight") for name in tensors)
    layers = number("num_hidden_layers")
    try:
        windows = layer_windows(keys, layers)
    except (TypeError, ValueError, ZeroDivisionError) as e:
        raise UserError(f"{config}: {e}") from None
    return _shape(
        str(config),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        head_dim=number("head_dim", hidden // max(heads, 1)),
        intermediate=number("intermediate_size"),
        vocab=number("vocab_size"),
        tied=bool(tied),
        windows=windows,
        extra=sum(math.prod(shape) for name, shape in tensors.items() if name.endswith(_EXTRA)),
    )


def _shape(where: str, **sizes: Any) -> ModelShape:
    try:
        return ModelShape(**sizes)
    except ValueError as e:
        raise UserError(f"{where}: {e}") from None


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of the tensors in a safetensors file, from its header. Raises UserError for a file that is not one."""
    try:
        with path.open("rb") as f:
            (length,) = _U64.unpack(f.read(8))
            if length > path.stat().st_size:
                raise ValueError("header longer than the file")
            entries = json.loads(f.read(length))
            return {k: tuple(int(n) for n in v["shape"]) for k, v in entries.items() if k != "__metadata__"}
    except (OSError, ValueError, TypeError, AttributeError, KeyError, struct.error) as e:
        raise UserError(f"{path}: not a readable safetensors file: {getattr(e, 'strerror', None) or e}") from None


def shape_of_gguf(path: Path) -> ModelShape:
    """From a GGUF header. The head is tied where the file has no `output.weight`."""
    keys, tensors = gguf_header(path)
    family = keys.get("general.architecture", "")

    def number(key: str, default: int | None = None) -> int:
        value = keys.get(f"{family}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f'{path}: the GGUF header lacks "{family}.{key}"')
        return value

    if not tensors:
        raise UserError(f"{path}: a GGUF without weights")
    hidden, heads = number("embedding_length"), number("attention.head_count")
    layers = number("block_count")
    window = keys.get(f"{family}.attention.sliding_window")
    windows: tuple[int, ...] = ()
    if window and family == "gemma3":  # the one architecture here for which llama.cpp reads the window
        pattern = keys.get("gemma3.attention.sliding_window_pattern", 6)
        pattern = 6 if pattern == layers else pattern  # an array, one entry a layer, is given as its length
        windows = tuple(0 if (i + 1) % pattern == 0 else int(window) for i in range(layers))
    return _shape(
        str(path),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=number("attention.head_count_kv", heads),
        head_dim=number("attention.key_length", hidden // max(heads, 1)),
        intermediate=number("feed_forward_length"),
        vocab=number("vocab_size", keys.get("tokenizer.ggml.tokens", 0)),
        tied="output.weight" not in tensors,
        windows=windows,
        extra=sum(math.prod(shape) for name, shape in tensors.items() if name.endswith(_EXTRA_GGUF)),
    )


def gguf_header(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """(key-value pairs, tensors' shapes with the fastest axis first) of a GGUF file; an array is given as its length.

    Raises UserError for a file that is not a GGUF of version 2 or 3 or that ends inside its header.
    """
    try:
        with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse_gguf(data)
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {(e.strerror or str(e)).lower()}") from None
    except (ValueError, struct.error, KeyError, OverflowError) as e:  # struct.error: the file ends inside the header
        said = "ends inside its header" if isinstance(e, struct.error) else str(e).strip("'")
        raise UserError(f"{path}: not a readable GGUF: {said}") from None


def _parse_gguf(data: mmap.mmap) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    u64 = _U64.unpack_from
    if data[:4] != b"GGUF":
        raise ValueError("no GGUF magic")
    version, tensor_count, key_count = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, 3):
        raise ValueError(f"version {version}")
    at = 24

    def string() -> str:
        nonlocal at
        (n,) = u64(data, at)
        if n > len(data) - at - 8:
            raise struct.error
        raw = data[at + 8 : at + 8 + n]
        at += 8 + n
        return raw.decode("utf-8", "replace")

    def value(kind: int, depth: int = 0) -> Any:
        nonlocal at
        if kind == _STRING:
            return string()
        if kind != _ARRAY:
            if kind not in _SCALARS:
                raise ValueError(f"value type {kind}")
            (made,) = struct.unpack_from("<" + _SCALARS[kind], data, at)
            at += struct.calcsize("<" + _SCALARS[kind])
            return made
        inner, count = struct.unpack_from("<IQ", data, at)
        at += 12
        if inner == _STRING:
            here = at  # a local: this loop runs 98,000 times
            for _ in range(count):
                here += 8 + u64(data, here)[0]
            at = here
        elif inner == _ARRAY:
            if depth > 3:
                raise ValueError("arrays nested too deeply")
            for _ in range(count):
                value(_ARRAY, depth + 1)
        elif inner in _SCALARS:
            at += count * struct.calcsize("<" + _SCALARS[inner])
        else:
            raise ValueError(f"value type {inner}")
        if at > len(data):
            raise struct.error
        return count

    keys: dict[str, Any] = {}
    for _ in range(key_count):
        name = string()
        (kind,) = struct.unpack_from("<I", data, at)
        at += 4
        keys[name] = value(kind)
    tensors: dict[str, tuple[int, ...]] = {}
    for _ in range(tensor_count):
        name = string()
        (axes,) = struct.unpack_from("<I", data, at)
        if axes > 8:
            raise ValueError(f"a tensor of {axes} axes")
        tensors[name] = struct.unpack_from(f"<{axes}Q", data, at + 4)
        at += 4 + 8 * axes + 12  # then its type (u32) and its offset (u64)
    return keys, tensors
