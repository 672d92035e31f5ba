"""Our endpoint against our server: the same tokens, texts and log-probabilities as the engine gives directly."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("httpx2", reason="needs httpx2: pip install 'shoestring[endpoint]'")

from shoestring.generate.endpoint import Answer, Endpoint, Server, TextRequest
from shoestring.generate.engine import Request
from shoestring.records import UserError

PROMPTS = ["What is 2 + 3?", "What is 2 + 4?", "Once upon a time", "Grüße, 世界 🙂", "What is 2 + 3?"]


def ids_of(tokenizer: Any, **rest: Any) -> list[Request]:
    return [
        Request(tokenizer.encode(p), 12 + 3 * i, seed=100 + i, stop=frozenset({tokenizer.end}), **rest)
        for i, p in enumerate(PROMPTS)
    ]


def endpoint(served: Any, **rest: Any) -> Endpoint:
    return Endpoint(Server(served.url, "tiny", **rest))


def same(answers: list[Answer], expected: list[Any]) -> None:
    assert [a.error for a in answers] == [""] * len(expected)
    assert [a.tokens for a in answers] == [e.tokens for e in expected]
    assert [a.reason for a in answers] == [e.reason for e in expected]
    for a, e in zip(answers, expected, strict=True):
        assert a.logprobs == pytest.approx(e.logprobs, abs=2e-4)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.0, "min_p": 0.1},
    ],
    ids=str,
)
def test_ids_in_ids_out(served: Any, direct: Any, how: dict[str, Any]) -> None:
    """Requests in flight together, whose noise is nonetheless their own."""
    engine, tokenizer = direct
    requests = ids_of(tokenizer, **how)
    expected = engine.generate(requests)
    answers = endpoint(served).generate(requests)
    same(answers, expected)
    assert [a.text for a in answers] == [tokenizer.decode(e.tokens) for e in expected]
    assert all(len(a.attempts) == 1 for a in answers)
    for a, r, e in zip(answers, requests, expected, strict=True):
        (one,) = a.attempts
        assert (one.prompt_tokens, one.completion_tokens, one.basis) == (len(r.prompt), len(e.tokens), "reported")


def test_streamed_equals_unstreamed(served: Any, direct: Any) -> None:
    engine, tokenizer = direct
    requests = ids_of(tokenizer, temperature=1.0)
    whole = endpoint(served).generate(requests)
    pieces: dict[int, list[tuple[int, float]]] = {i: [] for i in range(len(requests))}
    for event in endpoint(served).tokens(requests):
        if len(event) == 3:
            pieces[event[0]].append((event[1], event[2]))
        else:
            i, answer = event
            same([answer], [whole[i]])
            assert answer.text == whole[i].text
            assert tuple(t for t, _ in pieces[i]) == answer.tokens and tuple(p for _, p in pieces[i]) == answer.logprobs
            assert answer.attempts[0].basis == "reported"
    assert all(pieces.values())


def test_text_and_chat(served: Any, direct: Any) -> None:
    engine, tokenizer = direct
    chat = ({"role": "user", "content": "What is 2 + 3?"},)
    asked = [
        TextRequest("Once upon a time", 20, 1.0, 5, logprobs=True),
        TextRequest(chat, 20, 1.0, 6, logprobs=True),
        TextRequest(chat, 20),
    ]
    stop = frozenset({tokenizer.end})
    expected = engine.generate([
        Request(tokenizer.encode("Once upon a time"), 20, 1.0, 5, stop),
        Request(tokenizer.chat(chat), 20, 1.0, 6, stop),
        Request(tokenizer.chat(chat), 20, 0.0, 0, stop),
    ])  # fmt: skip
    answers = endpoint(served).generate(asked)
    assert [a.text for a in answers] == [tokenizer.decode(e.tokens) for e in expected]
    assert [a.tokens for a in answers] == [()] * 3  # asked in text, answered in text
    for a, e in list(zip(answers, expected, strict=True))[:2]:
        assert a.logprobs == pytest.approx(e.logprobs, abs=2e-4)
    assert answers[2].logprobs == ()
    texts: dict[int, str] = dict.fromkeys(range(3), "")
    for i, event in endpoint(served).texts(asked):
        if isinstance(event, Answer):
            assert texts[i] == event.text == answers[i].text
        else:
            texts[i] += event.text


def test_seeds_are_reproducible(served: Any, direct: Any) -> None:
    tokenizer = direct[1]
    request = Request(tokenizer.encode("Once"), 16, 1.0, seed=(1 << 64) - 5)
    a, b, c = endpoint(served).generate([request, request, dataclasses.replace(request, seed=9)])
    assert a.tokens == b.tokens != c.tokens
    assert a.tokens == direct[0].generate([request])[0].tokens  # an unsigned seed survives the API's signed one


def test_stop_strings_cut_the_text_and_end_the_tokens(served: Any, direct: Any) -> None:
    engine, tokenizer = direct
    request = Request(tokenizer.encode("Once upon a time"), 40, 1.0, seed=3)
    text = tokenizer.decode(engine.generate([request])[0].tokens)
    stop = text[len(text) // 2 :][:3]
    assert stop and stop.strip()
    asked = dataclasses.replace(request, stop_strings=("never seen", stop))
    (whole,) = endpoint(served).generate([asked])
    streamed = [e for _, e in endpoint(served).texts([asked])]
    assert whole.text == text[: text.index(stop)] and whole.reason == "stop"
    assert stop in tokenizer.decode(whole.tokens) and stop not in tokenizer.decode(whole.tokens[:-1])
    assert "".join(e.text for e in streamed[:-1]) == whole.text
    assert isinstance(streamed[-1], Answer) and streamed[-1].tokens == whole.tokens


def test_a_prompt_too_long_is_an_error_for_that_request_alone(served: Any, direct: Any) -> None:
    engine, tokenizer = direct
    fine = Request(tokenizer.encode("Once"), 5)
    answers = endpoint(served).generate([fine, Request((5,) * 2000, 5), fine])
    assert [a.reason for a in answers] == ["length", "error", "length"]
    assert "1024" in answers[1].error and answers[1].tokens == () and answers[1].attempts[0].basis == "none"


def test_a_wrong_model_is_one_line(served: Any) -> None:
    with pytest.raises(UserError, match="404.*'other'") as e:
        Endpoint(Server(served.url, "other")).generate([Request((1, 2), 3)])
    assert "\n" not in str(e.value)


def test_a_closed_iterator_frees_the_engine(served: Any, direct: Any, slow_steps: None) -> None:
    tokenizer = direct[1]
    posted: list[Any] = []
    e = Endpoint(Server(served.url, "tiny"), posted.append)
    events = e.tokens([Request(tokenizer.encode("Once"), 200, 1.0, seed=i) for i in range(4)])
    first = next(events)
    assert len(first) == 3 and math.isfinite(first[2])
    served.wait_until(lambda: served.service.active == 4)
    events.close()
    served.wait_until(lambda: served.service.active == 0 and not served.service.worker._jobs)
    assert [a.error for a in posted] == ["cancelled"] * 4
    assert any(a.basis == "lower bound" and a.completion_tokens for a in posted)


def test_concurrent_requests_share_decode_steps(served: Any, direct: Any) -> None:
    """Eight answers of 40 tokens take little more than 40 steps, not 320."""
    engine = served.service.worker._open.__self__
    before = engine.counters.steps
    answers = endpoint(served).generate([Request((5 + i, 6, 7), 40, 1.0, seed=i) for i in range(8)])
    assert [len(a.tokens) for a in answers] == [40] * 8
    assert engine.counters.steps - before < 120
