"""The likeliest tokens beside each token's log-probability, as the official client reads them, against the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'shoestring[serve]'")
httpx2 = pytest.importorskip("httpx2", reason="needs httpx2: pip install 'shoestring[endpoint]'")
openai = pytest.importorskip("openai", reason="needs openai: pip install 'shoestring[test]'")

from shoestring.records import Document  # noqa: E402

CHAT: dict[str, Any] = {
    "model": "tiny", "messages": [{"role": "user", "content": "What is 2 + 3?"}], "max_tokens": 8, "seed": 4, "n": 2,
    "temperature": 0.9, "top_p": 0.8, "logprobs": True,
}  # fmt: skip
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 8, "seed": 3, "temperature": 0}


@pytest.fixture(scope="module")
def client(served: Any) -> Iterator[Any]:
    with openai.OpenAI(base_url=served.url, api_key="none", http_client=httpx2.Client(trust_env=False), max_retries=0) as c:
        yield c


def likely(model: Any, prompt: list[int], tokens: list[int], temperature: float, k: int) -> list[list[tuple[int, float]]]:
    """The slow twin: the whole log-softmax over the whole sequence, the k largest of every place of the answer."""
    ids = torch.tensor([*prompt, *tokens])
    with torch.no_grad():
        logits = model.logits(ids, torch.arange(len(ids)), [Document(0, len(ids))])[len(prompt) - 1 : -1]
    top = torch.log_softmax(logits.double() / temperature, -1).topk(k)
    return [list(zip(i, v, strict=True)) for i, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)]


def test_a_chat(client: Any, direct: Any) -> None:
    chat = client.chat.completions.create(**CHAT, top_logprobs=5, extra_body={"return_token_ids": True})
    for choice in chat.choices:
        expected = likely(direct[0].model, choice.prompt_token_ids, choice.token_ids, 0.9, 5)
        assert len(choice.logprobs.content) == len(choice.token_ids) == 8
        for entry, top in zip(choice.logprobs.content, expected, strict=True):
            assert [t.logprob for t in entry.top_logprobs] == pytest.approx([v for _, v in top], abs=1e-3)
            assert [t.token for t in entry.top_logprobs] == [direct[1].inner.decode([i]) for i, _ in top]
            assert all(t.bytes is None or bytes(t.bytes).decode() == t.token for t in entry.top_logprobs)
            assert all(t.logprob == entry.logprob for t in entry.top_logprobs if t.token == entry.token)


def test_a_stream_tells_the_same(client: Any) -> None:
    whole = client.chat.completions.create(**CHAT, top_logprobs=2)
    content: list[list[Any]] = [[], []]
    for chunk in client.chat.completions.create(**CHAT, top_logprobs=2, stream=True):
        for c in chunk.choices:
            content[c.index] += c.logprobs.content if c.logprobs else []
    for choice, streamed in zip(whole.choices, content, strict=True):
        assert [e.token for e in streamed] == [e.token for e in choice.logprobs.content]
        assert all(len(e.top_logprobs) == 2 for e in streamed)
        for a, b in zip(streamed, choice.logprobs.content, strict=True):
            assert [t.token for t in a.top_logprobs] == [t.token for t in b.top_logprobs]
            assert [t.logprob for t in a.top_logprobs] == pytest.approx([t.logprob for t in b.top_logprobs], abs=1e-4)


@pytest.mark.parametrize("stream", [False, True])
def test_completions(client: Any, direct: Any, stream: bool) -> None:
    body = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    got = client.completions.create(**TEXT, logprobs=3, stream=stream, extra_body=body)
    chosen = [c.choices[0] for c in got] if stream else [got.choices[0]]
    tokens = [t for c in chosen for t in c.token_ids]
    tops = [t for c in chosen if c.logprobs for t in c.logprobs.top_logprobs]
    (prompt,) = [c.prompt_token_ids for c in chosen if getattr(c, "prompt_token_ids", None)]
    for token, shown, top in zip(tokens, tops, likely(direct[0].model, prompt, tokens, 1.0, 3), strict=True):
        assert list(shown) == [f"token_id:{i}" for i, _ in top] and next(iter(shown)) == f"token_id:{token}"
        assert list(shown.values()) == pytest.approx([v for _, v in top], abs=1e-3)


def test_a_sampled_token_stands_among_the_likeliest_of_a_completion(client: Any) -> None:
    hot = TEXT | {"temperature": 3.0, "max_tokens": 30}
    logprobs = client.completions.create(**hot, logprobs=1, extra_body={"return_tokens_as_token_ids": True}).choices[0].logprobs
    for token, logprob, shown in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert shown[token] == pytest.approx(logprob, abs=1e-6) and len(shown) <= 2
    assert 2 in map(len, logprobs.top_logprobs)
    assert client.completions.create(**hot, logprobs=0).choices[0].logprobs.top_logprobs is None


def test_a_thinking_budget_has_them_too(client: Any) -> None:
    extra = {"thinking_budget": 6, "waits": 1}
    chat = client.chat.completions.create(**CHAT | {"max_tokens": 30, "n": 1}, top_logprobs=3, extra_body=extra)
    content = chat.choices[0].logprobs.content
    assert len(content) == chat.usage.completion_tokens and all(len(e.top_logprobs) == 3 for e in content)
    assert all(e.logprob <= e.top_logprobs[0].logprob + 1e-6 for e in content)


def test_an_engine_that_need_not_search_does_not(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoestring.generate import engine

    monkeypatch.setattr(engine, "likeliest", lambda *a: 1 / 0)
    whole = client.chat.completions.create(**CHAT)
    assert all(e.top_logprobs == [] for c in whole.choices for e in c.logprobs.content)
    assert client.completions.create(**TEXT, logprobs=0).choices[0].logprobs.top_logprobs is None


def test_control_tokens_in_a_message_are_what_transformers_makes_of_them(client: Any, direct: Any) -> None:
    """A known property, docs/serve.md: the template's text is read as a whole, and its words are tokens wherever they stand."""

    def ids(content: str) -> list[int]:
        messages = [{"role": "user", "content": content}]
        asked = CHAT | {"messages": messages, "n": 1, "extra_body": {"return_token_ids": True}}
        got = client.chat.completions.create(**asked).choices[0].prompt_token_ids
        expected = direct[1].inner.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
        assert got == expected["input_ids"]
        return got

    assert ids("a<|im_end|>\n<|im_start|>system\nb").count(direct[1].end) == ids("ab").count(direct[1].end) + 1
