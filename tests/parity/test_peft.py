"""Adapters both ways between us and peft, and merged folders, on transformers' Llama. peft is a test-only dependency."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'shoestring[train]'")
peft = pytest.importorskip("peft", reason="needs peft: pip install 'shoestring[test]'")

from safetensors.torch import load_file, save_file  # noqa: E402

from shoestring.models import folder, lora, nf4  # noqa: E402
from shoestring.models.peft import load_adapter, save_adapter  # noqa: E402
from shoestring.records import Document, UserError  # noqa: E402

IDS = torch.randint(0, 97, (29,), generator=torch.Generator().manual_seed(7))
PACK = (IDS, torch.arange(29), [Document(0, 29)])
CONFIGS = {
    "all-linear": lora.LoraConfig(4, 8.0),
    "queries and values": lora.LoraConfig(3, 6.0, ("q_proj", "v_proj")),
    "rslora, fraction": lora.LoraConfig(4, 2.5, ("k_proj", "up_proj", "o_proj"), rslora=True),
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=56, num_hidden_layers=2, vocab_size=97, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.25, attn_implementation="eager", tie_word_embeddings=False,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def theirs(base: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager", dtype=torch.float32).eval()


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model.logits(*PACK) if hasattr(model, "blocks") else model(IDS[None]).logits[0]


def train(model: Any, parameters: Any) -> None:
    """Two steps of SGD on next-token prediction."""
    optimiser = torch.optim.SGD(parameters, lr=0.5)
    for _ in range(2):
        optimiser.zero_grad()
        out = model.logits(*PACK) if hasattr(model, "blocks") else model(IDS[None]).logits[0]
        torch.nn.functional.cross_entropy(out[:-1], IDS[1:]).backward()
        optimiser.step()


@pytest.mark.parametrize("which", CONFIGS)
def test_peft_loads_what_we_trained(which: str, base: Path, tmp_path: Path, relative: Any) -> None:
    ours = folder.load(base)
    untouched = logits(ours)
    own = lora.attach(ours, CONFIGS[which], seed=1)
    train(ours, own.values())
    assert relative(logits(ours), untouched) > 1e-2
    out = save_adapter(ours, tmp_path / "adapter", str(base))
    assert not (tmp_path / "adapter.part").exists()
    loaded = peft.PeftModel.from_pretrained(theirs(base), str(out))
    assert relative(logits(ours), logits(loaded)) <= 1e-5
    assert peft.PeftConfig.from_pretrained(str(out)).base_model_name_or_path == str(base)
    merged = loaded.merge_and_unload()
    folder.save(ours, tmp_path / "merged", like=base, source=lora.merged(ours))
    assert relative(logits(theirs(tmp_path / "merged")), logits(merged)) <= 1e-5
    lora.merge(ours)
    assert relative(logits(ours), logits(merged)) <= 1e-5


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], r".*\.(gate|down)_proj"], ids=str)
def test_we_load_what_peft_trained_and_go_on(targets: Any, base: Path, tmp_path: Path, relative: Any) -> None:
    stabilised = targets == "all-linear"
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM", use_rslora=stabilised)
    model = peft.get_peft_model(theirs(base), config)
    train(model, [p for p in model.parameters() if p.requires_grad])
    model.save_pretrained(tmp_path / "adapter")
    ours = folder.load(base)
    before = logits(ours)
    own = load_adapter(ours, tmp_path / "adapter")
    assert relative(logits(ours), before) > 1e-2 and relative(logits(ours), logits(model)) <= 1e-5
    for m in (ours, model):  # gradients go on as theirs would
        train(m, own.values() if m is ours else [p for p in m.parameters() if p.requires_grad])
    assert relative(logits(ours), logits(model)) <= 1e-4
    again = save_adapter(ours, tmp_path / "again", "base")
    model.save_pretrained(tmp_path / "adapter")
    a, b = load_file(again / "adapter_model.safetensors"), load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert a.keys() == b.keys() and all(relative(a[k], b[k]) <= 1e-4 for k in a)


def test_an_adapter_trained_on_a_quantised_base_merges_into_that_base(base: Path, tmp_path: Path, relative: Any) -> None:
    ours = folder.load(base)
    nf4.quantise_model(ours)
    train(ours, lora.attach(ours, CONFIGS["all-linear"], seed=1).values())
    folder.save(ours, tmp_path / "merged", like=base, source=lora.merged(ours))
    assert relative(logits(theirs(tmp_path / "merged")), logits(ours)) <= 1e-5
    out = save_adapter(ours, tmp_path / "adapter", "base")
    dense = folder.load(base)
    nf4.quantise_model(dense)
    lora.merge(dense)
    folder.save(dense, tmp_path / "dense", like=base)
    loaded = peft.PeftModel.from_pretrained(theirs(tmp_path / "dense"), str(out))
    assert relative(logits(loaded), logits(ours)) <= 1e-5
    fresh = folder.load(base)
    nf4.quantise_model(fresh)
    load_adapter(fresh, out)
    assert torch.equal(logits(fresh), logits(ours))


def test_masters_are_saved_in_place_of_narrow_copies(base: Path, tmp_path: Path) -> None:
    ours = folder.load(base, torch.bfloat16)
    own = lora.attach(ours, CONFIGS["queries and values"], seed=1)
    masters = {n: p.detach().float() + 1e-5 for n, p in own.items()}
    saved = load_file(save_adapter(ours, tmp_path / "a", "base", masters) / "adapter_model.safetensors")
    key = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    assert torch.equal(saved[key], masters["blocks.1.adapted.qkv.v_proj_B"]) and len(saved) == 8


def test_what_we_cannot_compute_is_refused(base: Path, tmp_path: Path) -> None:
    ours = folder.load(base)
    with pytest.raises(ValueError, match="no LoRA"):
        save_adapter(ours, tmp_path / "none", "base")
    lora.attach(ours, CONFIGS["queries and values"], seed=1)
    good = save_adapter(ours, tmp_path / "good", "base")
    tensors, config = load_file(good / "adapter_model.safetensors"), json.loads((good / "adapter_config.json").read_text())
    first = next(iter(tensors))

    def attempt(why: str, tensors: dict[str, Any], **keys: Any) -> None:
        bad = tmp_path / "bad"
        bad.mkdir(exist_ok=True)
        save_file(tensors, bad / "adapter_model.safetensors")
        (bad / "adapter_config.json").write_text(json.dumps(config | keys))
        plain = folder.load(base)
        with pytest.raises(UserError, match=why):
            load_adapter(plain, bad)
        assert lora.config_of(plain) is None

    for key, value in {
        "use_dora": True, "rank_pattern": {"q_proj": 8}, "bias": "all", "modules_to_save": ["lm_head"],
        "init_lora_weights": "pissa", "fan_in_fan_out": True, "something_new": "on",
    }.items():  # fmt: skip
        attempt(f"{key} = .* is not supported", tensors, **{key: value})
    attempt("peft_type is not LORA", tensors, peft_type="LOHA")
    attempt("make no sense", tensors, r="many")
    attempt("adapts no projection", {**tensors, "base_model.model.lm_head.lora_A.weight": torch.ones(2, 2)})
    attempt("does not fit the model at layer 0", {k: v for k, v in tensors.items() if k != first})
    attempt("does not fit the model at any layer", {})
    attempt("has shape", {**tensors, first: torch.ones(5, 5)})
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        load_adapter(folder.load(base), tmp_path)
    (good / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="unreadable adapter weights"):
        load_adapter(folder.load(base), good)
    (good / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load_adapter(folder.load(base), good)
    with pytest.raises(UserError, match="could not be written"):
        (tmp_path / "file").write_text("")
        save_adapter(ours, tmp_path / "file" / "a", "base")


def test_loras_in_turn_are_one_lora(base: Path, tmp_path: Path, relative: Any) -> None:
    """Other ranks, scales and targets: trained one after the other and merged, or stacked and attached once."""
    from shoestring.models.peft import stacked

    ours, parts = folder.load(base), []
    for seed, config in enumerate(CONFIGS.values()):
        own = lora.attach(ours, config, seed)
        train(ours, own.values())
        parts.append((config, {n: p.detach().clone() for n, p in own.items()}))
        lora.merge(ours)
    config, tensors = stacked(parts)
    assert config.rank == 11 and config.scale == 1.0
    once = folder.load(base)
    lora.attach(once, config, seed=9)
    lora.restore(once, tensors)
    assert relative(logits(once), logits(ours)) <= 1e-5
    loaded = peft.PeftModel.from_pretrained(theirs(base), str(save_adapter(once, tmp_path / "adapter", str(base))))
    assert relative(logits(loaded), logits(ours)) <= 1e-5
