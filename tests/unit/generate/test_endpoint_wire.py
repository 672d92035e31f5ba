"""Bodies, answers and refusals in the words of the servers that we know, without a network."""

from __future__ import annotations

import email.utils
import json
import time
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from shoestring.generate.endpoint_wire import (
    Attempt,
    Delta,
    Failure,
    Gather,
    TextRequest,
    Thinking,
    body,
    held_back,
    message,
    path,
    refusal,
    retry_after,
    split_thinking,
)
from shoestring.generate.engine import Request

CHAT = TextRequest(({"role": "user", "content": "hi"},), 9)


def test_bodies() -> None:
    ids = body(Request((1, 2), 3, 0.5, 7, frozenset({9, 4}), 0.9, 20, 0.1, ("x",)), "m", False)
    assert ids == {
        "model": "m", "prompt": [1, 2], "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["x"],
        "stop_token_ids": [4, 9], "top_k": 20, "min_p": 0.1, "logprobs": 0, "ignore_eos": True,
        "return_token_ids": True, "return_tokens_as_token_ids": True,
    }  # fmt: skip
    text = body(TextRequest("hi", 3), "m", True)
    assert text == {
        "model": "m", "prompt": "hi", "max_tokens": 3, "temperature": 0.0, "top_p": 1.0, "seed": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    chat = body(CHAT, "m", False, "max_completion_tokens")
    assert chat["messages"] == [{"role": "user", "content": "hi"}] and chat["max_completion_tokens"] == 9
    assert not chat.keys() & {"max_tokens", "prompt", "logprobs", "return_token_ids", "stop"}
    assert path(CHAT) == "/chat/completions" and path(TextRequest("x", 1)) == path(Request((1,), 1)) == "/completions"


@pytest.mark.parametrize(
    "seed, sent", [(0, 0), (5, 5), ((1 << 63) - 1, (1 << 63) - 1), (1 << 63, -(1 << 63)), ((1 << 64) - 1, -1)]
)
def test_seeds_are_signed(seed: int, sent: int) -> None:
    assert body(Request((1,), 1, seed=seed), "m", False)["seed"] == sent


@pytest.mark.parametrize(
    "content, reasoning, text",
    [
        ("<think>a b</think>\n\n4", "a b", "4"),
        ("\n<think>\na</think>4 </think> 5", "\na", "4 </think> 5"),
        ("4 and <think>", "", "4 and <think>"),
        ("<think>never ends <", "never ends <", ""),
        ("<thin", "", "<thin"),
        ("", "", ""),
        ("<b>4</b>", "", "<b>4</b>"),
    ],
)
def test_thoughts_are_kept_apart(content: str, reasoning: str, text: str) -> None:
    assert split_thinking(content) == (reasoning, text)
    for size in (1, 2, 3, 7, 100):  # however it is cut into chunks
        split = Thinking()
        parts = [split.feed(content[i : i + size]) for i in range(0, len(content), size)] + [split.end()]
        assert "".join(a for a, _ in parts) == reasoning and "".join(b for _, b in parts) == text


def test_a_thought_opened_by_the_template() -> None:
    assert split_thinking("so 2+2\n</think>\n4") == ("so 2+2\n", "4")


def test_held_back() -> None:
    assert [held_back(t, "STOP") for t in ("", "x", "xS", "xSTO", "STOP", "SSS")] == [0, 0, 1, 3, 0, 1]


def feed(request: Any, *payloads: Any) -> Gather:
    g = Gather(request)
    for p in payloads:
        g.feed(p)
    g.check()
    return g


def choice(**rest: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": None} | rest]}


@pytest.mark.parametrize(
    "field", [{"reasoning_content": "thought"}, {"reasoning": "thought"}, {"content": "<think>thought</think>4"}], ids=str
)
def test_reasoning_fields_of_the_common_servers(field: dict[str, str]) -> None:
    answer = feed(CHAT, choice(message={"content": "4"} | field, finish_reason="stop")).answer([])
    assert (answer.reasoning, answer.text, answer.reason) == ("thought", "4", "stop")


def test_streamed_chat_with_reasoning() -> None:
    g = Gather(CHAT)
    steps = [
        choice(delta={"role": "assistant", "content": ""}),
        choice(delta={"reasoning_content": "thou"}),
        choice(delta={"reasoning_content": "ght", "content": None}),
        choice(delta={"content": "4"}),
        choice(delta={}, finish_reason="length"),
        {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}},
    ]
    assert [g.feed(s) for s in steps] == [
        Delta(), Delta(reasoning="thou"), Delta(reasoning="ght"), Delta("4"), Delta(), None,
    ]  # fmt: skip
    g.check()
    answer = g.answer([])
    assert (answer.text, answer.reasoning, answer.reason) == ("4", "thought", "length")


def test_ids_from_either_field() -> None:
    request = Request((1, 2), 3)
    named = {"tokens": ["token_id:7", "token_id:8"], "token_logprobs": [-0.5, -1.5]}
    newer = feed(request, choice(text="ab", logprobs=named, token_ids=[7, 8], finish_reason="stop")).answer([])
    older = feed(request, choice(text="ab", logprobs=named, finish_reason="stop")).answer([])
    assert newer.tokens == older.tokens == (7, 8) and newer.logprobs == older.logprobs == (-0.5, -1.5)
    bare = feed(request, choice(text="ab", token_ids=[7, 8], finish_reason="stop")).answer([])
    assert bare.tokens == (7, 8) and bare.logprobs == ()
    with pytest.raises(Failure, match="no token ids") as e:
        feed(request, choice(text="ab", finish_reason="stop"))
    assert e.value.fatal


@pytest.mark.parametrize(
    "payload, words",
    [
        ([], "JSON object"), ({}, "choices"), ({"error": {"message": "out of memory"}}, "out of memory"),
        (choice(finish_reason="content_filter"), "content_filter"), (choice(text="a"), "finish reason"),
        (choice(text="a", token_ids=["x"]), "unknown form"), ({"choices": ["x"]}, "unknown form"),
    ],
    ids=str,
)  # fmt: skip
def test_answers_that_are_none(payload: Any, words: str) -> None:
    with pytest.raises(Failure, match=words):
        feed(Request((1,), 1), payload)


@pytest.mark.parametrize(
    "usage, counts",
    [
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}, (10, 0, 5, 0)),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 8},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            (10, 8, 5, 3),
        ),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_cache_hit_tokens": 4}, (10, 4, 5, 0)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 25}, (10, 0, 15, 0)),  # reasoning left out
        ({"prompt_tokens": 10, "completion_tokens": None, "prompt_tokens_details": None}, (10, 0, 0, 0)),
    ],
)
def test_usage(usage: dict[str, Any], counts: tuple[int, ...]) -> None:
    a = feed(CHAT, choice(message={"content": "x"}, finish_reason="stop") | {"usage": usage}).attempt(3, 1, 5.0)
    assert (a.prompt_tokens, a.cached_tokens, a.completion_tokens, a.reasoning_tokens) == counts
    assert (a.index, a.number, a.start, a.basis) == (3, 1, 5.0, "reported")


