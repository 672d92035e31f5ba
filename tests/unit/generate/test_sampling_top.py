"""The likeliest tokens of each place against a full log-softmax, and that who does not ask pays nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from whole_sequence import next_logits  # noqa: E402

from shoestring.generate import engine as engines  # noqa: E402
from shoestring.generate.endpoint import Endpoint, Server  # noqa: E402
from shoestring.generate.engine import Completion, Engine, Request  # noqa: E402
from shoestring.generate.request import Thinking  # noqa: E402
from shoestring.generate.sampling import choose, likeliest  # noqa: E402
from shoestring.records import UserError  # noqa: E402

ASKS = [Request((3, 9, 4), 6, t, seed=5, top_p=p) for t in (0.0, 1.0, 0.6) for p in (1.0, 0.5)]


def slow(logits: Any, k: int, temperature: float) -> list[tuple[int, float]]:
    """The slow twin: the whole log-softmax, sorted."""
    full = torch.log_softmax(logits.double() / (temperature or 1.0), -1).tolist()
    return sorted(enumerate(full), key=lambda x: (-x[1], x[0]))[:k]


def check_places(model: Any, r: Request, done: Completion) -> None:
    """Every place of an answer: what the whole sequence so far, computed anew, says of the next token."""
    assert len(done.top_logprobs) == len(done.tokens) == len(done.logprobs) > 0
    for at, (token, logprob, top) in enumerate(zip(done.tokens, done.logprobs, done.top_logprobs, strict=True)):
        expected = slow(next_logits(model, r.prompt + done.tokens[:at])[0], r.top_logprobs, r.temperature)
        assert [i for i, _ in top] == [i for i, _ in expected]
        assert [v for _, v in top] == pytest.approx([v for _, v in expected], abs=1e-4)
        same = dict(top).get(token)
        assert same is None or same == pytest.approx(logprob, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.3, 4.0])
@pytest.mark.parametrize("k", [1, 5, 20, 999])
def test_one_row(temperature: float, k: int) -> None:
    logits = torch.randn(1, 700, generator=torch.Generator().manual_seed(k)).bfloat16() * 3  # rounded: many are alike
    logits[0, [4, 650]] = 30.0
    logits[0, 7:60] = float("-inf")
    (token,), (logprob,) = choose(logits, [temperature], [0.4])
    top = likeliest(logits[0], k, int(token), float(logprob), temperature)
    expected = [x for x in slow(logits[0], k, temperature) if x[1] > float("-inf")]
    assert [i for i, _ in top] == [i for i, _ in expected] and [i for i, _ in top[:2]] == [4, 650][:k]
    assert [v for _, v in top] == pytest.approx([v for _, v in expected], abs=1e-4)
    assert dict(top).get(int(token), float(logprob)) == float(logprob)
    if not temperature:
        assert top[0][0] == int(token)


def test_every_place_of_every_answer(tiny_decoder: Any) -> None:
    model = tiny_decoder()
    requests = [replace(r, top_logprobs=1 + k * 3) for k, r in enumerate(ASKS)]
    for r, done in zip(requests, Engine(model, 4).generate(requests), strict=True):
        check_places(model, r, done)


def test_events_carry_them(tiny_decoder: Any) -> None:
    r = replace(ASKS[2], top_logprobs=2)
    *told, (_, done) = Engine(tiny_decoder(), 2).tokens([r])
    assert [e[3] for e in told] == list(done.top_logprobs) and [e[1] for e in told] == list(done.tokens)  # pyright: ignore


@pytest.mark.parametrize("n", [1, 3])
def test_where_words_are_forced(tiny_decoder: Any, n: int) -> None:
    """An end of n tokens is taken back: the forced word is told with what was likely in its own place."""
    model, base = tiny_decoder(), Request((3, 9, 4), 12, 1.0, seed=5, top_logprobs=4)
    (free,) = Engine(model, 1).generate([base])
    thinking = Thinking(9, (50, 51), (free.tokens[2 : 2 + n],), 1, (40, 41), 5)
    *told, (_, done) = Engine(model, 1).tokens([replace(base, thinking=thinking)])
    assert isinstance(done, Completion) and done.waits == 1 and done.tokens[2:4] == (40, 41)
    check_places(model, base, done)
    assert [(e[1], e[3]) for e in told] == list(zip(done.tokens, done.top_logprobs, strict=True))  # pyright: ignore


def test_who_does_not_ask_pays_nothing(tiny_decoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search is called once a token of the one request that asks; the others' answers are as they were."""
    model, searched = tiny_decoder(), []
    monkeypatch.setattr(engines, "likeliest", lambda *a: searched.append(a[1:3]) or likeliest(*a))
    before = Engine(model, 8).generate(ASKS)
    assert not searched and not any(c.top_logprobs for c in before)
    mixed = [replace(r, top_logprobs=3 if k == 1 else 0) for k, r in enumerate(ASKS)]
    after = Engine(model, 8).generate(mixed)
    assert searched == [(3, t) for t in after[1].tokens]
    assert [replace(c, top_logprobs=()) for c in after] == before
    assert [bool(c.top_logprobs) for c in after] == [k == 1 for k in range(len(ASKS))]


def test_what_cannot_be_met(tiny_decoder: Any) -> None:
    bad = [replace(ASKS[0], top_logprobs=-1), replace(ASKS[0], top_logprobs=1, logprobs=False)]
    assert [c.error for c in Engine(tiny_decoder(), 2).generate(bad)] == [
        "top_logprobs must be 0 or more, and needs logprobs"
    ] * 2
    with pytest.raises(UserError, match="top_logprobs = 0"):
        Endpoint(Server("http://127.0.0.1:1/v1", "m")).generate([replace(ASKS[0], top_logprobs=2)])
