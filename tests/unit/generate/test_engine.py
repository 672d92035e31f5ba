"""The engine against a loop without a cache, and what it promises about batches, sharing and stopping."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from whole_sequence import twin  # noqa: E402

from shoestring.generate.engine import Completion, Engine, Request  # noqa: E402
from shoestring.generate.prefill import PREFILL_ROWS, pack_prompts  # noqa: E402
from shoestring.records import Document  # noqa: E402
from shoestring.train.losses import linear_logprobs  # noqa: E402
from shoestring.trees import tree_rows  # noqa: E402

VOCAB = 61


def check(done: list[Completion], expected: list[Completion]) -> None:
    assert [c.tokens for c in done] == [c.tokens for c in expected]
    assert [c.reason for c in done] == [c.reason for c in expected]
    for a, b in zip(done, expected, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def make_requests(count: int = 9, temperature: float = 0.0, seed: int = 0) -> list[Request]:
    """Prompts of mixed lengths, several alike or beginning alike, and several lengths of answer."""
    rng = random.Random(seed)
    stem = tuple(rng.randrange(VOCAB) for _ in range(12))
    out: list[Request] = []
    for k in range(count):
        prompt = (*stem * (k % 3 > 0), *(rng.randrange(VOCAB) for _ in range(1 + k % 5 * 3)))
        if k % 4 == 3:
            prompt = out[-1].prompt
        out.append(Request(prompt, 3 + k % 4 * 5, temperature, seed=1000 + k, stop=frozenset([7, 8])))
    rng.shuffle(out)
    return out


@pytest.mark.parametrize(
    "sizes",
    [{}, {"tied": False, "kv_heads": 6}, {"kv_heads": 1, "layers": 1}, {"head_dim": 10}],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_is_the_loop_without_a_cache(sizes: dict[str, Any], temperature: float, tiny_decoder: Any) -> None:
    model = tiny_decoder(**sizes)
    requests = make_requests(temperature=temperature)
    check(Engine(model, slots=32).generate(requests), [twin(model, r) for r in requests])


@pytest.mark.parametrize("slots", [1, 2, 3, 8])
def test_fewer_slots_than_requests(slots: int, tiny_decoder: Any) -> None:
    model = tiny_decoder()
    requests = make_requests(14, 1.0)
    engine = Engine(model, slots)
    check(engine.generate(requests), [twin(model, r) for r in requests])
    assert engine.counters.new_tokens == sum(len(twin(model, r).tokens) for r in requests)
    if slots == 8:  # waiting requests took the rows of finished ones: fewer steps than wave after wave
        assert engine.counters.steps < 2 * max(r.max_new for r in requests)


def test_the_batch_does_not_change_what_a_request_samples(tiny_decoder: Any) -> None:
    engine = Engine(tiny_decoder(), slots=16)
    requests = make_requests(10, 1.0)
    together = engine.generate(requests)
    check([engine.generate([r])[0] for r in requests], together)
    check(engine.generate(requests[::-1])[::-1], together)
    check(engine.generate(requests + make_requests(6, 1.3, seed=4))[:10], together)


def test_a_seed_is_the_whole_of_the_noise(tiny_decoder: Any) -> None:
    model = tiny_decoder()
    prompt = (1, 2, 3)
    first = [Request(prompt, 12, 1.0, seed) for seed in range(8)]
    a, b = Engine(model, 8).generate(first), Engine(model, 8).generate(first)
    assert a == b and len({c.tokens for c in a}) == 8
    same = Engine(model, 8).generate([Request(prompt, 12, 1.0, 3)] * 3)
    assert {c.tokens for c in same} == {a[3].tokens}


def test_prompts_are_computed_once_a_group_and_beginnings_once_a_family(tiny_decoder: Any) -> None:
    model = tiny_decoder()
    engine = Engine(model, slots=64)
    prompts = [(*range(20), 30 + k, 31) for k in range(3)]
    requests = [Request(p, 2, 1.0, i) for i in range(8) for p in prompts]
    check(engine.generate(requests), [twin(model, r) for r in requests])
    assert engine.counters.prompt_tokens == 24 * 22
    assert engine.counters.prompt_rows == 20 + 3 * 2
    assert engine.counters.new_tokens == 48 and engine.counters.steps == 1


def test_logprobs_are_those_of_the_training_forward(tiny_decoder: Any) -> None:
    """What GRPO divides: behaviour and policy agree before the first update."""
    model = tiny_decoder(std=0.4)
    for temperature in (1.0, 0.6):
        requests = [Request((1, 2, 3, k), 10, temperature, k) for k in range(6)]
        for r, done in zip(requests, Engine(model, 6).generate(requests), strict=True):
            ids = torch.tensor(r.prompt + done.tokens)
            with torch.no_grad():
                h = model.hidden(ids, torch.arange(len(ids)), [Document(0, len(ids))])[len(r.prompt) - 1 : -1]
                again, _ = linear_logprobs(h, model.output_weight, ids[len(r.prompt) :], temperature)
            assert torch.tensor(done.logprobs) == pytest.approx(again, abs=1e-4)


def test_log_probabilities_that_nobody_wants(tiny_decoder: Any) -> None:
    model = tiny_decoder()
    requests = make_requests()
    bare = Engine(model).generate([replace(r, logprobs=False) for r in requests])
    assert [c.tokens for c in bare] == [c.tokens for c in Engine(model).generate(requests)]
    assert all(c.logprobs == () for c in bare)


def test_stopping(tiny_decoder: Any) -> None:
    model = tiny_decoder()
    (free,) = Engine(model).generate([Request((4, 5), 20)])
    assert free.reason == "length" and len(free.tokens) == 20
    at = free.tokens.index(free.tokens[5])
    (cut,) = Engine(model).generate([Request((4, 5), 20, stop=frozenset([free.tokens[5]]))])
    assert cut.tokens == free.tokens[: at + 1] and cut.reason == "stop"  # the stop token is part of the answer
    (last,) = Engine(model).generate([Request((4, 5), at + 1, stop=frozenset([free.tokens[5]]))])
    assert last.reason == "stop"  # at the last allowed token it is still a stop
    (one,) = Engine(model).generate([Request((4, 5), 1)])
    assert one.tokens == free.tokens[:1]


def test_temperature_sharpens(tiny_decoder: Any) -> None:
    engine = Engine(tiny_decoder(), 64)
    (greedy,) = engine.generate([Request((9,), 1)])
    share = []
    for t in (0.05, 1.0, 4.0):
        done = engine.generate([Request((9,), 1, t, seed) for seed in range(200)])
        share.append(sum(c.tokens == greedy.tokens for c in done) / 200)
    assert share[0] > share[1] > share[2] and share[0] > 0.9


@pytest.mark.parametrize(
    "bad", [Request((1,) * 1020, 5), Request((), 5), Request((1, 2), 0)], ids=["too long", "no prompt", "no room"]
)
def test_a_request_that_cannot_be_met_is_named(bad: Request, tiny_decoder: Any) -> None:
    model = tiny_decoder()
    good = [Request((1,), 2), Request((1,) * 1019, 5)]
    *fine, refused = Engine(model).generate([*good, bad])
    assert refused.reason == "error" and refused.tokens == () and "the window is 1024" in refused.error
    check(fine, [twin(model, r) for r in good])


def test_nothing_asked_nothing_done(tiny_decoder: Any) -> None:
    assert Engine(tiny_decoder()).generate([]) == []


def test_finished_requests_are_told_at_once(tiny_decoder: Any) -> None:
    seen: list[int] = []
    requests = [Request((1, k), n) for k, n in enumerate((9, 2, 5, 1))]
    done = Engine(tiny_decoder(), 4).generate(requests, lambda i, c: seen.append(i))
    assert seen == [3, 1, 2, 0] and [len(c.tokens) for c in done] == [9, 2, 5, 1]


def test_refresh_takes_up_moved_weights(tiny_decoder: Any) -> None:
    """In bf16 the engine holds packed copies, which go stale without it."""
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_decoder().to(dtype)
        model.inverse_frequency = tiny_decoder().inverse_frequency
        engine = Engine(model, 4)
        r = Request((3, 1, 4), 8)
        before = engine.generate([r])[0]
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(-0.7)
        engine.refresh()
        after = engine.generate([r])[0]
        assert after == Engine(model, 4).generate([r])[0] and after.tokens != before.tokens


def test_bf16_stays_near_fp32(tiny_decoder: Any) -> None:
    wide = tiny_decoder()
    narrow = tiny_decoder().to(torch.bfloat16)
    narrow.inverse_frequency = wide.inverse_frequency
    r = Request(tuple(range(20)), 1)
    (a,), (b,) = Engine(wide).generate([r]), Engine(narrow).generate([r])
    assert a.logprobs[0] == pytest.approx(b.logprobs[0], abs=0.3) and math.isfinite(b.logprobs[0])


def test_prefill_packs_are_bounded_and_in_order() -> None:
    rng = random.Random(2)
    stem = tuple(range(700))
    some = {(*stem[: rng.randint(1, 700)], *(rng.randrange(9) for _ in range(40))) for _ in range(30)}
    prompts = sorted({*some, stem[:300], stem[:310], stem[:320]})  # the last three begin one another
    packs = pack_prompts(prompts)
    assert [m for pack in packs for _, members in pack for m in members] == list(range(len(prompts)))
    for pack in packs:
        assert sum(tree_rows(prompts, tree) for tree in pack) <= PREFILL_ROWS
        assert all(trunk < len(prompts[m]) for trunk, members in pack for m in members)
    assert len(packs) > 1
    begun = [tuple(range(20)), tuple(range(21))]
    assert pack_prompts(begun) == [[(19, [0, 1])]]  # the last token of a prompt is its own: its row predicts
    huge = [(1,) * (PREFILL_ROWS + 5), (2, 3)]
    assert [[m for _, ms in p for m in ms] for p in pack_prompts(huge)] == [[0], [1]]


def test_a_prompt_that_begins_another(tiny_decoder: Any) -> None:
    model = tiny_decoder()
    requests = [Request(tuple(range(n)), 4) for n in (20, 21, 20, 30)]
    check(Engine(model, 8).generate(requests), [twin(model, r) for r in requests])


def test_prompts_beyond_one_pack(tiny_decoder: Any) -> None:
    model = tiny_decoder(layers=1)
    rng = random.Random(3)
    requests = [Request(tuple(rng.randrange(VOCAB) for _ in range(700)), 2, 0.0) for _ in range(5)]
    check(Engine(model, 8).generate(requests), [twin(model, r) for r in requests])
