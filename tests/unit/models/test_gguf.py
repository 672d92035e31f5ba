"""GGUF in: every architecture and tensor type, against the weights that the file was written from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'shoestring[train]'")
np = pytest.importorskip("numpy", reason="needs numpy: pip install 'shoestring[train]'")
package = pytest.importorskip("gguf", reason="needs the gguf package: pip install 'shoestring[train]'")

import gguf_models  # noqa: E402
from gguf import GGMLQuantizationType as T  # noqa: E402
from gguf.quants import dequantize, quantize  # noqa: E402

from shoestring.estimate.headers import model_shape  # noqa: E402
from shoestring.models import folder, gguf, rope  # noqa: E402
from shoestring.models.tokenizer import Tokenizer  # noqa: E402
from shoestring.records import Document, UserError  # noqa: E402

VOCAB = 272
FAMILIES = [f for f in gguf_models.CLASSES if f != "mistral"]  # whose files say llama
IDS = torch.randint(0, VOCAB, (30,), generator=torch.Generator().manual_seed(7))


def hf_model(arch: str, hidden: int = 64, **more: Any) -> Any:
    """A random model of this file's vocabulary; Gemma's has two layers of each kind."""
    layers = {"num_hidden_layers": 4, "sliding_window_pattern": 2} if arch == "gemma3" else {}
    return gguf_models.random_model(arch, hidden, **({"vocab_size": VOCAB} | layers | more))


def interleaved(w: Any, heads: int) -> Any:
    """Rows of each head from (first halves, second halves) to pairs, as llama.cpp's converter does."""
    rows = w.reshape(heads, 2, -1, *w.shape[1:])
    return rows.transpose(1, 2).reshape(w.shape)


def stored_name(name: str, arch: str) -> str:
    norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    if arch == "gemma3":
        norms |= {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
                  "post_feedforward_layernorm": "post_ffw_norm"}  # fmt: skip
    for theirs, ours in {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", **norms,
    }.items():  # fmt: skip
        name = name.replace(theirs, ours)
    return name


