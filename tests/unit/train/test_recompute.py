"""Recomputation: the same gradients from fewer bytes, and the bytes are those of the forecast."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from shoestring.data.packing import pack  # noqa: E402
from shoestring.estimate.flops import ModelShape  # noqa: E402
from shoestring.estimate.memory import POLICIES, activation_bytes  # noqa: E402
from shoestring.records import Document, Example  # noqa: E402
from shoestring.train import recompute  # noqa: E402
from shoestring.train.recompute import wrapper  # noqa: E402
from shoestring.train.step import accumulate  # noqa: E402

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma": {"activation": "gelu_tanh", "post_norms": True, "qk_norm": True},
    "qwen": {"qkv_bias": True, "qk_norm": True, "tied": False},
}


def examples() -> list[Example]:
    g = torch.Generator().manual_seed(0)
    out = []
    for n in (30, 11, 17, 25):
        tokens = (3, 4, 5, *torch.randint(0, 61, (n,), generator=g).tolist())
        out.append(Example(tokens, (0.0,) * 5 + (1.0,) * (n - 2), 5))
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["selective", "full"])
def test_gradients_are_bit_equal_to_no_recomputation(policy: Any, family: str, dtype: Any, tiny_decoder: Any) -> None:
    found = []
    for p in ("none", policy):
        model = tiny_decoder(**FAMILIES[family]).to(dtype)
        model.wrap = wrapper(p)
        loss = accumulate(model, pack(examples(), 50)).loss
        found.append((loss, {n: x.grad for n, x in model.named_parameters()}))
    assert found[0][0] == found[1][0]
    assert found[0][1].keys() == found[1][1].keys()
    assert all(g is not None and g.any() and torch.equal(g, found[1][1][n]) for n, g in found[0][1].items())


class Storages(TorchDispatchMode):
    """Every storage that an operation made, so that one can ask which of them are still held."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                storage = t.untyped_storage()
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out

    def held(self, model: Any) -> int:
        """Bytes still held, without the weights, of which operations make views."""
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        return sum(n for at, (ref, n) in self.made.items() if not ref.expired() and at not in weights)


def kept(model: Any, policy: Any, rows: int) -> int:
    """Bytes alive between the forward and the backward pass, for one long document."""
    model.wrap = wrapper(policy)
    with Storages() as storages:
        out = model.hidden(torch.arange(rows) % 61, torch.arange(rows), [Document(0, rows)])
        held = storages.held(model)
    out.float().sum().backward()
    model.zero_grad(set_to_none=True)
    return held


def test_what_is_kept_is_what_the_forecast_says(tiny_decoder: Any) -> None:
    """Per layer, as the difference of two depths, so that embedding, plan and last norm fall out."""
    sizes: dict[str, Any] = dict(hidden=48, heads=6, kv_heads=2, head_dim=8, intermediate=96)
    rows = 448  # neither the pack nor the document is filled up
    layers = [tiny_decoder(layers=n, **sizes).bfloat16() for n in (2, 6)]
    shape = ModelShape(1, vocab=61, tied=True, **sizes)
    measured = {p: (kept(layers[1], p, rows) - kept(layers[0], p, rows)) / 4 / rows for p in POLICIES}
    assert measured["full"] < measured["selective"] < measured["none"]
    for policy in POLICIES:
        # the flash kernel keeps 4 bytes a head and row more than the compiled pieces
        assert measured[policy] == pytest.approx(activation_bytes(shape, policy), rel=0.01, abs=25), policy


def test_selective_engages_by_recipes_and_full_by_a_second_pass(tiny_decoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    for name, recipe in list(recompute.RECIPES.items()):
        monkeypatch.setitem(recompute.RECIPES, name, lambda node, r=recipe, n=name: (used.append(n), r(node))[1])
    model = tiny_decoder()
    model.wrap = wrapper("selective")
    accumulate(model, pack(examples(), 200))
    assert used.count("_RmsNormBackward") == 2 * 2 and used.count("_GatedBackward") == 2
    runs: list[int] = []
    inner = model._block
    model.wrap = lambda block: wrapper("full")(lambda *a: (runs.append(1), inner(*a))[1])  # type: ignore[misc]
    accumulate(model, pack(examples(), 200))
    assert len(runs) == 2 * 2


@pytest.mark.parametrize("policy", ["selective", "full"])
def test_without_gradients_a_block_is_itself(policy: Any, tiny_decoder: Any) -> None:
    model = tiny_decoder()
    ids, documents = torch.arange(9), [Document(0, 9)]
    with torch.no_grad():
        plain = model.logits(ids, ids, documents)
        model.wrap = wrapper(policy)
        assert torch.equal(model.logits(ids, ids, documents), plain)


def test_none_is_no_wrapper_and_nonsense_is_refused() -> None:
    assert wrapper("none") is None
    with pytest.raises(ValueError, match="none, selective, full"):
        wrapper("some")  # type: ignore[arg-type]
