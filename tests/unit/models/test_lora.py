"""LoRA against its plain twin: one projection at a time, each with the dense W + scale B A."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from shoestring.models import lora, nf4  # noqa: E402
from shoestring.models.lora import LoraConfig  # noqa: E402
from shoestring.records import Document, UserError  # noqa: E402
from shoestring.train.checkpoints import Checkpoints, read_tensors  # noqa: E402
from shoestring.train.optimiser import MasterAdamW  # noqa: E402

SIZES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "biases, norms of heads": dict(qkv_bias=True, out_bias=True, mlp_bias=True, qk_norm=True, tied=False),
}
CONFIGS = {
    "all": LoraConfig(4, 8.0),
    "queries and values": LoraConfig(3, 6.0, ("v_proj", "q_proj")),
    "keys, up, rslora": LoraConfig(4, 2.0, ("k_proj", "up_proj"), rslora=True),
    "o and down": LoraConfig(2, 5.0, ("o_proj", "down_proj")),
}
TOKENS = torch.randint(0, 61, (23,), generator=torch.Generator().manual_seed(3))
DOCUMENTS = [Document(0, 9), Document(9, 23)]
POSITIONS = torch.cat([torch.arange(9), torch.arange(14)])


def fill(model: Any, seed: int = 5) -> None:
    """B away from zero, so that every part of the sum counts; biases too."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("_B", "_bias")):
                p.copy_(torch.randn(p.shape, generator=g) * 0.3)


def twin(model: Any, x: Any, block: Any, name: str, leaves: dict[str, Any]) -> Any:
    """The projections one by one. leaves collects A and B copies that take gradients."""
    where, base, bias = lora.spans(model.config), getattr(block, name), getattr(block, name + "_bias", None)
    base = base.dequantise(x.dtype) if isinstance(base, nf4.Nf4Matrix) else base.detach()
    adapter, outs = block.adapters[name], []
    for target in lora.FUSED[name]:
        start, rows = where[target]
        w = base[start : start + rows]
        if target in adapter.parts:
            for part in ("_A", "_B"):
                leaves[target + part] = getattr(adapter, target + part).detach().clone().requires_grad_()
            w = w + adapter.config.scale * leaves[target + "_B"] @ leaves[target + "_A"]
        outs.append(x @ w.t() + (0 if bias is None else bias[start : start + rows]))
    return torch.cat(outs, 1)


@pytest.mark.parametrize("quantised", [False, True], ids=["dense", "nf4"])
@pytest.mark.parametrize("which", CONFIGS)
@pytest.mark.parametrize("sizes", SIZES)
def test_a_fused_product_is_the_projections_one_by_one(
    sizes: str, which: str, quantised: bool, tiny_decoder: Callable[..., Any], relative: Callable[..., float]
) -> None:
    model = tiny_decoder(**SIZES[sizes])
    if quantised:
        nf4.quantise_model(model)
    own = lora.attach(model, CONFIGS[which], seed=1)
    fill(model)
    block, tried = model.blocks[1], 0
    for name, targets in lora.FUSED.items():
        if not set(targets) & set(CONFIGS[which].targets):
            continue
        tried += 1
        wide = getattr(block, name).shape[1]
        x = torch.randn(17, wide, generator=torch.Generator().manual_seed(2), requires_grad=True)
        x2, leaves = x.detach().clone().requires_grad_(), {}
        ours, plain = model.project(block, name, x), twin(model, x2, block, name, leaves)
        assert relative(ours, plain) <= 1e-5
        upstream = torch.randn(plain.shape, generator=torch.Generator().manual_seed(9))
        ours.backward(upstream)
        plain.backward(upstream)
        assert relative(x.grad, x2.grad) <= 1e-5
        for part, leaf in leaves.items():
            grad = own[f"blocks.1.adapted.{name}.{part}"].grad
            assert grad is not None and relative(grad, leaf.grad) <= 1e-5
        dense = torch.nn.functional.linear(x, model.weight(block, name), getattr(block, name + "_bias", None))
        assert relative(dense, plain) <= 1e-5
    assert tried


def test_an_unfrozen_base_keeps_its_gradients(tiny_decoder: Callable[..., Any], relative: Callable[..., float]) -> None:
    model = tiny_decoder(qkv_bias=True)
    lora.attach(model, LoraConfig(2, 2.0), seed=1)
    block = model.blocks[0]
    block.qkv.requires_grad_(True)
    block.qkv_bias.requires_grad_(True)
    x = torch.randn(5, 24)
    model.project(block, "qkv", x).square().sum().backward()
    w, b = block.qkv.detach().clone().requires_grad_(), block.qkv_bias.detach().clone().requires_grad_()
    torch.nn.functional.linear(x, w, b).square().sum().backward()  # B is zero
    assert relative(block.qkv.grad, w.grad) <= 1e-5 and relative(block.qkv_bias.grad, b.grad) <= 1e-5