def write(
    path: Path, arch: str, model: Any, kind: Any = T.F32, keys: dict[str, Any] | None = None, more: dict[str, Any] | None = None
) -> Path:
    """A GGUF file of the model, laid out as llama.cpp's converter does; matrices in `kind`, the rest in F32."""
    c = model.config
    out = package.GGUFWriter(str(path), arch)
    header: dict[str, Any] = {
        "block_count": c.num_hidden_layers, "context_length": c.max_position_embeddings, "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size, "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads, "attention.key_length": c.head_dim,
        "attention.layer_norm_rms_epsilon": c.rms_norm_eps,
    }  # fmt: skip
    if arch == "gemma3":
        header |= {"attention.sliding_window": c.sliding_window, "attention.sliding_window_pattern": 2, "rope.freq_base": 1e6}
    else:
        header |= {"rope.freq_base": c.rope_parameters["rope_theta"]}
    for key, value in (header | (keys or {})).items():
        add = out.add_string if isinstance(value, str) else out.add_float32 if isinstance(value, float) else out.add_uint32
        add(f"{arch}.{key}", value)
    vocabulary(out, arch)
    for name, tensor in model.named_parameters():
        w = tensor.detach()
        if arch in ("llama", "smollm3") and name.split(".")[-2] in ("q_proj", "k_proj"):
            w = interleaved(w, c.num_attention_heads if "q_proj" in name else c.num_key_value_heads)
        if arch == "gemma3" and name.endswith("norm.weight"):
            w = w + 1
        if w.ndim == 2 and kind != T.F32:
            out.add_tensor(stored_name(name, arch), quantize(w.numpy(), kind), raw_dtype=kind)
        else:
            out.add_tensor(stored_name(name, arch), w.numpy())
    for name, value in (more or {}).items():
        out.add_tensor(name, value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def vocabulary(out: Any, arch: str) -> None:
    """Three special tokens, 256 bytes, a few letters and pairs: byte-level BPE, for Gemma sentencepiece's BPE."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    special = ["<pad>", "<start>", "<end>"]
    if arch == "gemma3":
        tokens = [*special, "<unk>", *(f"<0x{i:02X}>" for i in range(256)), *"then\u2581", "i", "th", "he", "in"]
        types = [3, 3, 3, 2, *[6] * 256, *[1] * (VOCAB - 260)]
        tokens += [f"filler{i}" for i in range(VOCAB - len(tokens))]
        out.add_tokenizer_model("llama")
        out.add_token_scores([-float(i) for i in range(VOCAB)])
        out.add_unk_token_id(3)
        out.add_add_space_prefix(False)
    else:
        pairs = ["th", "he", "in", "an", "on"]
        tokens = [*special, *bytes_to_unicode().values(), *pairs]
        tokens += [f"filler{i}" for i in range(VOCAB - len(tokens))]
        types = [3, 3, 3, *[1] * (VOCAB - 3)]
        out.add_tokenizer_model("gpt2")
        out.add_tokenizer_pre("qwen2")
        out.add_token_merges([f"{t[0]} {t[1]}" for t in pairs])
    out.add_token_list(tokens)
    out.add_token_types(types)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_pad_token_id(0)
    out.add_chat_template("{% for m in messages %}<start>{{ m.content }}<end>{% endfor %}")


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model.logits(IDS, torch.arange(len(IDS)), [Document(0, len(IDS))])


def theirs(model: Any) -> Any:
    with torch.no_grad():
        return model(IDS[None]).logits[0]


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_architecture_gives_the_logits_of_its_transformers_class(arch: str, tmp_path: Path, relative: Any) -> None:
    model = hf_model(arch)
    path = write(tmp_path / "m.gguf", arch, model)
    made = gguf.convert(path, tmp_path / "made")
    ours = folder.load(made)
    assert ours.config.family == arch
    assert relative(logits(ours), theirs(model)) <= 1e-5
    again = transformers.AutoModelForCausalLM.from_pretrained(made, attn_implementation="eager")
    assert relative(theirs(again), theirs(model)) <= 1e-6
    shape, other = model_shape(str(path)), model_shape(str(made))
    assert shape == other and shape.parameters() == sum(p.numel() for p in model.parameters())
    tokenizer = Tokenizer(made)
    talk = tokenizer.chat([{"role": "user", "content": "the inn"}])
    assert talk[0] == 1 and talk[-1] == 2 and tokenizer.end == 2 and tokenizer.decode(talk) == "the inn"
    assert len(talk) == 2 + 5, "th e _ in n"


def test_a_turn_ends_where_the_template_ends_it(tmp_path: Path) -> None:
    """Gemma's sequences end in another token than its turns."""
    from transformers import PreTrainedTokenizerFast

    made = gguf.convert(write(tmp_path / "m.gguf", "gemma3", hf_model("gemma3", num_hidden_layers=1)), tmp_path / "made")
    inner = PreTrainedTokenizerFast.from_pretrained(made)
    inner.eos_token = "<pad>"
    inner.save_pretrained(made)
    assert Tokenizer(made).end == 2
    inner.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    inner.save_pretrained(made)
    assert Tokenizer(made).end == 0, "nothing after the answer: the end of the sequence"


@pytest.mark.parametrize("kind", [T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1], ids=lambda t: t.name)
def test_tensor_types_give_the_dequantised_weights(kind: Any, tmp_path: Path) -> None:
    """Quantisation goes along the rows, so it commutes with the order of the rows."""
    model = hf_model("llama")
    path = write(tmp_path / "m.gguf", "llama", model, kind)
    reader = gguf._reader(path)
    found = dict(gguf.tensors(reader, gguf.read_config(reader, path), path))
    assert set(found) == {n for n, _ in model.named_parameters()}
    for name, p in model.named_parameters():
        w = p.detach().numpy()
        expected = dequantize(quantize(w, kind), kind) if w.ndim == 2 else w
        assert np.array_equal(found[name].numpy(), expected), name


def pack_q4_k(w: Any) -> tuple[Any, Any]:
    """(bytes, the values that they stand for): blocks of 256 in eight parts of 32, w = d · s · q - m · t."""
    parts = w.reshape(-1, 8, 32)
    low, high = np.minimum(parts.min(-1), 0), np.maximum(parts.max(-1), 0)
    step, shift = (high - low) / 15, -low
    d, m = (np.float16(x.max(-1) / 63).astype(np.float32) for x in (step, shift))
    s = np.clip(np.round(step / d[:, None]), 1, 63).astype(np.uint8)
    t = np.clip(np.round(shift / np.maximum(m[:, None], 1e-9)), 0, 63).astype(np.uint8)
    scale, offset = d[:, None] * s, m[:, None] * t
    q = np.clip(np.round((parts + offset[..., None]) / scale[..., None]), 0, 15).astype(np.uint8)
    scales = np.concatenate(
        [s[:, :4] | (s[:, 4:] >> 4) << 6, t[:, :4] | (t[:, 4:] >> 4) << 6, (s[:, 4:] & 15) | (t[:, 4:] & 15) << 4], axis=1
    )
    nibbles = (q[:, 0::2] | q[:, 1::2] << 4).reshape(-1, 128)
    halves = [x.astype(np.float16)[:, None].view(np.uint8) for x in (d, m)]
    raw = np.concatenate([*halves, scales, nibbles], axis=1).astype(np.uint8)
    return raw.reshape(w.shape[0], -1), (scale[..., None] * q - offset[..., None]).reshape(w.shape).astype(np.float32)


def pack_q6_k(w: Any) -> tuple[Any, Any]:
    """Likewise: sixteen parts of 16, w = d · s · (q - 32)."""
    parts = w.reshape(-1, 16, 16)
    step = np.abs(parts).max(-1) / 31
    d = np.float16(step.max(-1) / 127).astype(np.float32)
    s = np.clip(np.round(step / d[:, None]), 1, 127).astype(np.int8)
    scale = d[:, None] * s
    q = (np.clip(np.round(parts / scale[..., None]), -32, 31) + 32).astype(np.uint8)
    quarter = q.reshape(-1, 2, 4, 32)
    low = np.concatenate([quarter[:, :, :2] & 15 | (quarter[:, :, 2:] & 15) << 4], axis=2).reshape(-1, 128)
    high = np.bitwise_or.reduce([(quarter[:, :, i] >> 4) << 2 * i for i in range(4)]).reshape(-1, 64)
    raw = np.concatenate([low, high, s.view(np.uint8), d.astype(np.float16)[:, None].view(np.uint8)], axis=1).astype(np.uint8)
    return raw.reshape(w.shape[0], -1), (scale[..., None] * (q.astype(np.float32) - 32)).reshape(w.shape).astype(np.float32)


@pytest.mark.parametrize(("kind", "pack"), [(T.Q4_K, pack_q4_k), (T.Q6_K, pack_q6_k)], ids=["Q4_K", "Q6_K"])
def test_k_quants(kind: Any, pack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a Q4_K_M file mixes. The gguf package reads these and does not write them."""
    import sys

    monkeypatch.setattr(sys.modules[__name__], "quantize", lambda w, kind: pack(w)[0])
    model = hf_model("qwen2", hidden=256, num_hidden_layers=1)
    path = write(tmp_path / "m.gguf", "qwen2", model, kind)
    reader = gguf._reader(path)
    for name, tensor in gguf.tensors(reader, gguf.read_config(reader, path), path):
        w = model.get_parameter(name).detach().numpy()
        expected = pack(w)[1] if w.ndim == 2 else w
        assert np.allclose(tensor.numpy(), expected, rtol=1e-5, atol=1e-6), name
        assert w.ndim == 1 or np.abs(expected - w).max() < 0.1, "the packer keeps the values"


def test_linear_and_yarn_scaling(tmp_path: Path, relative: Any) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
    keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}
    for arch, table, header in (
        ("qwen2", yarn, keys),
        ("llama", {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, {"rope.scaling.factor": 2.0}),
    ):
        model = hf_model(arch, rope_parameters=table)
        made = gguf.convert(write(tmp_path / f"{arch}.gguf", arch, model, keys=header), tmp_path / arch)
        assert relative(logits(folder.load(made)), theirs(model)) <= 1e-5


def test_llama3_scaling_is_read_from_its_table_of_factors(tmp_path: Path, relative: Any) -> None:
    table = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 8192}  # fmt: skip
    model = hf_model("llama", rope_parameters=table, max_position_embeddings=16384)
    scaled = rope.frequencies(rope.Rope(5e5, "llama3", factor=32.0, original=8192), 16)
    factors = (rope.frequencies(rope.Rope(5e5), 16) / scaled).numpy()
    path = write(tmp_path / "m.gguf", "llama", model, more={"rope_freqs.weight": factors})
    ours = folder.load(gguf.convert(path, tmp_path / "made"))
    assert ours.config.ropes[0].kind == "llama3" and ours.config.ropes[0].factor == 32.0
    assert relative(logits(ours), theirs(model)) <= 1e-5
    odd = write(tmp_path / "odd.gguf", "llama", model, more={"rope_freqs.weight": factors[::-1].copy()})
    with pytest.raises(UserError, match="no table of Llama 3"):
        gguf.convert(odd, tmp_path / "out")


@pytest.mark.parametrize(
    ("arch", "keys", "word"),
    [
        ("llama", {"rope.scaling.type": "longrope"}, "'longrope' is not supported; known: linear, yarn, llama3"),
        ("llama", {"rope.dimension_count": 8}, "part of a head"),
        ("llama", {"rope.scaling.attn_factor": 0.5}, "attn_factor"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_line(arch: str, keys: dict[str, Any], word: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", arch, hf_model(arch, num_hidden_layers=2), keys=keys)
    with pytest.raises(UserError, match=word) as e:
        gguf.convert(path, tmp_path / "out")
    assert "\n" not in str(e.value) and not list(tmp_path.glob("out*"))


def test_an_unknown_architecture_or_tensor_is_refused_in_one_line(tmp_path: Path) -> None:
    model = hf_model("llama", num_hidden_layers=1)
    with pytest.raises(UserError, match="'mamba' is not supported; known: gemma3, llama, qwen2, qwen3, smollm3"):
        gguf.convert(write(tmp_path / "a.gguf", "mamba", model), tmp_path / "out")
    path = write(tmp_path / "b.gguf", "llama", model, more={"blk.0.ssm_a.weight": np.zeros(4, np.float32)})
    with pytest.raises(UserError, match="blk.0.ssm_a.weight has no place in a llama model"):
        gguf.convert(path, tmp_path / "out")
    bias = {"blk.0.attn_q.bias": np.zeros(64, np.float32)}
    with pytest.raises(UserError, match="attention biases"):
        gguf.convert(write(tmp_path / "c.gguf", "llama", model, more=bias), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
