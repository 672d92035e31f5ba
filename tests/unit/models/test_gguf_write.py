"""GGUF out: what is written is read back by our reader, by transformers' and by the gguf package's, with the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'shoestring[train]'")
package = pytest.importorskip("gguf", reason="needs the gguf package: pip install 'shoestring[train]'")
np = pytest.importorskip("numpy", reason="needs numpy: pip install 'shoestring[train]'")

import gguf_models  # noqa: E402

from shoestring.models import folder, gguf, gguf_check, gguf_write, modelfile  # noqa: E402
from shoestring.models.tokenizer import Tokenizer  # noqa: E402
from shoestring.records import Document, UserError  # noqa: E402

FAMILIES = list(gguf_models.CLASSES)
IDS = torch.randint(0, gguf_models.VOCAB, (30,), generator=torch.Generator().manual_seed(7))
TEXTS = ("the inn", " then  12 he\n\n", "naïve – 東京")


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model.logits(IDS, torch.arange(len(IDS)), [Document(0, len(IDS))])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_computes_what_the_folder_computes(family: str, tmp_path: Path, relative: Any) -> None:
    made = gguf_models.make(tmp_path / "m", family)
    done = gguf_write.write(made, tmp_path / "m.gguf", "f16", "tiny", "apache-2.0")
    ours = folder.load(made)
    again = gguf_check.read(tmp_path / "m.gguf")
    assert relative(logits(again), logits(ours)) <= 1e-6, "the weights are fp16's own, so nothing is lost"
    config = (again.config.heads, again.config.kv_heads, again.config.windows, again.config.rope_of, again.config.ropes)
    assert config == (ours.config.heads, ours.config.kv_heads, ours.config.windows, ours.config.rope_of, ours.config.ropes)
    reader = package.GGUFReader(str(tmp_path / "m.gguf"))
    keys = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("tokenizer.ggml.t")}
    arch = gguf_write.ARCH[family]
    assert keys["general.architecture"] == arch and keys["general.file_type"] == 1 and keys["general.license"] == "apache-2.0"
    assert keys[f"{arch}.vocab_size"] == gguf_models.VOCAB == len(reader.fields["tokenizer.ggml.tokens"].data)
    assert ("output.weight" in {t.name for t in reader.tensors}) == (family == "qwen3"), "tied embeddings are stored once"
    assert not done.fell_back and not done.notes and done.types["F16"] + done.types["F32"] == len(reader.tensors)
    assert not list(tmp_path.glob("*part*"))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "smollm3"])
def test_transformers_own_reader_agrees(family: str, tmp_path: Path, relative: Any) -> None:
    """A second opinion on names, orders and offsets: transformers does not read smollm3 from GGUF."""
    # its reader takes these widths without looking
    width = {"qwen3": {"head_dim": 128}, "gemma3": {"head_dim": 256, "query_pre_attn_scalar": 256}}.get(family, {})
    made = gguf_models.make(tmp_path / "m", family, **width)
    gguf_write.write(made, tmp_path / "m.gguf", "f16")
    with torch.no_grad():
        theirs = [
            transformers.AutoModelForCausalLM.from_pretrained(where, attn_implementation="eager", dtype=torch.float32, **extra)(
                IDS[None]
            ).logits[0]
            for where, extra in ((tmp_path, {"gguf_file": "m.gguf"}), (made, {}))
        ]
    assert relative(theirs[0], theirs[1]) <= 1e-5


@pytest.mark.parametrize("pre", ["gpt2", "qwen2", "pieces"])
def test_tokens_come_back(pre: str, tmp_path: Path) -> None:
    family = {"gpt2": "llama", "qwen2": "qwen2", "pieces": "gemma3"}[pre]
    made = gguf_models.make(tmp_path / "m", family, pre=pre)
    done = gguf_write.write(made, tmp_path / "m.gguf", "f16")
    assert done.pre == {"gpt2": "gpt-2", "qwen2": "qwen2", "pieces": "sentencepiece"}[pre]
    ours, again = Tokenizer(made), gguf._tokenizer(tmp_path / "m.gguf")
    for text in TEXTS:
        assert tuple(again.encode(text, add_special_tokens=False)) == ours.encode(text), text
    assert again.chat_template == ours.inner.chat_template and again.eos_token_id == 2 and again.bos_token_id == 1
    reader = package.GGUFReader(str(tmp_path / "m.gguf"))
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    assert types[:3] == [3, 3, 3], "control"
    assert types[-1] == 5 and reader.fields["tokenizer.ggml.tokens"].contents()[-1] == f"[PAD{gguf_models.VOCAB - 1}]"
    if pre == "pieces":
        assert types[3] == 2 and types[4:260] == [6] * 256, "unknown, then bytes"


def test_digits_apart_are_smollm(tmp_path: Path) -> None:
    done = gguf_write.write(gguf_models.make(tmp_path / "m", "llama", pre="digits"), tmp_path / "m.gguf", "f16")
    assert done.pre == "smollm"


def test_a_turns_end_of_its_own_is_named(tmp_path: Path) -> None:
    made = gguf_models.make(tmp_path / "m", "gemma3")
    inner = transformers.PreTrainedTokenizerFast.from_pretrained(made)
    inner.eos_token = "<pad>"
    inner.save_pretrained(made)
    gguf_write.write(made, tmp_path / "m.gguf", "f16")
    reader = package.GGUFReader(str(tmp_path / "m.gguf"))
    assert reader.fields["tokenizer.ggml.eot_token_id"].contents() == 2
    assert modelfile.stops(Tokenizer(made)) == ["<end>", "<pad>"]


@pytest.mark.parametrize(
    ("family", "table"),
    [
        ("llama", {"rope_type": "linear", "factor": 2.0}),
        ("qwen2", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
        ("llama", {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 8192}),
    ],
    ids=["linear", "yarn", "llama3"],
)  # fmt: skip
def test_rope_scaling(family: str, table: dict[str, Any], tmp_path: Path, relative: Any) -> None:
    made = gguf_models.make(tmp_path / "m", family, rope_parameters={"rope_theta": 1e4, **table})
    gguf_write.write(made, tmp_path / "m.gguf", "f16")
    again = gguf_check.read(tmp_path / "m.gguf")
    assert again.config.ropes[0].kind == table["rope_type"]
    assert relative(logits(again), logits(folder.load(made))) <= 1e-5


def test_what_llama_cpp_lacks_shortens_the_context(tmp_path: Path) -> None:
    """Within a window that is the whole context, and before dynamic scaling begins, both compute the same."""
    window = gguf_models.make(tmp_path / "w", "mistral", sliding_window=16)
    done = gguf_write.write(window, tmp_path / "w.gguf", "f16")
    assert gguf_check.read(tmp_path / "w.gguf").config.max_positions == 16 and "no sliding window in llama" in done.notes[0]
    table = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    dynamic = gguf_models.make(tmp_path / "d", "llama", rope_parameters=table)
    assert "dynamic" in gguf_write.write(dynamic, tmp_path / "d.gguf", "f16").notes[0]


@pytest.mark.parametrize(
    ("family", "more", "word"),
    [
        ("qwen3", {"attention_bias": True}, "qwen3 has no biases"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 1]}, "every fourth layer"),
        ("gemma3", {"query_pre_attn_scalar": 5}, "query_pre_attn_scalar"),
        ("llama", {"pre": "odd"}, "llama.cpp has no name for"),
        ("llama", {"vocab_size": 100}, "the embedding 100 rows"),
        ("qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "attention_factor": 0.5,
                                       "original_max_position_embeddings": 16}}, "attention factor"),
    ],
    ids=["bias", "nope", "scale", "split", "rows", "yarn"],
)  # fmt: skip
def test_what_would_compute_something_else_is_refused(family: str, more: dict[str, Any], word: str, tmp_path: Path) -> None:
    made = gguf_models.make(tmp_path / "m", family, **more)
    with pytest.raises(UserError, match=word) as e:
        gguf_write.write(made, tmp_path / "m.gguf", "f16")
    assert "\n" not in str(e.value) and not list(tmp_path.glob("*gguf*"))


def test_weights_that_fp16_cannot_hold_are_refused(tmp_path: Path) -> None:
    made = gguf_models.make(tmp_path / "m", "llama")
    model = folder.load(made)
    with torch.no_grad():
        model.embedding[5, 5] = 1e6
    folder.save(model, tmp_path / "big", made)
    with pytest.raises(UserError, match="do not fit fp16; export q8_0"):
        gguf_write.write(tmp_path / "big", tmp_path / "m.gguf", "f16")
    assert not list(tmp_path.glob("*gguf*"))


def test_the_mix_of_q4_k_m() -> None:
    """As llama.cpp chooses, spelled out for sixteen layers: the first and last eighth and every third between."""
    better = {0, 1, 4, 7, 10, 13, 14, 15}
    for i in range(16):
        for kind in ("attn_v", "ffn_down"):
            assert gguf_write.wanted_type(f"blk.{i}.{kind}.weight", "q4_k_m", 16, True) == ("Q6_K" if i in better else "Q4_K")
        for kind in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
            assert gguf_write.wanted_type(f"blk.{i}.{kind}.weight", "q4_k_m", 16, True) == "Q4_K"
    assert gguf_write.wanted_type("token_embd.weight", "q4_k_m", 16, tied=True) == "Q6_K"
    assert gguf_write.wanted_type("token_embd.weight", "q4_k_m", 16, tied=False) == "Q4_K"
    assert gguf_write.wanted_type("output.weight", "q4_k_m", 16, tied=False) == "Q6_K"
    fits = [gguf_write.fitting_type(k, n) for k, n in (("Q4_K", 512), ("Q4_K", 576), ("Q6_K", 576), ("Q4_K", 40), ("Q8_0", 40))]
    assert fits == ["Q4_K", "Q5_0", "Q8_0", "F16", "F16"]


@pytest.mark.parametrize(("kind", "hidden"), [("q8_0", 64), ("q4_k_m", 64), ("q4_k_m", 256)])
def test_quantised_files_are_close(kind: str, hidden: int, tmp_path: Path) -> None:
    made = gguf_models.make(tmp_path / "m", "llama", hidden, num_hidden_layers=2, initializer_range=4 / hidden)
    done = gguf_write.write(made, tmp_path / "m.gguf", kind)
    close = gguf_check.closeness(made, tmp_path / "m.gguf")
    assert close.top >= gguf_check.FLOOR[kind] and close.kl < {"q8_0": 0.01, "q4_k_m": 0.5}[kind] and close.same_ids == 5
    types = {t.name: t.tensor_type.name for t in package.GGUFReader(str(tmp_path / "m.gguf")).tensors}
    if hidden == 256:
        assert not done.fell_back and types["blk.0.attn_q.weight"] == "Q4_K" and types["token_embd.weight"] == "Q6_K"
    elif kind == "q4_k_m":
        assert sum(done.fell_back.values()) == 15 and types["blk.0.attn_q.weight"] == "Q5_0"
    assert types["output_norm.weight"] == "F32"


def test_a_wrong_order_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check proves that it looks: without the permutation the file computes something else."""
    made = gguf_models.make(tmp_path / "m", "llama")
    monkeypatch.setattr(gguf_write, "_permute", lambda w, heads: w)
    gguf_write.write(made, tmp_path / "m.gguf", "f16")
    close = gguf_check.closeness(made, tmp_path / "m.gguf")
    assert close.top < gguf_check.FLOOR["f16"] and close.largest > 1


