"""Budget forcing from outside, over our own server that is told nothing of it: the engine's tokens for greedy requests."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("httpx2", reason="needs httpx2: pip install 'shoestring[endpoint]'")

from shoestring.generate.endpoint import Answer, Endpoint, Server, TextRequest
from shoestring.generate.engine import Request
from shoestring.generate.request import Thinking
from shoestring.generate.thinking import FINAL, TextThinking, thinking_of
from shoestring.records import UserError

PROMPTS = ["What is 2 + 3?", "What is 2 + 4?", "Once upon a time", "Grüße, 世界 🙂"]


def endpoint(served: Any, tokenizer: Any) -> Endpoint:
    return Endpoint(Server(served.url, "tiny"), text=tokenizer.decode)


def requests_of(direct: Any) -> list[Request]:
    """Ends are pieces of what the model says unforced; several tokens, one token, the end of the turn; and none."""
    engine, tokenizer = direct
    rng = random.Random(1)
    close, wait = tokenizer.encode("</think>" + FINAL), tokenizer.encode("Wait, no")
    out = []
    for i, p in enumerate(PROMPTS * 3):
        free = Request(tokenizer.encode(p), 30)
        said = engine.generate([free])[0].tokens
        at, n = rng.randrange(20), 1 + i % 3
        stop = frozenset({tokenizer.end, said[25]} if i % 4 == 2 else {tokenizer.end})
        ends = (said[at : at + n], close[:3])
        out.append(replace(free, stop=stop, thinking=Thinking([40, 9, 0, 25][i % 4], close, ends, i % 3, wait, 14)))
    out.append(replace(out[0], thinking=thinking_of(tokenizer, 12, 1, answer=20)))
    return out


def test_the_engine_s_tokens(served: Any, direct: Any) -> None:
    engine, tokenizer = direct
    requests = requests_of(direct)
    expected = engine.generate(requests)
    answers = endpoint(served, tokenizer).generate(requests)
    assert sum(e.waits for e in expected) >= 3
    for a, e in zip(answers, expected, strict=True):
        assert (a.error, a.tokens, a.reason, a.sampled, a.thinking, a.waits) == (
            "", e.tokens, e.reason, e.sampled, e.thinking, e.waits,
        )  # fmt: skip
        assert a.text == tokenizer.decode(e.tokens)
        for lp, other, sampled in zip(a.logprobs, e.logprobs, e.sampled, strict=True):
            assert lp == pytest.approx(other, abs=2e-4) if sampled else math.isnan(lp)
    assert max(len(a.attempts) for a in answers) > 2 and all(x.basis == "reported" for a in answers for x in a.attempts)


def test_streamed(served: Any, direct: Any) -> None:
    """Pieces are never taken back, and every attempt is posted."""
    tokenizer, requests, posted = direct[1], requests_of(direct), []
    e = Endpoint(Server(served.url, "tiny"), posted.append)
    seen: dict[int, tuple[int, ...]] = dict.fromkeys(range(len(requests)), ())
    whole = endpoint(served, tokenizer).generate(requests)
    for event in e.tokens(requests):
        if len(event) == 3:
            seen[event[0]] += (event[1],)
        else:
            assert event[1].tokens == seen[event[0]] == whole[event[0]].tokens
    assert len(posted) == sum(len(a.attempts) for a in whole)


def test_text_alone(served: Any, direct: Any) -> None:
    """Rounds with stop strings, each continuing the text so far: what the engine says to those prompts."""
    engine, tokenizer = direct
    stop = frozenset({tokenizer.end})

    def said(prompt: str, n: int, *words: str) -> str:
        text = tokenizer.decode(engine.generate([Request(tokenizer.encode(prompt), n, stop=stop)])[0].tokens)
        return min((text.partition(w)[0] for w in words), key=len, default=text)

    base = PROMPTS[0]
    free = said(base, 12)
    marker = free[len(free) // 2 :][:2]
    assert marker.strip()
    capped, ended, waited = endpoint(served, tokenizer).generate([
        TextRequest(base, 0, thinking=TextThinking(12, "</think>", answer=9)),
        TextRequest(base, 0, thinking=TextThinking(12, marker, answer=9)),
        TextRequest(base, 0, thinking=TextThinking(40, marker, 1, "Wait", 9)),
    ])  # fmt: skip
    closed = free + "</think>" + FINAL
    assert capped.text == closed + said(base + closed, 9) and capped.thinking == 12 and capped.waits == 0
    cut = said(base, 12, marker) + marker
    assert ended.text == cut + said(base + cut, 9) and 0 < ended.thinking <= 12
    assert waited.text.startswith(cut.removesuffix(marker) + "Wait") and waited.waits == 1 and waited.thinking <= 40
    pieces = [e for _, e in endpoint(served, tokenizer).texts([TextRequest(base, 0, thinking=TextThinking(12, answer=9))])]
    assert "".join(p.text for p in pieces[:-1]) == pieces[-1].text == capped.text and isinstance(pieces[-1], Answer)


def test_a_chat_is_refused(served: Any, direct: Any) -> None:
    chat = TextRequest(({"role": "user", "content": "hi"},), 5, thinking=TextThinking(5))
    with pytest.raises(UserError, match="template"):
        endpoint(served, direct[1]).generate([chat])


def test_an_error_keeps_what_there_is(served: Any, direct: Any) -> None:
    close = direct[1].encode(FINAL)
    (answer,) = endpoint(served, direct[1]).generate([Request((5,) * 2000, 5, thinking=Thinking(5, close, ((1, 2),)))])
    assert answer.reason == "error" and "1024" in answer.error and answer.tokens == ()
