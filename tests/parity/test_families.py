"""Every family and variant against its transformers class: logits, gradients, packing, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'shoestring[train]'")

from shoestring.estimate.headers import model_shape  # noqa: E402
from shoestring.models import families, folder  # noqa: E402
from shoestring.models.families import common  # noqa: E402
from shoestring.records import Document  # noqa: E402

LENGTH = 40
SIZES: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=56, num_hidden_layers=4, vocab_size=97, max_position_embeddings=256,
    num_attention_heads=4, num_key_value_heads=2, initializer_range=0.25, attn_implementation="eager",
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
LOCAL, FULL = "sliding_attention", "full_attention"
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
NTK = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}

# name → (class, changes to SIZES). Windows and original maxima are shorter than LENGTH.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, untied, grouped": ("Llama", dict(tie_word_embeddings=False)),
    "llama, tied, one key head a query head": ("Llama", dict(tie_word_embeddings=True, num_key_value_heads=4)),
    "llama, all biases": ("Llama", dict(attention_bias=True, mlp_bias=True)),
    "llama, linear": ("Llama", dict(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0})),
    "llama, dynamic, short": ("Llama", dict(rope_parameters=NTK)),
    "llama, dynamic, long": ("Llama", dict(rope_parameters=NTK, max_position_embeddings=16)),
    "llama, yarn": ("Llama", dict(rope_parameters=YARN, max_position_embeddings=64)),
    "llama, yarn, its own temperature and ramp": (
        "Llama",
        dict(rope_parameters=YARN | {"attention_factor": 0.7, "beta_fast": 4.0, "beta_slow": 0.5, "truncate": False}),
    ),
    "llama, yarn, mscale": ("Llama", dict(rope_parameters=YARN | {"mscale": 0.8, "mscale_all_dim": 0.5})),
    "llama, llama3": ("Llama", dict(rope_parameters=LLAMA3)),
    "mistral, full": ("Mistral", dict(sliding_window=None)),
    "mistral, window": ("Mistral", dict(sliding_window=7, head_dim=10)),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen2, window in later layers": ("Qwen2", dict(use_sliding_window=True, sliding_window=5, max_window_layers=2)),
    "qwen2, yarn": ("Qwen2", dict(rope_parameters=YARN)),
    "qwen3": ("Qwen3", dict(head_dim=12)),
    "qwen3, biases, tied, window": (
        "Qwen3",
        dict(attention_bias=True, tie_word_embeddings=True, use_sliding_window=True, sliding_window=9, max_window_layers=1),
    ),
    "smollm3": ("SmolLM3", {}),
    "smollm3, its own NoPE layers, biases": (
        "SmolLM3",
        dict(no_rope_layers=[0, 1, 1, 0], attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    ),
    "smollm3, window in NoPE layers": ("SmolLM3", dict(use_sliding_window=True, sliding_window=6, no_rope_layer_interval=2)),
    "gemma3": ("Gemma3", dict(head_dim=12, query_pre_attn_scalar=20, sliding_window=8, layer_types=[LOCAL, LOCAL, FULL, LOCAL])),
    "gemma3, linear, untied, biases": (
        "Gemma3",
        dict(
            head_dim=8, sliding_window=4, layer_types=[LOCAL, FULL] * 2, attention_bias=True, tie_word_embeddings=False,
            rope_parameters={
                FULL: {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0},
                LOCAL: {"rope_type": "default", "rope_theta": 1e3},
            },
        ),
    ),
}  # fmt: skip
IDS = torch.randint(0, 97, (LENGTH,), generator=torch.Generator().manual_seed(7))


def hf_model(name: str) -> Any:
    family, changes = CASES[name]
    config = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config(**(SIZES | changes))).eval()
    with torch.no_grad():  # norms and biases away from what they start at
        for key, p in model.named_parameters():
            if "norm" in key or key.endswith("bias"):
                p.add_(torch.randn_like(p) * 0.2)
    return model


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """(theirs, ours, the folder that theirs was saved to)."""
    path = tmp_path_factory.mktemp("hf")
    theirs = hf_model(request.param)
    theirs.save_pretrained(path)
    return theirs, folder.load(path), path


def run(model: Any, ids: Any) -> Any:
    return model.logits(ids, torch.arange(len(ids)), [Document(0, len(ids))])


def test_logits_agree(pair: Any, relative: Any) -> None:
    theirs, ours, _ = pair
    with torch.no_grad():
        for n in (LENGTH, 3):
            assert relative(run(ours, IDS[:n]), theirs(IDS[None, :n]).logits[0]) <= 1e-5


def test_gradients_agree(pair: Any) -> None:
    theirs, ours, _ = pair
    upstream = torch.randn(LENGTH, 97, generator=torch.Generator().manual_seed(3))
    theirs.zero_grad()
    ours.zero_grad()
    (theirs(IDS[None]).logits[0] * upstream).sum().backward()
    (run(ours, IDS) * upstream).sum().backward()
    grads = common.write(ours, {n: p.grad for n, p in ours.named_parameters()})
    reference = {n: p.grad for n, p in theirs.named_parameters()}
    assert set(grads) == set(reference)
    largest = max(float(g.abs().max()) for g in reference.values())
    for name, g in reference.items():
        scale = max(float(g.abs().max()), 1e-2 * largest)  # a key bias has none but rounding where heads are not turned
        assert float((grads[name] - g).abs().max()) <= 5e-5 * scale, name


def test_saved_back_it_is_the_same_model(pair: Any, tmp_path: Path, relative: Any) -> None:
    theirs, ours, path = pair
    folder.save(ours, tmp_path / "b", path)
    again = type(theirs).from_pretrained(tmp_path / "b", attn_implementation="eager").eval()
    for (name, p), (other, q) in zip(theirs.named_parameters(), again.named_parameters(), strict=True):
        assert name == other and torch.allclose(p, q, rtol=0, atol=1e-7)  # Gemma's w goes through 1 + w
    with torch.no_grad():
        assert relative(run(ours, IDS), again(IDS[None]).logits[0]) <= 1e-5
        assert relative(run(folder.load(tmp_path / "b"), IDS), run(ours, IDS)) == 0


def test_packed_documents_are_single_documents(pair: Any, relative: Any) -> None:
    """Plain documents, and one whose trunk two branches share."""
    _, ours, _ = pair
    a, b = IDS[:23], IDS[23:33]
    trunk, one, two = IDS[5:19], IDS[20:32], IDS[1:13]
    tokens = torch.cat((a, trunk, one, two, b))
    where = [*range(23), *range(14), *range(14, 26), *range(14, 26), *range(10)]
    documents = [Document(0, 23), Document(23, 61, 14, ((37, 49), (49, 61))), Document(61, 71)]
    with torch.no_grad():
        packed = ours.logits(tokens, torch.tensor(where), documents)
        assert relative(packed[:23], run(ours, a)) <= 1e-5
        assert relative(packed[61:], run(ours, b)) <= 1e-5
        for branch, rows in ((one, slice(37, 49)), (two, slice(49, 61))):
            assert relative(packed[rows], run(ours, torch.cat((trunk, branch)))[14:]) <= 1e-5


def test_the_shape_without_torch_counts_every_parameter(pair: Any) -> None:
    theirs, ours, path = pair
    shape = model_shape(str(path))
    assert shape.parameters() == sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert shape.windows == ours.config.windows
    assert shape.head_dim == ours.config.head_dim and shape.kv_heads == ours.config.kv_heads


def test_each_case_engages_what_it_names() -> None:
    """The list itself: every family and every variant is among the configs that were compared."""
    found = set()
    for name, (family, _) in CASES.items():
        hf = {**hf_model(name).config.to_dict(), "architectures": [f"{family}ForCausalLM"]}
        c = families.find(hf, name).config(hf, name)
        found |= {c.family, c.activation, *(r.kind for r in c.ropes)} | {k for k in ("tied", "qkv_bias", "out_bias", "mlp_bias",
                  "qk_norm", "post_norms", "windows") if getattr(c, k)}  # fmt: skip
        found |= {"NoPE"} if -1 in c.rope_of else set()
        found |= {"windows in some layers"} if len(set(c.windows)) > 1 else set()
    assert found >= {*families.names(), "gelu_tanh", "linear", "dynamic", "yarn", "llama3", "tied", "qkv_bias", "out_bias",
                     "mlp_bias", "qk_norm", "post_norms", "windows", "NoPE", "windows in some layers"}  # fmt: skip