def test_a_modelfile_renders_as_the_template_does(tmp_path: Path) -> None:
    tokenizer = Tokenizer(gguf_models.make(tmp_path / "m", "llama"))
    text, why = modelfile.modelfile("m.gguf", tokenizer, "apache-2.0")
    assert not why and "FROM ./m.gguf" in text and 'SYSTEM """Be kind."""' in text and 'LICENSE """apache-2.0"""' in text
    assert '{{- if eq .Role "system" }}{{ "<start>system\\n" }}{{ .Content }}{{ "<end>\\n" }}' in text
    assert text.count("PARAMETER stop") == 1 and 'PARAMETER stop "<end>"' in text and "leaves out the thinking" not in text


TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' or (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('no') }}{% endif %}[{{ 'model' if m.role == 'assistant' else m.role }}]\n{{ m.content.split('</think>')[-1] }}"
    "[/]\n{% endfor %}{% if add_generation_prompt %}[model]\n{% endif %}"
)


def test_templates_without_a_system_role_and_with_a_beginning(tmp_path: Path) -> None:
    tokenizer = Tokenizer(gguf_models.make(tmp_path / "m", "llama", template=TURNS))
    made, why = modelfile.wrapped(tokenizer)
    assert made is not None, why
    assert made.around == {"user": ("[user]\n", "[/]\n"), "assistant": ("[model]\n", "[/]\n")} and made.start == "<start>"
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert made.render(talk) == tokenizer.inner.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    assert "leaves out the thinking" in modelfile.modelfile("m.gguf", tokenizer, "")[0]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{% for m in messages %}<{{ loop.index }}>{{ m.content }}</>{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' %}[I]{% if loop.index0 == 1 %}{{ messages[0].content }}\n{% endif %}"
        "{{ m.content }}[/I]{% elif m.role == 'assistant' %}{{ m.content }}<end>{% endif %}{% endfor %}",
    ],
    ids=["changed", "numbered", "system inside"],
)
def test_a_template_that_cannot_be_converted_is_said_so(template: str, tmp_path: Path) -> None:
    text, why = modelfile.modelfile("m.gguf", Tokenizer(gguf_models.make(tmp_path / "m", "llama", template=template)), "")
    assert why and "\nTEMPLATE" not in text and "could not be converted" in text and "not stated" in text


def test_gemma_periods(tmp_path: Path) -> None:
    """llama.cpp's own period is not written; another is; layers without one are refused."""
    other = gguf_models.make(tmp_path / "m", "gemma3", sliding_window_pattern=2, num_hidden_layers=4)
    gguf_write.write(other, tmp_path / "m.gguf", "f16")
    reader = package.GGUFReader(str(tmp_path / "m.gguf"))
    assert reader.fields["gemma3.attention.sliding_window_pattern"].contents() == 2
    hf = json.loads((other / "config.json").read_text())
    hf["layer_types"] = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    (other / "config.json").write_text(json.dumps(hf))
    with pytest.raises(UserError, match="alternate with a period"):
        gguf_write.write(other, tmp_path / "n.gguf", "f16")
