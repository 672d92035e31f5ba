"""A GPU against the CPU: the same logits, gradients and tokens, and steps as graphs against steps without."""

from __future__ import annotations

import random
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from shoestring.data.packing import pack  # noqa: E402
from shoestring.generate.engine import Engine, Request  # noqa: E402
from shoestring.models import varlen  # noqa: E402
from shoestring.models.rope import Rope  # noqa: E402
from shoestring.records import Document, Example  # noqa: E402
from shoestring.train.optimiser import NAMES, make  # noqa: E402
from shoestring.train.policy import Policy  # noqa: E402
from shoestring.train.step import accumulate  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; the same steps run on the CPU in the other tests")]

WIDE: dict[str, Any] = dict(hidden=96, heads=6, kv_heads=2, head_dim=16, intermediate=80, vocab=211)
KINDS: list[dict[str, Any]] = [
    {},
    {"windows": (9, 0), "ropes": (Rope(1e4), Rope(5e2)), "rope_of": (1, 0)},
    {"qk_norm": True, "qkv_bias": True, "out_bias": True, "tied": False},
    {"post_norms": True, "activation": "gelu_tanh", "embedding_scale": 4.9, "attention_scale": 0.3},
    {"ropes": (Rope(1e4, "dynamic", 2.0, original=40),)},
]


def both(tiny_decoder: Any, sizes: dict[str, Any], dtype: Any) -> tuple[Any, Any]:
    made = [tiny_decoder(std=0.1, **(WIDE | sizes)).to(dtype) for _ in range(2)]
    return made[0], made[1].to("cuda")


def batches(seed: int = 0, policy: bool = False) -> Any:
    """Examples of which several share a beginning, one of them long."""
    rng = random.Random(seed)
    stem, examples = [rng.randrange(211) for _ in range(30)], []
    for n in (3, 9, 40, 260, 5, 17):
        tokens = (*stem[: rng.choice([10, 30])], *(rng.randrange(211) for _ in range(n)))
        extra = dict(advantage=rng.uniform(-1, 1), logprob=(-5.0,) * len(tokens)) if policy else {}
        examples.append(Example(tokens, (0.0,) * 10 + (1.0,) * (len(tokens) - 10), 10, **extra))
    return pack(examples, 350)


@pytest.mark.parametrize("sizes", KINDS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 4e-2)], ids=str)
def test_logits_and_gradients(sizes: Any, dtype: Any, tolerance: float, tiny_decoder: Any, relative: Any) -> None:
    cpu, gpu = both(tiny_decoder, sizes, dtype)
    assert varlen.usable(gpu.embedding, 16) == (dtype == torch.bfloat16), "the kernel is what bf16 runs on"
    ids = torch.randint(211, (300,), generator=torch.Generator().manual_seed(1))
    documents = [Document(0, 280, 20, ((20, 30), (30, 280))), Document(280, 300)]
    at = torch.cat([torch.arange(30), torch.arange(20, 270), torch.arange(20)])
    with torch.no_grad():
        a, b = cpu.logits(ids, at, documents), gpu.logits(ids.cuda(), at.cuda(), documents)
    assert relative(b.cpu(), a) < tolerance
    for policy in (False, True):
        grads = []
        for model in (cpu, gpu):
            optimiser = make("adamw", model, 1e-3)
            accumulate(model, batches(policy=policy), Policy() if policy else None)
            grads.append({n: g.float().cpu() for n, g in optimiser.grads.items()})
            optimiser.zero()
            optimiser.close()
        for name, g in grads[0].items():
            assert relative(grads[1][name], g) < 3 * tolerance, name


@pytest.mark.parametrize("name", NAMES)
def test_an_optimiser_step_from_equal_gradients(name: Any, tiny_decoder: Any) -> None:
    cpu, gpu = both(tiny_decoder, {}, torch.float32)
    made = [make(name, m, 1e-3) for m in (cpu, gpu)]
    for _ in range(3):
        g = torch.Generator().manual_seed(7)
        for n, p in made[0].parameters.items():
            grad = torch.randn(p.shape, generator=g)
            made[0].grads[n], made[1].grads[n] = grad, grad.cuda()
        norms = [o.step(1.0, 1.0) for o in made]
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    loose = 2e-3 if name == "muon" else 1e-5  # its iteration is in bf16, whose products sum in other orders
    for n, master in made[0].masters.items():
        assert torch.allclose(made[1].masters[n].cpu(), master, atol=loose), n
    saved = {k: t.cpu() for k, t in made[1].tensors().items()}
    made[1].restore(saved)
    assert all(t.device.type == "cuda" for k, t in made[1].tensors().items() if t.dim())


def requests(seed: int, count: int, temperature: float) -> list[Request]:
    rng = random.Random(seed)
    prompts = [tuple(rng.randrange(211) for _ in range(n)) for n in (3, 62, 64, 73, 129)]
    return [Request(rng.choice(prompts), rng.choice([5, 40, 90]), temperature, seed=k) for k in range(count)]


@pytest.mark.parametrize("sizes", KINDS, ids=str)
def test_greedy_tokens_in_fp32_are_the_cpus(sizes: Any, tiny_decoder: Any) -> None:
    cpu, gpu = both(tiny_decoder, sizes, torch.float32)
    asked = requests(2, 11, 0.0)
    for a, b in zip(Engine(cpu, 6).generate(asked), Engine(gpu, 6).generate(asked), strict=True):
        assert a.tokens == b.tokens and a.logprobs == pytest.approx(b.logprobs, abs=1e-3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_graphs_change_nothing(dtype: Any, temperature: float, tiny_decoder: Any) -> None:
    _, gpu = both(tiny_decoder, {}, dtype)
    asked = requests(3, 13, temperature)
    plain = Engine(gpu, 6, graphs=False).generate(asked)
    engine = Engine(gpu, 6)
    with engine.open(engine._needed(asked)) as session:
        names = {session.add(r): k for k, r in enumerate(asked)}
        done: dict[int, Any] = {}
        while not session.idle:
            done |= {names[e[0]]: e[1] for e in session.step() if len(e) == 2}
        assert session._steps is not None and session._steps.captured and session._steps.replays > 20
    for k, a in enumerate(plain):
        assert done[k].tokens == a.tokens and done[k].logprobs == pytest.approx(a.logprobs, abs=1e-4)


def test_weights_that_moved_are_seen(tiny_decoder: Any) -> None:
    """As in GRPO: the same engine before and after an update in place."""
    _, gpu = both(tiny_decoder, {}, torch.bfloat16)
    engine, asked = Engine(gpu, 4), requests(4, 6, 0.0)
    before = engine.generate(asked)
    with torch.no_grad():
        gpu.blocks[0].qkv.mul_(-1.0)
    engine.refresh()
    after = engine.generate(asked)
    assert [c.tokens for c in after] != [c.tokens for c in before]
    assert [c.tokens for c in after] == [c.tokens for c in Engine(gpu, 4, graphs=False).generate(asked)]