@pytest.mark.parametrize("quantised", [False, True], ids=["dense", "nf4"])
def test_gradients_through_the_decoder_are_those_of_the_merged_model(
    quantised: bool, tiny_decoder: Callable[..., Any], relative: Callable[..., float]
) -> None:
    """dL/dB = scale dL/dW Aᵀ and dL/dA = scale Bᵀ dL/dW, with dL/dW from a plain decoder that holds W + scale B A."""
    config = CONFIGS["all"]
    model, plain = tiny_decoder(), tiny_decoder()
    if quantised:
        nf4.quantise_model(model)
    own = lora.attach(model, config, seed=1)
    fill(model)
    with torch.no_grad():
        for name, w in lora.merged(model).items():
            plain.get_parameter(name).copy_(w)
    for m in (model, plain):
        m.logits(TOKENS, POSITIONS, DOCUMENTS).square().mean().backward()
    where = lora.spans(model.config)
    for name, p in own.items():
        _, layer, _, fused, part = name.split(".")
        start, rows = where[part[:-2]]
        grad_w = config.scale * plain.get_parameter(f"blocks.{layer}.{fused}").grad[start : start + rows]
        a, b = own[name[:-1] + "A"].detach(), own[name[:-1] + "B"].detach()
        assert p.grad is not None and relative(p.grad, grad_w @ a.t() if part.endswith("B") else b.t() @ grad_w) <= 1e-4


def test_attaching_changes_nothing_and_freezes_the_base(tiny_decoder: Callable[..., Any]) -> None:
    model, plain = tiny_decoder(), tiny_decoder()
    own = lora.attach(model, CONFIGS["all"], seed=1)
    assert torch.equal(model.logits(TOKENS, POSITIONS, DOCUMENTS), plain.logits(TOKENS, POSITIONS, DOCUMENTS))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == own.keys() == lora.trainable(model).keys()
    assert len(own) == 2 * 7 * 2 and lora.config_of(model) == CONFIGS["all"]
    a = own["blocks.0.adapted.gate_up.up_proj_A"]
    widest = 1 / math.sqrt(24)  # Kaiming's bound with a = sqrt 5
    assert 0.9 * widest < float(a.detach().abs().max()) <= widest
    with pytest.raises(ValueError, match="attached already"):
        lora.attach(model, CONFIGS["all"], seed=1)


def test_names_and_values_depend_on_the_seed_alone(tiny_decoder: Callable[..., Any]) -> None:
    first = lora.attach(tiny_decoder(), CONFIGS["all"], seed=1)
    again = lora.attach(tiny_decoder(), CONFIGS["all"], seed=1)
    other = lora.attach(tiny_decoder(), CONFIGS["all"], seed=2)
    assert list(first) == list(again) == list(other) and len(set(first)) == len(first)
    assert all(torch.equal(first[n], again[n]) for n in first)
    drawn = [n for n in first if n.endswith("_A")]
    assert not any(torch.equal(first[n], other[n]) for n in drawn)
    assert not torch.equal(first[drawn[0]], first[drawn[1]])
    few = lora.attach(tiny_decoder(), LoraConfig(4, 8.0, ("up_proj",)), seed=1)
    assert all(torch.equal(few[n], first[n]) for n in few)  # other targets do not move a projection's start


