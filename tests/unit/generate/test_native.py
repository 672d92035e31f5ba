"""The compiled decode steps against the plain ones, operation by operation and whole."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from shoestring import native as compiled  # noqa: E402
from shoestring.generate import decode, native  # noqa: E402
from shoestring.generate.cache import BLOCK  # noqa: E402
from shoestring.generate.engine import Engine, Request, Session  # noqa: E402
from shoestring.models.rope import Rope  # noqa: E402

VOCAB = 61
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen": {"qkv_bias": True, "qk_norm": True, "head_dim": 6},
    "gemma": {"post_norms": True, "activation": "gelu_tanh", "embedding_scale": 4.9, "windows": (5, BLOCK + 3)},
    "smollm3": {"ropes": (Rope(10000.0, "dynamic", 2.0, original=70), Rope(500.0)), "rope_of": (0, -1)},
    "wide heads": {"head_dim": 64, "heads": 6, "kv_heads": 2},
    "wider heads": {"head_dim": 128, "heads": 4, "kv_heads": 4},
}
needs_compiler = pytest.mark.skipif(compiled.library()[0] is None, reason=f"nothing is compiled here: {compiled.library()[1]}")


def some(seed: int, count: int) -> list[Request]:
    """Prompts within a block, across one and past two, some of them shared by several rows."""
    rng = random.Random(seed)
    prompts = [tuple(rng.randrange(VOCAB) for _ in range(n)) for n in (3, BLOCK - 2, BLOCK, BLOCK + 9, 2 * BLOCK + 1)]
    return [Request(rng.choice(prompts), rng.choice([5, 9, 70]), 0.9, seed=k) for k in range(count)]


def begun(model: Any, steps: int, requests: list[Request]) -> tuple[Session, decode.Plan, Any, Any]:
    """A session in the middle of its answers, its plan, and the tokens and positions of its next step."""
    session = Engine(model, len(requests)).open(8192)
    for r in requests:
        session.add(r)
    for _ in range(steps):
        session.step()
    for row in session.rows:
        session.pool.grow(row.own, row.own.length + 1)
    plan = decode.Plan(session.rows, session.pool, torch.device("cpu"))
    return session, plan, torch.tensor([r.last for r in session.rows]), torch.tensor([r.position for r in session.rows])


def relative(a: Any, b: Any) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


@needs_compiler
@pytest.mark.parametrize("sizes", FAMILIES.values(), ids=FAMILIES)
def test_a_step_is_as_near_to_fp32_as_the_plain_one(sizes: dict[str, Any], tiny_decoder: Any) -> None:
    """Both round to bf16 on their way; against the same step in fp32, over the same cache, they err alike."""
    model = tiny_decoder(**sizes).to(torch.bfloat16)
    session, plan, tokens, positions = begun(model, 8, some(3, 9))
    assert plan.shared and plan.gaps and plan.width > 1
    layers = session.engine.layers
    ours = native.Steps(model, session.pool).run(layers, plan, tokens, positions)
    kept = session.pool.storage.clone()
    plain = decode.step(model, layers, session.pool, plan, tokens, positions)
    assert relative(kept, session.pool.storage) < 0.02, "the same keys and values were added"
    pool = session.pool
    pool.storage = pool.storage.float()
    pool.flat = [layer.view(-1, pool.storage.shape[-1]) for layer in pool.storage]
    pool.pairs = [(layer[0], layer[1]) for layer in pool.storage]
    exact = decode.step(model.float(), decode.prepare(model, len(tokens)), pool, plan, tokens, positions)
    assert relative(ours, exact) < 1.3 * relative(plain, exact) + 1e-3
    assert relative(ours, plain) < 0.03


@needs_compiler
def test_attention_over_many_blocks(tiny_decoder: Any) -> None:
    """In fp32 from the same bf16 queries, keys and values, row by row."""
    model = tiny_decoder(head_dim=64, max_positions=1024).to(torch.bfloat16)
    c = model.config
    long = [Request(tuple(range(40)) * 9, 40, 0.9, seed=1), Request((1, 2, 3), 40, 0.9, seed=2)]
    session, plan, _, positions = begun(model, 30, long)
    g = torch.Generator().manual_seed(0)
    session.pool.storage.normal_(generator=g)
    qkv = torch.randn(2, c.heads + 2 * c.kv_heads, c.head_dim, generator=g).bfloat16()
    steps = native.Steps(model, session.pool)
    steps._bind(plan, 1)
    mask, (keys, values) = plan.mask(positions, 0), session.pool.pairs[1]
    steps.functions.ss_attend(
        qkv.data_ptr(), keys.data_ptr(), values.data_ptr(), mask.data_ptr(), steps.seen.data_ptr(), steps.scratch.data_ptr(),
        ctypes.addressof(steps.bound), ctypes.addressof(steps.shape),
    )  # fmt: skip
    group = c.heads // c.kv_heads
    for i, row in enumerate(session.rows):
        own = torch.tensor(row.own.blocks)
        k, v = (x[own].transpose(0, 1).reshape(c.kv_heads, -1, c.head_dim)[:, : positions[i] + 1].float() for x in (keys, values))
        q = qkv[i, : c.heads].view(c.kv_heads, group, c.head_dim).float()
        wanted = torch.softmax(q @ k.transpose(1, 2) * c.attention_scale, -1) @ v
        assert relative(steps.seen[i], wanted.reshape(-1)) < 0.01


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@needs_compiler
@pytest.mark.usefixtures("threads")
def test_the_engine_takes_them_and_threads_change_nothing(tiny_decoder: Any) -> None:
    model = tiny_decoder(intermediate=1024).to(torch.bfloat16)  # of a product of 2048, oneDNN cuts the sum among threads with AMX
    answers = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        engine = Engine(model, 12)
        answers.append([(c.tokens, c.logprobs) for c in engine.generate(some(5, 24))])
        assert engine.counters.native_steps == engine.counters.steps > 0
    assert answers[0] == answers[1] == answers[2]


@needs_compiler
def test_a_row_does_not_depend_on_its_neighbours(tiny_decoder: Any) -> None:
    """Of the compiled parts; the products between them may round otherwise at other numbers of rows."""
    model = tiny_decoder(**FAMILIES["wide heads"]).to(torch.bfloat16)
    session, plan, _, positions = begun(model, 8, some(3, 9))
    c = model.config
    count = len(session.rows)
    qkv = torch.randn(count, c.heads + 2 * c.kv_heads, c.head_dim).bfloat16()
    keys, values = session.pool.pairs[0]

    def seen(plan: decode.Plan, qkv: Any, positions: Any) -> Any:
        steps = native.Steps(model, session.pool)
        steps._bind(plan, 2)
        mask = plan.mask(positions, 0)
        steps.functions.ss_attend(
            qkv.data_ptr(), keys.data_ptr(), values.data_ptr(), mask.data_ptr(), steps.seen.data_ptr(),
            steps.scratch.data_ptr(), ctypes.addressof(steps.bound), ctypes.addressof(steps.shape),
        )  # fmt: skip
        return steps.seen

    whole = seen(plan, qkv, positions)
    for i in range(count):
        alone = decode.Plan(session.rows[i : i + 1], session.pool, torch.device("cpu"))
        assert torch.equal(seen(alone, qkv[i : i + 1].contiguous(), positions[i : i + 1])[0], whole[i])