def test_usages_for_the_ledger() -> None:
    a = Attempt(0, 0, 1.0, 2.0, "", 10, 4, 7, 3, "reported")
    rows = a.usages("teacher:litellm/o3", "distill", "a1")
    assert [(u.sku, u.quantity, u.unit, u.outcome) for u in rows] == [
        ("teacher:litellm/o3/in", 6.0, "token", "useful"),
        ("teacher:litellm/o3/cached", 4.0, "token", "useful"),
        ("teacher:litellm/o3/out", 7.0, "token", "useful"),
    ]
    assert all((u.stage, u.attempt, u.start, u.end) == ("distill", "a1", 1.0, 2.0) for u in rows)
    failed = Attempt(0, 0, 1.0, 2.0, "broke", 10, 0, 7, 0, "lower bound").usages("x", "s")
    assert {u.outcome for u in failed} == {"failed"} and len(failed) == 2
    assert Attempt(0, 0, 1.0, 2.0, "429").usages("x", "s") == ()


def test_a_broken_answer_is_counted_from_below() -> None:
    g = Gather(Request((1, 2, 3), 9))
    assert g.attempt(0, 0, 0.0).basis == "none"
    g.working = True
    g.feed(choice(text="a", token_ids=[7]))
    g.feed(choice(text="b", token_ids=[8]))
    a = g.attempt(0, 0, 0.0, "broke")
    assert (a.prompt_tokens, a.completion_tokens, a.basis) == (3, 2, "lower bound")
    assert g.answer([], "broke").tokens == (7, 8) and g.answer([], "broke").reason == "error"


def said(text: str, **rest: Any) -> bytes:
    return json.dumps({"error": {"message": text} | rest}).encode()


@pytest.mark.parametrize(
    "status, raw, kind",
    [
        (400, said("This model's maximum context length is 4096 tokens", code="context_length_exceeded"), "alone"),
        (400, b'{"object":"error","message":"The prompt is too long: 9 > 5","code":400}', "alone"),  # older vLLM
        (400, said("the request exceeds the available context size", type="exceed_context_size_error"), "alone"),  # llama.cpp
        (413, b"Payload Too Large", "alone"),
        (400, said("bad temperature"), "fatal"),
        (401, said("no"), "fatal"),
        (403, b"", "fatal"),
        (404, b"<html>", "fatal"),
        (422, b'{"detail":[{"loc":["body"]}]}', "fatal"),
        (302, b"", "fatal"),
        (429, said("slow down"), "again"),
        (429, said("pay", code="insufficient_quota"), "fatal"),
        (408, b"", "again"),
        (500, b"oops", "again"),
        (503, said("overloaded"), "again"),
        (529, b"", "again"),
    ],
)
def test_classes_of_refusal(status: int, raw: bytes, kind: str) -> None:
    f = refusal(status, raw, {}, "http://h/v1", "m", "KEY")
    assert ("fatal" if f.fatal else "again" if f.again else "alone") == kind, f.line
    assert "\n" not in f.line and len(f.line) < 500


def test_a_renamed_limit() -> None:
    raw = said("Unsupported parameter: use 'max_completion_tokens' instead.", param="max_tokens", code="unsupported_parameter")
    assert refusal(400, raw, {}, "u", "m", "").rename


def test_retry_after() -> None:
    assert retry_after({"retry-after": "7"}) == 7.0 and retry_after({"retry-after": "0.5"}) == 0.5
    assert retry_after({}) is None and retry_after({"retry-after": "soon"}) is None
    later = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 27 < (retry_after({"retry-after": later}) or 0) <= 30
    assert retry_after({"retry-after": email.utils.formatdate(time.time() - 30, usegmt=True)}) == 0.0


def test_messages_are_one_short_line() -> None:
    assert message({"error": {"message": "a\nb"}}) == "a b"
    assert message({"error": "plain"}) == "plain" and message({"detail": "d"}) == "d" and message("x" * 999) == "x" * 300
    assert message({"object": "error", "message": "m"}) == "m"
