"""The official `openai` client against the server: what it sends is understood, what comes back it can read."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'shoestring[serve]'")
httpx2 = pytest.importorskip("httpx2", reason="needs httpx2: pip install 'shoestring[endpoint]'")
openai = pytest.importorskip("openai", reason="needs openai: pip install 'shoestring[test]'")

MESSAGES = [{"role": "user", "content": "What is 2 + 3?"}]
CHAT: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "seed": 4, "temperature": 0.9}


@pytest.fixture(scope="module")
def client(served: Any) -> Iterator[Any]:
    with openai.OpenAI(base_url=served.url, api_key="none", http_client=httpx2.Client(trust_env=False), max_retries=0) as c:
        yield c


def counts(usage: Any) -> dict[str, Any]:
    return {k: v for k, v in usage.model_dump().items() if k not in ("machine_seconds", "cost")}


def test_models(client: Any) -> None:
    assert [m.id for m in client.models.list().data] == ["tiny"]
    assert client.models.retrieve("tiny").max_model_len == 1024


def test_two_choices_whole_and_streamed(client: Any) -> None:
    asked = CHAT | {"n": 2, "logprobs": True, "stop": ["never"], "top_p": 0.95}
    chat = client.chat.completions.create(**asked)
    assert [c.index for c in chat.choices] == [0, 1] and chat.choices[0].message.role == "assistant"
    assert chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens
    assert chat.usage.prompt_tokens_details.cached_tokens == 0
    assert chat.usage.completion_tokens_details.reasoning_tokens == 0
    assert sum(len(c.logprobs.content) for c in chat.choices) == chat.usage.completion_tokens
    assert all(t.logprob <= 0 and t.top_logprobs == [] for c in chat.choices for t in c.logprobs.content)
    text, ends, last = ["", ""], ["", ""], None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        last = chunk
        for c in chunk.choices:
            text[c.index] += c.delta.content or ""
            ends[c.index] = c.finish_reason or ends[c.index]
    assert text == [c.message.content for c in chat.choices] and ends == [c.finish_reason for c in chat.choices]
    assert last is not None and counts(last.usage) == counts(chat.usage)


def test_a_seed_repeats(client: Any) -> None:
    def say(seed: int) -> str:
        return client.chat.completions.create(**CHAT | {"seed": seed}).choices[0].message.content

    assert say(4) == say(4) != say(5)
    two = client.chat.completions.create(**CHAT | {"n": 2})
    assert [c.message.content for c in two.choices] == [say(4), say(5)]


def test_completions_and_stop(client: Any) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 24, "seed": 3}
    done = client.completions.create(**asked, logprobs=0)
    assert len(done.choices[0].logprobs.token_logprobs) == done.usage.completion_tokens
    text = done.choices[0].text
    assert "".join(c.choices[0].text for c in client.completions.create(**asked, stream=True)) == text
    stop = text[len(text) // 2 :][:3]
    cut = client.completions.create(**asked, stop=["never", stop]).choices[0]
    assert cut.text == text[: text.index(stop)] and cut.finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_thinking_budget(client: Any, stream: bool) -> None:
    extra = {"thinking_budget": 10, "waits": 2}
    asked = CHAT | {"max_tokens": 40, "temperature": 1.0, "extra_body": extra}
    if stream:
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        deltas = [c.delta for chunk in chunks for c in chunk.choices]
        thought = "".join(getattr(d, "reasoning_content", None) or "" for d in deltas)
        text, usage = "".join(d.content or "" for d in deltas), chunks[-1].usage
    else:
        chat = client.chat.completions.create(**asked)
        thought, text, usage = chat.choices[0].message.reasoning_content, chat.choices[0].message.content, chat.usage
    assert usage.completion_tokens_details.reasoning_tokens == 10 and usage.completion_tokens <= 40
    assert thought and "Final Answer" not in thought
    assert text.startswith("Final Answer:")


def test_the_async_client(served: Any) -> None:
    async def main() -> tuple[list[str], str]:
        client = openai.AsyncOpenAI(base_url=served.url, api_key="none", http_client=httpx2.AsyncClient(trust_env=False))
        async with client:
            made = [client.chat.completions.create(**CHAT | {"seed": s}) for s in (4, 5)]
            both = await asyncio.gather(*made)
            stream = await client.chat.completions.create(**CHAT, stream=True)
            text = "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
            return [b.choices[0].message.content for b in both], text

    both, text = asyncio.run(main())
    assert text == both[0] != both[1]


def test_errors_are_its_own_exceptions(client: Any, served: Any, monkeypatch: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 1024 tokens") as e:
        client.chat.completions.create(**CHAT | {"max_tokens": 1020})
    assert e.value.code == "context_length_exceeded" and e.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match="unknown field colour") as e:
        client.chat.completions.create(**CHAT, extra_body={"colour": "red"})
    assert e.value.code == "unknown_parameter" and e.value.param == "colour"
    with pytest.raises(openai.BadRequestError, match="top_logprobs needs logprobs") as e:
        client.chat.completions.create(**CHAT, top_logprobs=3)
    assert e.value.param == "top_logprobs"
    with pytest.raises(openai.NotFoundError, match="other"):
        client.chat.completions.create(**CHAT | {"model": "other"})
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    monkeypatch.setattr(served.service, "limits", dataclasses.replace(served.service.limits, max_requests=0))
    with pytest.raises(openai.BadRequestError, match="this server takes 0"):
        client.chat.completions.create(**CHAT)
    monkeypatch.undo()
    monkeypatch.setattr(served.service, "active", 64)
    with pytest.raises(openai.RateLimitError, match="this server takes 64") as e:
        client.chat.completions.create(**CHAT)
    assert e.value.response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    "extra, words",
    [
        ({"thinking_budget": -1}, "thinking_budget must be"),
        ({"thinking_budget": 1.5}, "thinking_budget must be"),
        ({"thinking_budget": 12}, "leaves 0 of 12 tokens for the answer"),
        ({"thinking_budget": 4, "waits": 65}, "waits must be"),
        ({"waits": 1}, "waits needs a thinking_budget"),
        ({"thinking_budget": 900, "max_tokens": 1000}, "context length|max_tokens is at most"),
    ],
    ids=str,
)
def test_budgets_that_cannot_be_met(client: Any, extra: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        client.chat.completions.create(**CHAT, extra_body=extra)


def test_a_key(served: Any, running: Any) -> None:
    from shoestring.serve.app import Service, make
    from shoestring.serve.worker import Worker

    s = served.service
    service = Service(Worker(s.worker._open), s.encoder, s.decoder, "tiny", s.limits, s.vocab)
    with running(service, make(service, "sk-right")) as r, httpx2.Client(trust_env=False) as http:
        assert openai.OpenAI(base_url=r.url, api_key="sk-right", http_client=http).models.list().data[0].id == "tiny"
        wrong = openai.OpenAI(base_url=r.url, api_key="sk-wrong", http_client=http, max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="a key is needed"):
            wrong.chat.completions.create(**CHAT)
        assert service.metrics.requests["denied"] == 1
