"""The decoder's own seams: what the trainer wraps, what adapters replace, what the engine reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

import torch.nn.functional as F  # noqa: E402

from shoestring.models.config import DecoderConfig, LayerFacts  # noqa: E402
from shoestring.models.decoder import Decoder  # noqa: E402
from shoestring.models.rope import Rope  # noqa: E402
from shoestring.records import Document  # noqa: E402

IDS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])


def logits(model: Any) -> Any:
    return model.logits(IDS, torch.arange(8), [Document(0, 8)])


def test_a_wrapped_block_is_run_once_a_layer_and_changes_nothing(tiny_decoder: Any) -> None:
    model = tiny_decoder(layers=3)
    before, calls = logits(model), []

    def wrap(block: Any) -> Any:
        return lambda *args: (calls.append(args[0]), block(*args))[1]

    model.wrap = wrap
    assert torch.equal(logits(model), before) and calls == list(model.blocks)


def test_every_product_of_a_block_goes_through_project(tiny_decoder: Any) -> None:
    """An adapter that doubles: the same as doubled weights. `weight` is what it multiplies by."""
    plain, adapted = tiny_decoder(), tiny_decoder()
    doubles = SimpleNamespace(forward=lambda x, w, bias: F.linear(x, 2 * w, bias), merged=lambda w: 2 * w)
    names = ("qkv", "out", "gate_up", "down")
    for block in adapted.blocks:
        block.adapters = dict.fromkeys(names, doubles)
    with torch.no_grad():
        for block in plain.blocks:
            for name in names:
                getattr(block, name).mul_(2)
    assert torch.allclose(logits(adapted), logits(plain), atol=1e-6)
    for a, b in zip(adapted.blocks, plain.blocks, strict=True):
        for name in names:
            dense = adapted.weight(a, name)
            assert torch.equal(dense, plain.weight(b, name)) and not dense.requires_grad


def test_optional_parameters_are_there_where_configured_and_only_there(tiny_decoder: Any) -> None:
    plain = {n for n, _ in tiny_decoder(layers=1).blocks[0].named_parameters()}
    assert plain == {"attention_norm", "qkv", "out", "mlp_norm", "gate_up", "down"}
    full = tiny_decoder(layers=1, qkv_bias=True, out_bias=True, mlp_bias=True, qk_norm=True, post_norms=True)
    sizes = {n: tuple(p.shape) for n, p in full.blocks[0].named_parameters() if n not in plain}
    assert sizes == {
        "qkv_bias": (40,), "out_bias": (24,), "gate_up_bias": (80,), "down_bias": (24,), "query_norm": (4,),
        "key_norm": (4,), "attention_post_norm": (24,), "mlp_post_norm": (24,),
    }  # fmt: skip
    logits(full).sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in full.blocks[0].parameters())


def test_layer_facts(tiny_decoder: Any) -> None:
    assert tiny_decoder().config.layer(1) == LayerFacts(window=0, rope=0)
    ropes = (Rope(1e4), Rope(1e3, "linear", factor=2.0))
    model = tiny_decoder(layers=3, windows=(0, 5, 0), ropes=ropes, rope_of=(0, 1, -1))
    assert [model.config.layer(i) for i in range(3)] == [LayerFacts(0, 0), LayerFacts(5, 1), LayerFacts(0, -1)]
    (c0, s0), (c1, s1) = model.rope(torch.arange(4)), model.rope(torch.arange(4), 1)
    assert c0.shape == (4, 2) and not torch.equal(c0, c1) and not torch.equal(s0, s1)


def test_the_sink_gets_rotated_keys_and_values_of_each_layer(tiny_decoder: Any) -> None:
    model, seen = tiny_decoder(), {}
    model.hidden(IDS, torch.arange(8), [Document(0, 8)], lambda i, k, v: seen.update({i: (k.shape, v.shape)}))
    assert seen == {i: ((8, 2, 4), (8, 2, 4)) for i in range(2)}


def test_angles_stay_fp32_through_casts_and_come_back_from_meta(tiny_decoder: Any) -> None:
    model = tiny_decoder()
    inverse = model.inverse_frequency.clone()
    assert torch.equal(model.to(torch.bfloat16).inverse_frequency, inverse)
    with torch.device("meta"):
        empty = Decoder(model.config)
    assert torch.equal(empty.to_empty(device="cpu").inverse_frequency, inverse)


def test_the_embedding_is_scaled_in_its_own_type(tiny_decoder: Any) -> None:
    model = tiny_decoder(embedding_scale=24**0.5)
    assert torch.equal(model.embed(IDS), model.embedding[IDS] * 24**0.5)
    narrow = model.to(torch.bfloat16)
    assert torch.equal(narrow.embed(IDS), narrow.embedding[IDS] * torch.tensor(24**0.5).bfloat16())


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (dict(heads=5), "multiple"), (dict(head_dim=7), "even"), (dict(activation="relu"), "activation"),
        (dict(windows=(4,)), "windows names 1 layers of 2"), (dict(windows=(4, -1)), "positive"),
        (dict(rope_of=(0, 1)), "outside the 1"), (dict(rope_of=(0,)), "rope_of names 1"),
    ],
)  # fmt: skip
def test_configs_that_make_no_sense(changes: dict[str, Any], word: str) -> None:
    sizes: dict[str, Any] = dict(
        family="llama", layers=2, hidden=24, heads=6, kv_heads=2, head_dim=4, intermediate=40, vocab=61, norm_eps=1e-5,
        rope_theta=1e4, tied=True, max_positions=64,
    )  # fmt: skip
    with pytest.raises(ValueError, match=word):
        DecoderConfig(**(sizes | changes))