@pytest.mark.parametrize("quantised", [False, True], ids=["dense", "nf4"])
def test_merging_and_detaching(quantised: bool, tiny_decoder: Callable[..., Any], relative: Callable[..., float]) -> None:
    model, untouched = tiny_decoder(tied=False), tiny_decoder(tied=False)
    if quantised:
        nf4.quantise_model(model)
        nf4.quantise_model(untouched)
    with torch.no_grad():
        base = untouched.logits(TOKENS, POSITIONS, DOCUMENTS)
    lora.attach(model, CONFIGS["keys, up, rslora"], seed=1)
    fill(model)
    with torch.no_grad():
        before = model.logits(TOKENS, POSITIONS, DOCUMENTS)
    assert relative(before, base) > 1e-2
    plain = tiny_decoder(tied=False)
    with torch.no_grad():
        found = lora.merged(model)
        assert found.keys() == dict(plain.named_parameters()).keys()
        for name, p in plain.named_parameters():
            p.copy_(found[name])
        assert relative(plain.logits(TOKENS, POSITIONS, DOCUMENTS), before) <= 1e-5
    lora.merge(model)
    with torch.no_grad():
        assert relative(model.logits(TOKENS, POSITIONS, DOCUMENTS), before) <= 1e-5
    assert {n for n, p in model.named_parameters() if p.requires_grad} == found.keys()
    assert model.blocks[0].adapters is None and not lora.trainable(model) and lora.config_of(model) is None
    lora.attach(model, CONFIGS["all"], seed=1)  # free again
    fill(model)
    lora.detach(model)
    with torch.no_grad():
        assert torch.equal(model.logits(TOKENS, POSITIONS, DOCUMENTS), plain.logits(TOKENS, POSITIONS, DOCUMENTS))
    lora.attach(untouched, CONFIGS["all"], seed=1)
    fill(untouched)
    lora.detach(untouched)
    with torch.no_grad():
        assert torch.equal(untouched.logits(TOKENS, POSITIONS, DOCUMENTS), base)
    assert (untouched.blocks[0].adapters is not None) == quantised and not lora.trainable(untouched)


def test_merging_takes_fp32_masters_and_a_wide_base(tiny_decoder: Callable[..., Any]) -> None:
    wide, model = tiny_decoder(), tiny_decoder().to(torch.bfloat16)
    lora.attach(model, CONFIGS["all"], seed=1)
    masters = {n: p.detach().float() + 1e-4 for n, p in lora.trainable(model).items()}
    found = lora.merged(model, masters, dict(wide.named_parameters()))
    prefix = "blocks.1.adapted.down.down_proj_"
    reference = wide.blocks[1].down + CONFIGS["all"].scale * masters[prefix + "B"] @ masters[prefix + "A"]
    torch.testing.assert_close(found["blocks.1.down"], reference.detach(), atol=1e-6, rtol=1e-6)
    assert torch.equal(found["embedding"], wide.embedding) and all(t.dtype == torch.float32 for t in found.values())
    assert model.weight(model.blocks[0], "qkv").dtype == torch.bfloat16
    found_narrow = lora.merged(model, masters)["blocks.1.qkv"]
    lora.merge(model, masters)
    step = model.blocks[1].qkv.float() - found_narrow
    assert model.blocks[1].qkv.dtype == torch.bfloat16 and bool((step.abs() <= found_narrow.abs() * 2**-7).all())


def learn(model: Any) -> None:
    """One backward pass of next-token prediction."""
    logits = model.logits(TOKENS, POSITIONS, DOCUMENTS).float()
    torch.nn.functional.cross_entropy(logits[:-1], TOKENS[1:]).backward()


@pytest.mark.parametrize("quantised", [False, True], ids=["dense", "nf4"])
def test_a_resumed_adapter_ends_where_an_uninterrupted_one_does(
    quantised: bool, tiny_decoder: Callable[..., Any], tmp_path: Any
) -> None:
    def start(seed: int = 1) -> tuple[Any, Any]:
        model = tiny_decoder().to(torch.bfloat16)
        if quantised:
            nf4.quantise_model(model)
        lora.attach(model, CONFIGS["all"], seed)
        return model, MasterAdamW(model, lr=1e-2)

    def train(model: Any, optimiser: Any, steps: int) -> None:
        for _ in range(steps):
            learn(model)
            optimiser.step(1.0, 1.0)

    whole, optimiser = start()
    assert optimiser.masters.keys() == lora.trainable(whole).keys()
    train(whole, optimiser, 2)
    checkpoints = Checkpoints(tmp_path, "hash")
    saved = checkpoints.save("sft", 2, optimiser.tensors(), {})
    checkpoints.wait()
    train(whole, optimiser, 2)
    resumed, again = start(seed=7)
    again.restore(read_tensors(saved.path))
    train(resumed, again, 2)
    assert all(torch.equal(again.masters[n], m) for n, m in optimiser.masters.items())
    fresh, _ = start(seed=7)
    lora.restore(fresh, {k.removeprefix("master/"): v for k, v in read_tensors(saved.path, "master/").items()})
    assert not any(n.endswith("_B") and not p.any() for n, p in lora.trainable(fresh).items())
    other = tiny_decoder()
    lora.attach(other, LoraConfig(2, 8.0), seed=1)
    with pytest.raises(UserError, match="another rank or other targets"):
        lora.restore(other, optimiser.masters)


