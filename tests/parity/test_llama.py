"""Our decoder against transformers' Llama: logits, folders both ways, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'shoestring[train]'")

from safetensors.torch import load_file, save_file  # noqa: E402

from shoestring.models import folder  # noqa: E402
from shoestring.records import Document, UserError  # noqa: E402

SHAPES: dict[str, dict[str, Any]] = {
    "tied, no grouping": dict(num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True),
    "untied, two a key head": dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False),
    "tied, three a key head": dict(num_attention_heads=6, num_key_value_heads=2, hidden_size=48, tie_word_embeddings=True),
    "untied, four a key head": dict(num_attention_heads=4, num_key_value_heads=1, tie_word_embeddings=False),
    "head_dim apart from hidden": dict(num_attention_heads=4, num_key_value_heads=2, head_dim=10, tie_word_embeddings=True),
    "other theta and eps": dict(num_attention_heads=2, num_key_value_heads=1, rope_theta=500.0, rms_norm_eps=1e-3),
}  # fmt: skip


def hf_model(seed: int = 0, **more: Any) -> Any:
    base = dict(
        hidden_size=32, intermediate_size=56, num_hidden_layers=3, vocab_size=97, max_position_embeddings=256,
        initializer_range=0.25, attn_implementation="eager",
    )  # fmt: skip
    theta = more.pop("rope_theta", None)
    if theta:
        more["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(base | more))).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.add_(torch.randn_like(p) * 0.2)
    return model


def hf_logits(model: Any, ids: Any) -> Any:
    with torch.no_grad():
        return model(ids[None]).logits[0]


def our_logits(model: Any, ids: Any) -> Any:
    with torch.no_grad():
        return model.logits(ids, torch.arange(len(ids)), [Document(0, len(ids))])


IDS = torch.randint(0, 97, (41,), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_agree_with_transformers(shape: str, tmp_path: Path, relative: Any) -> None:
    theirs = hf_model(**SHAPES[shape])
    theirs.save_pretrained(tmp_path)
    ours = folder.load(tmp_path)
    assert ours.config.tied == SHAPES[shape].get("tie_word_embeddings", False)
    assert relative(our_logits(ours, IDS), hf_logits(theirs, IDS)) <= 1e-5


def test_sharded_weights_load(tmp_path: Path, relative: Any) -> None:
    theirs = hf_model(tie_word_embeddings=False, num_attention_heads=4)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert relative(our_logits(folder.load(tmp_path), IDS), hf_logits(theirs, IDS)) <= 1e-5


def test_a_large_model_is_saved_in_several_files_with_an_index(tmp_path: Path, relative: Any) -> None:
    hf_model(tie_word_embeddings=False, num_attention_heads=4).save_pretrained(tmp_path / "a")
    ours = folder.load(tmp_path / "a")
    folder.save(ours, tmp_path / "b", tmp_path / "a", largest=20_000)
    assert len(list((tmp_path / "b").glob("model-*.safetensors"))) > 2 and not (tmp_path / "b" / "model.safetensors").exists()
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "b", attn_implementation="eager").eval()
    assert relative(our_logits(ours, IDS), hf_logits(theirs, IDS)) <= 1e-5
    assert torch.equal(our_logits(folder.load(tmp_path / "b"), IDS), our_logits(ours, IDS))


@pytest.mark.parametrize("tied", [True, False])
def test_saved_folder_loads_in_transformers_with_the_same_logits(tied: bool, tmp_path: Path, relative: Any) -> None:
    hf_model(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied).save_pretrained(tmp_path / "a")
    ours = folder.load(tmp_path / "a")
    with torch.no_grad():  # trained: no longer the folder's own weights
        for p in ours.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) * 0.05)
    folder.save(ours, tmp_path / "b", tmp_path / "a")
    assert not (tmp_path / "b.part").exists()
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "b", attn_implementation="eager").eval()
    assert theirs.config.tie_word_embeddings is tied
    assert relative(our_logits(ours, IDS), hf_logits(theirs, IDS)) <= 1e-5
    again = folder.load(tmp_path / "b")
    for (name, p), (other, q) in zip(ours.named_parameters(), again.named_parameters(), strict=True):
        assert name == other and torch.equal(p, q)


def test_masters_are_saved_instead_of_the_computing_copy(tmp_path: Path) -> None:
    hf_model(num_attention_heads=4).save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "tokenizer_config.json").write_text("{}")
    model = folder.load(tmp_path / "a", torch.bfloat16)
    masters = {n: p.detach().float() + 1e-4 for n, p in model.named_parameters()}
    folder.save(model, tmp_path / "b", tmp_path / "a", masters)
    again = folder.load(tmp_path / "b")
    assert all(torch.equal(p, masters[n]) for n, p in again.named_parameters())
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["dtype"] == "float32" and "torch_dtype" not in config
    assert (tmp_path / "b" / "tokenizer_config.json").exists()
    folder.save(model, tmp_path / "b", tmp_path / "a", dtype=torch.bfloat16)  # over an existing folder
    assert load_file(tmp_path / "b" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


def test_rope_is_kept_in_fp32_when_the_model_is_not(tmp_path: Path) -> None:
    hf_model(num_attention_heads=4).save_pretrained(tmp_path)
    wide, narrow = folder.load(tmp_path), folder.load(tmp_path, torch.bfloat16)
    assert narrow.inverse_frequency.dtype == torch.float32
    assert torch.equal(wide.inverse_frequency, narrow.inverse_frequency)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    hf_model(num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1).save_pretrained(tmp_path)
    return tmp_path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as e:
        folder.load(path)
    message = str(e.value)
    assert "\n" not in message and message
    return message


def edit(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({k: v for k, v in (config | changes).items() if v is not ...}))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (
            dict(architectures=["MambaForCausalLM"]),
            "MambaForCausalLM is not supported; families: gemma3, llama, mistral, qwen2, qwen3, smollm3",
        ),
        (dict(architectures=...), "none named"),
        (dict(attention_bias=True), "self_attn.q_proj.bias is missing"),
        (dict(hidden_act="gelu"), "gelu"),
        (dict(rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}), "low_freq_factor"),
        (dict(rope_parameters=None, rope_scaling={"type": "linear"}), "'linear' lacks 'factor'"),
        (dict(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4}), "longrope"),
        (dict(partial_rotary_factor=0.5), "partial_rotary_factor"),
        (dict(rope_parameters={"full_attention": {"rope_theta": 1e4}}), "by layer type"),
        (dict(hidden_size=...), "hidden_size"),
        (dict(num_hidden_layers="many"), "many"),
        (dict(num_attention_heads=0), "config.json"),
        (dict(num_attention_heads=5, head_dim=8), "multiple"),
        (dict(head_dim=7), "even"),
        (dict(intermediate_size=64), "shape"),
        (dict(num_hidden_layers=2), "model.layers.1"),
    ],
)
def test_a_config_that_cannot_be_met_is_one_clear_line(made: Path, changes: dict[str, Any], word: str) -> None:
    edit(made, **changes)
    assert word in refusal(made)


def test_a_folder_that_cannot_be_read_is_one_clear_line(made: Path, tmp_path: Path) -> None:
    weights = made / "model.safetensors"
    whole = weights.read_bytes()
    tensors = {k: v.clone() for k, v in load_file(weights).items()}  # load_file maps the file
    weights.write_bytes(whole[: len(whole) // 2])
    assert "unreadable weights" in refusal(made)
    kept = {k: v for k, v in tensors.items() if "o_proj" not in k}
    save_file(kept, weights)
    assert "model.layers.0.self_attn.o_proj.weight is missing" in refusal(made)
    save_file({k: v.to(torch.int8) if "o_proj" in k else v for k, v in tensors.items()}, weights)
    assert "quantised" in refusal(made)
    weights.unlink()
    assert "no weights" in refusal(made)
    for text, word in (("{", "not JSON"), ("[]", "not a JSON object")):
        (made / "config.json").write_text(text)
        assert word in refusal(made)
    (made / "config.json").unlink()
    assert "no config.json" in refusal(made)
    assert "no config.json" in refusal(tmp_path / "nowhere")
