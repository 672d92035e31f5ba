"""A running batch: arrivals, departures, a cache of a stated size, shared prompts, families of every kind."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from whole_sequence import twin  # noqa: E402

from shoestring.generate.cache import BLOCK  # noqa: E402
from shoestring.generate.engine import Completion, Engine, Request, Session  # noqa: E402
from shoestring.models.rope import Rope  # noqa: E402

VOCAB = 61


def prompt(n: int, seed: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(VOCAB) for _ in range(n))


def drain(session: Session) -> dict[int, Completion]:
    done: dict[int, Completion] = {}
    while not session.idle:
        done |= {e[0]: e[1] for e in session.step() if len(e) == 2}
    return done


def empty(session: Session) -> bool:
    return not (session.pool.used or session.pool.owner or session._reserved or session.prefixes or session._wanted)


@pytest.mark.parametrize(
    "sizes",
    [
        {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
        {"qk_norm": True, "head_dim": 6},
        {"post_norms": True, "activation": "gelu_tanh", "embedding_scale": 4.9, "attention_scale": 0.3},
        {"windows": (5, 0), "ropes": (Rope(10000.0), Rope(500.0)), "rope_of": (1, 0)},
        {"rope_of": (0, -1)},
        {"windows": (BLOCK + 7, 3)},
        {"ropes": (Rope(10000.0, "linear", 4.0),)},
    ],
    ids=str,
)  # fmt: skip
def test_every_kind_of_layer(sizes: dict[str, Any], tiny_decoder: Callable[..., Any]) -> None:
    model = tiny_decoder(**sizes)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    shared = prompt(2 * BLOCK + 9, 1)
    requests = [Request(shared, 6, 1.0, k) for k in range(3)] + [Request(prompt(n, n), 5, 1.0, n) for n in (1, 20, BLOCK, 90)]
    engine = Engine(model, 8)
    assert [c.tokens for c in engine.generate(requests)] == [twin(model, r).tokens for r in requests]


def test_arrivals_and_departures(tiny_decoder: Callable[..., Any]) -> None:
    model = tiny_decoder()
    requests = [Request(prompt(10 + 7 * k, k % 4), 4 + k, 1.0, k) for k in range(10)]
    alone = {k: twin(model, r).tokens for k, r in enumerate(requests)}
    with Engine(model, 4).open() as session:
        names: dict[int, int] = {}
        done: dict[int, Completion] = {}
        for k, r in enumerate(requests):
            names[session.add(r)] = k
            for _ in range(3):
                done |= {e[0]: e[1] for e in session.step() if len(e) == 2}
        done |= drain(session)
        assert {names[i]: c.tokens for i, c in done.items()} == alone
        assert empty(session)


def test_a_cancelled_request_frees_its_blocks_and_leaves_the_others_alone(tiny_decoder: Callable[..., Any]) -> None:
    model = tiny_decoder()
    requests = [Request(prompt(70, k // 2), 30, 1.0, k) for k in range(6)]
    with Engine(model, 4).open() as session:
        ids = [session.add(r) for r in requests]
        for _ in range(4):
            session.step()
        assert session.cancel(ids[0]) and session.cancel(ids[5]) and not session.cancel(ids[0])
        done = drain(session)
        assert [done[ids[k]].tokens for k in (1, 2, 3, 4)] == [twin(model, requests[k]).tokens for k in (1, 2, 3, 4)]
        assert ids[0] not in done and not session.cancel(ids[1]) and empty(session)


@pytest.mark.parametrize("blocks", [2, 3, 5])
def test_the_cache_keeps_its_size(blocks: int, tiny_decoder: Callable[..., Any]) -> None:
    """Requests wait for blocks instead of taking more; none starves, also when a kept prompt stands in the way."""
    model = tiny_decoder()
    shared = prompt(BLOCK - 4, 9)
    requests = [Request(shared, 8, 1.0, 100 + k) for k in range(5)]
    requests += [Request(prompt(BLOCK + 3, k), 6 + k, 1.0, k) for k in range(4)]
    random.Random(blocks).shuffle(requests)
    engine = Engine(model, 6, cache_tokens=blocks * BLOCK)
    with engine.open() as session:
        assert session.pool.capacity == blocks
        ids = [session.add(r) for r in requests]
        done = drain(session)
        assert [done[i].tokens for i in ids] == [twin(model, r).tokens for r in requests]
        assert empty(session)
    assert 0 < engine.counters.most_blocks <= blocks and engine.counters.waits > 0


def test_what_the_cache_can_never_hold_is_refused_alone(tiny_decoder: Callable[..., Any]) -> None:
    engine = Engine(tiny_decoder(), 2, cache_tokens=BLOCK)
    big, small = engine.generate([Request(prompt(BLOCK, 0), 5), Request(prompt(9, 0), 5)])
    assert big.reason == "error" and "cache holds" in big.error and len(small.tokens) == 5
    with pytest.raises(ValueError):
        Engine(tiny_decoder(), 2, cache_tokens=BLOCK - 1)


def test_a_prompt_stays_once_for_all_its_rows_also_for_those_that_come_later(tiny_decoder: Callable[..., Any]) -> None:
    model = tiny_decoder()
    p = prompt(3 * BLOCK, 5)
    requests = [Request(p, 7, 1.0, k) for k in range(9)]
    engine = Engine(model, slots=3)
    assert [c.tokens for c in engine.generate(requests)] == [twin(model, r).tokens for r in requests]
    assert engine.counters.prompt_rows == len(p) and engine.counters.prompt_tokens == 9 * len(p)
    assert engine.counters.most_blocks == 3 + 3, "three shared blocks and one of its own for each of three rows"


def test_stop_strings_are_found_across_tokens(tiny_decoder: Callable[..., Any]) -> None:
    model = tiny_decoder()

    def text(ids: Any) -> str:
        return "".join(chr(97 + i % 26) for i in ids)

    engine = Engine(model, text=text)
    (free,) = engine.generate([Request((4, 5), 40, 1.0, 3)])
    whole = text(free.tokens)
    cut = whole[6:9]
    (done, refused) = engine.generate([Request((4, 5), 40, 1.0, 3, stop_strings=(cut, "never")), Request((4,), 2)])
    assert done.reason == "stop" and text(done.tokens) == whole[: whole.index(cut) + 3] and refused.reason == "length"
    (error,) = Engine(model).generate([Request((4, 5), 4, stop_strings=("x",))])
    assert error.reason == "error" and "text" in error.error


def test_streamed_tokens_are_the_completions(tiny_decoder: Callable[..., Any]) -> None:
    engine = Engine(tiny_decoder(), 2)
    requests = [Request((1, k), n, 1.0, k) for k, n in enumerate((3, 1, 5))]
    parts: dict[int, list[tuple[int, float]]] = {0: [], 1: [], 2: []}
    ended: list[int] = []
    for event in engine.tokens(requests):
        if len(event) == 2:
            i, done = event
            assert list(zip(done.tokens, done.logprobs, strict=True)) == parts[i]
            ended.append(i)
        else:
            assert event[0] not in ended
            parts[event[0]].append(event[1:])
    assert sorted(ended) == [0, 1, 2]


def test_wrong_settings_are_an_error_of_that_request(tiny_decoder: Callable[..., Any]) -> None:
    engine = Engine(tiny_decoder(), 4)
    bad = [Request((1,), 2, top_p=0.0), Request((1,), 2, top_k=-1), Request((1,), 2, min_p=1.0), Request((1,), 2, -1.0)]
    *errors, good = engine.generate([*bad, Request((1,), 2)])
    assert all(c.reason == "error" and "top_p" in c.error for c in errors) and len(good.tokens) == 2