def test_an_adapter_that_moves_is_counted_and_one_that_does_not_says_why(tiny_decoder: Callable[..., Any]) -> None:
    def step(lr: float = 1e-3, lost: bool = False, frozen: bool = False) -> tuple[int, int]:
        model = tiny_decoder()
        lora.attach(model, CONFIGS["all"], seed=1)
        if lost:  # the adapters are bypassed
            for b in model.blocks:
                b.adapters = None
            model.norm.requires_grad_(True)
        if frozen:
            model.requires_grad_(False)
            model.norm.requires_grad_(True)
        optimiser = MasterAdamW(model, lr=lr)
        before = lora.snapshot(optimiser.masters)
        learn(model)
        own = [g for n, g in optimiser.grads.items() if n in lora.trainable(model)]
        norm = float(torch.stack([g.norm() for g in own]).norm()) if own else 0.0
        optimiser.step(1.0, 1.0)
        return lora.check_moved(before, optimiser.masters, lr, norm)

    assert step() == (14, 14)
    for kind, why in (
        (dict(lr=0.0), "learning rate is 0"),
        (dict(lost=True), "no gradient reached it"),
        (dict(frozen=True), "the optimiser holds none"),
    ):
        with pytest.raises(UserError, match=f"has not moved.*{why}"):
            step(**kind)  # pyright: ignore[reportArgumentType]
    b = {"blocks.0.adapted.qkv.q_proj_B": torch.zeros(2, 2)}
    for lr, norm, why in ((1e-12, 1.0, "precision"), (1e-3, math.nan, "skipped")):
        with pytest.raises(UserError, match=why):
            lora.check_moved(b, b, lr, norm)
    with pytest.raises(UserError, match="left the optimiser"):
        lora.check_moved(b, {}, 1.0, 1.0)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (dict(rank=0), "rank must be at least 1"),
        (dict(alpha=0.0), "alpha must be positive"),
        (dict(alpha=math.nan), "alpha must be positive"),
        (dict(targets=("q",)), "no projection 'q'"),
        (dict(targets="some"), "no projection 'some'"),
        (dict(targets=()), "none given"),
    ],
)
def test_a_config_that_makes_no_sense_names_its_key(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        LoraConfig(**given)


def test_the_scale_and_the_order_of_targets() -> None:
    assert LoraConfig(16, 32.0).scale == 2.0 and LoraConfig(16, 32.0, rslora=True).scale == 8.0
    assert LoraConfig(4, 4.0, ("up_proj", "q_proj", "q_proj")).targets == ("q_proj", "up_proj")
    assert LoraConfig(4, 4.0, "v_proj").targets == ("v_proj",) and len(LoraConfig().targets) == 7


def test_an_update_below_the_last_place_is_not_lost() -> None:
    """In bf16: neither in the product that training makes nor, on average, in the merged matrix that rollouts read."""
    g = torch.Generator().manual_seed(1)
    w = torch.randn(512, 256, generator=g).bfloat16()
    x = torch.randn(64, 256, generator=g).bfloat16()
    adapter = lora.Adapter(LoraConfig(1, 1.0), {"o_proj": (0, 512)})
    adapter.register_parameter("o_proj_A", torch.nn.Parameter(torch.full((1, 256), 2.0**-6).bfloat16()))
    adapter.register_parameter("o_proj_B", torch.nn.Parameter(torch.full((512, 1), 2.0**-5).bfloat16()))
    delta = torch.full((512, 256), 2.0**-11)  # a weight of size 1 has steps of 2^-7
    with torch.no_grad():
        wanted = x.float() @ delta.t()

        def share(found: Any) -> float:
            """How much of the update arrives: the slope of what was added against what should have been."""
            added = found.float() - x.float() @ w.float().t()
            return float((added * wanted).sum() / wanted.square().sum())

        late = torch.nn.functional.linear(x, w) + (x @ adapter.o_proj_A.t()) @ adapter.o_proj_B.t()
        merged = adapter.merged(w)
        assert merged.dtype == torch.bfloat16 and torch.equal(merged, adapter.merged(w))
        assert abs(share(adapter(x, w, None)) - 1) <= 0.1
        assert abs(share(x.float() @ merged.float().t()) - 1) <= 0.1
        assert share(x.float() @ (w.float() + delta).bfloat16().float().t()) < 0.5 and share(late) < 0.9
        adapter.o_proj_B.zero_()
        assert torch.equal(adapter.merged(w), w)
