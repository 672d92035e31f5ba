"""What clients may ask, checked: the JSON of /v1/completions and /v1/chat/completions → the engine's requests.

Field names and meanings: OpenAI API reference; `stop_token_ids`, `ignore_eos`, `top_k`, `min_p`, `return_token_ids`,
`return_tokens_as_token_ids` and stream_options' `continuous_usage_stats` as in vLLM; `thinking_budget` and `waits` are our
own. A field that this server cannot honour is refused, never ignored.
"""

from __future__ import annotations

import functools
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shoestring.generate.request import Request, Thinking
from shoestring.generate.thinking import thinking_of
from shoestring.records import UserError
from shoestring.serve.talk import Marks, marks_of

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_LENGTH = 1000  # characters; each is compared with the end of the text at every token, in the engine's thread
MAX_STOP_IDS = 1000  # a forced thinking compares each with its last token
MAX_WAITS = 64
MAX_TOPS = {True: 20, False: 5}  # of a chat, of a completion: as in the API reference
COLDEST = 1e-5  # below it logits divided by the temperature may leave fp32, and no more than the likeliest is left anyway
DEFAULT_COMPLETION = 16  # max_tokens of /v1/completions where none is given, as the API reference says

# asked for with one of these values, a field changes nothing; None stands for any value
NEUTRAL: dict[str, tuple[Any, ...] | None] = {
    "user": None, "metadata": None, "safety_identifier": None, "store": (False,), "echo": (False,), "suffix": ("",),
    "best_of": (1,), "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "tools": ([],),
    "tool_choice": ("none", "auto"), "response_format": ({"type": "text"},), "top_logprobs": (0,), "modalities": (["text"],),
}  # fmt: skip

# of a message; a name is nothing that templates write, and the thinking of earlier answers is not sent again
MESSAGE = {"role", "content", "name", "reasoning_content"}


class Refused(Exception):
    """An error in OpenAI's form: HTTP status, one line, the field, a code that clients match on."""

    def __init__(
        self, line: str, status: int = 400, param: str | None = None, code: str | None = None, retry_after: int | None = None
    ) -> None:
        line = " ".join(line.split())[:500]  # it may repeat what was sent
        super().__init__(line)
        self.line, self.status, self.param, self.code, self.retry_after = line, status, param, code, retry_after

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.line, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Limits:
    """window: prompt and answer together. max_tokens: the longest answer. max_requests: answers under way or waiting."""

    window: int
    max_tokens: int
    max_requests: int
    body_bytes: int = 1 << 20
    body_seconds: float = 30.0
    send_seconds: float = 60.0  # a client that takes no byte for so long is treated as gone


@dataclass(frozen=True)
class Asked:
    """One checked HTTP request: choices in order (prompt by prompt, n each), and how the answer is to look.

    tops: how many of the likeliest tokens are told beside each token's log-probability. usage_each: every chunk of a
    stream has the usage so far. marks: where the thinking stands, for a chat.
    """

    chat: bool
    n: int
    requests: tuple[Request, ...]
    stop_strings: tuple[str, ...]
    stream: bool
    include_usage: bool
    logprobs: bool
    token_ids: bool
    names_are_ids: bool
    usage_each: bool = False
    marks: Marks | None = None
    tops: int = 0


class Fields:
    """A JSON object read field by field; what is left over at the end was not understood."""

    def __init__(self, data: Any) -> None:
        if not isinstance(data, Mapping):
            raise Refused("the body must be a JSON object")
        self.left = {k: v for k, v in data.items() if v is not None}

    def take(self, name: str) -> Any:
        return self.left.pop(name, None)

    def number(self, name: str, default: float, low: float, high: float, open_low: bool = False) -> float:
        v = self.take(name)
        if v is None:
            return default
        if isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v):
            raise Refused(f"{name} must be a number", param=name)
        if v < low or v > high or (open_low and v == low):
            raise Refused(f"{name} must be {'above' if open_low else 'at least'} {low:g} and at most {high:g}", param=name)
        return float(v)

    def integer(self, name: str, default: int | None, low: int, high: int) -> int | None:
        v = self.take(name)
        if v is None:
            return default
        if isinstance(v, bool) or not isinstance(v, int) or not low <= v <= high:
            raise Refused(f"{name} must be a whole number from {low} to {high}", param=name)
        return v

    def flag(self, name: str) -> bool:
        v = self.take(name)
        if v is not None and not isinstance(v, bool):
            raise Refused(f"{name} must be true or false", param=name)
        return bool(v)

    def end(self) -> None:
        for name, value in self.left.items():
            if name not in NEUTRAL:
                raise Refused(f"unknown field {name}", param=name[:100], code="unknown_parameter")
            allowed = NEUTRAL[name]
            if allowed is not None and value not in allowed:
                shown = " or ".join(map(repr, allowed))
                raise Refused(f"this server does not support {name} other than {shown}", param=name)


def read(data: Any, chat: bool, tokenizer: Any, model_name: str, limits: Limits, vocab: int) -> Asked:
    """The checked request. Refused says what is wrong with it. tokenizer: a `models.tokenizer.Tokenizer`."""
    f = Fields(data)
    model = f.take("model")
    if model not in (None, model_name):
        raise Refused(f"no model {model!r} here; this server has {model_name!r}", 404, "model", "model_not_found")
    n = f.integer("n", 1, 1, MAX_CHOICES) or 1
    prompt = f.take("messages" if chat else "prompt")
    prompts = [_messages(prompt, tokenizer)] if chat else _prompts(prompt, tokenizer, vocab, limits.max_requests // n)
    given = f.integer("max_tokens", None, 1, 1 << 31)
    given = f.integer("max_completion_tokens", given, 1, 1 << 31) if chat else given
    temperature = f.number("temperature", 1.0, 0.0, 100.0)
    temperature = temperature if temperature >= COLDEST else 0.0
    top_p = f.number("top_p", 1.0, 0.0, 1.0, open_low=True)
    top_k = f.integer("top_k", 0, -1, vocab) or 0
    min_p = f.number("min_p", 0.0, 0.0, 0.999999)
    seed = f.integer("seed", None, -(1 << 63), (1 << 63) - 1)
    seed = secrets.randbits(62) if seed is None else seed
    stop_strings = _stops(f.take("stop"))
    stop_ids = f.take("stop_token_ids") or []
    if not _ids(stop_ids, vocab) or len(stop_ids) > MAX_STOP_IDS:
        raise Refused(f"stop_token_ids must be a list of at most {MAX_STOP_IDS} ids below {vocab}", param="stop_token_ids")
    stop = frozenset(stop_ids) | (frozenset() if f.flag("ignore_eos") else tokenizer.ends)
    logprobs, tops = _logprobs(f, chat)
    stream = f.flag("stream")
    usage, usage_each = _stream_options(f.take("stream_options") or {}, stream)
    budget = f.integer("thinking_budget", None, 0, 1 << 31)
    waits = f.integer("waits", 0, 0, MAX_WAITS) or 0
    if waits and budget is None:
        raise Refused("waits needs a thinking_budget", param="waits")
    token_ids, names_are_ids = f.flag("return_token_ids"), f.flag("return_tokens_as_token_ids")
    f.end()
    if n > limits.max_requests:
        raise Refused(f"{n} answers asked at once; this server takes {limits.max_requests}", param="n")
    requests = []
    for prompt in prompts:
        most = _length(len(prompt), given, chat, limits, chat or budget is not None)
        thinking = None if budget is None else _thinking(tokenizer, budget, waits, most)
        # choice i has the noise of seed + i, so that a choice can be asked for again alone
        requests += [
            Request(
                prompt, most, temperature, seed + i, stop, top_p, max(0, top_k), min_p,
                logprobs=logprobs, thinking=thinking, top_logprobs=tops,
            )
            for i in range(n)
        ]  # fmt: skip
    marks = marks_of(tokenizer, requests[0].prompt, budget is not None) if chat else None
    return Asked(
        chat, n, tuple(requests), stop_strings, stream, usage, logprobs, token_ids, names_are_ids, usage_each, marks, tops
    )  # fmt: skip


def _stream_options(options: Any, stream: bool) -> tuple[bool, bool]:
    """(usage at the end, usage with every chunk)."""
    known = {"include_usage", "continuous_usage_stats"}
    if not isinstance(options, Mapping) or options.keys() - known or (options and not stream):
        said = " and ".join(sorted(known, reverse=True))
        raise Refused(f"stream_options takes {said}, and only with stream", param="stream_options")
    usage, each = (bool(options.get(k)) for k in ("include_usage", "continuous_usage_stats"))
    return usage or each, each


@functools.lru_cache(maxsize=4)
def _markers(tokenizer: Any) -> Thinking:
    """The ids that force a thinking's length with this tokenizer: some hundred encodings, once."""
    return thinking_of(tokenizer, 0, answer=1 << 20)


def _thinking(tokenizer: Any, budget: int, waits: int, most: int) -> Thinking:
    """A thinking of at most `budget` within an answer of at most `most` tokens."""
    ids = _markers(tokenizer)
    closing = max(len(ids.close), len(ids.tagged))
    if most - budget <= closing:
        room = f"leaves {max(0, most - budget)} of {most} tokens for the answer; leave more than {closing}"
        line = f"thinking_budget {budget} {room}"
        raise Refused(line, param="thinking_budget")
    try:
        return replace(ids, budget=budget, waits=waits, answer=most - budget)
    except ValueError as e:
        raise Refused(str(e), param="waits") from None


def _length(prompt: int, given: int | None, chat: bool, limits: Limits, long: bool) -> int:
    """How many new tokens: as given, else what fits, or a few where not `long`."""
    room = limits.window - prompt
    if room < 1 or (given is not None and given > room):
        raise Refused(
            f"this model's maximum context length is {limits.window} tokens; asked are {prompt} in the prompt and "
            f"{given if given is not None else 'at least 1'} in the answer",
            param="messages" if chat else "prompt",
            code="context_length_exceeded",
        )
    if given is None:
        return min(room, limits.max_tokens if long else DEFAULT_COMPLETION)
    if given > limits.max_tokens:
        raise Refused(f"max_tokens is at most {limits.max_tokens} on this server", param="max_tokens")
    return given


def _ids(value: Any, vocab: int) -> bool:
    return isinstance(value, list) and all(type(i) is int and 0 <= i < vocab for i in value)


def _prompts(value: Any, tokenizer: Any, vocab: int, most: int) -> list[tuple[int, ...]]:
    """A text, ids, or a list of either. most: prompts that are taken; a body of 1 MiB can hold hundreds of thousands."""
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int)):
        value = [value]
    if not isinstance(value, list) or not value:
        raise Refused("prompt must be a text, a list of token ids, or a list of these", param="prompt")
    if len(value) > max(most, 1):
        raise Refused(f"{len(value)} prompts at once; with this n this server takes {max(most, 1)}", param="prompt")
    out: list[tuple[int, ...]] = []
    for one in value:
        if isinstance(one, str):
            # with the tokens that the tokenizer itself sets before a text, as other servers do for this address
            out.append(tuple(tokenizer.inner.encode(one)))
        elif _ids(one, vocab):
            out.append(tuple(one))
        else:
            raise Refused(f"a prompt must be a text or a list of token ids below {vocab}", param="prompt")
        if not out[-1]:
            raise Refused("a prompt must hold at least one token", param="prompt")
    return out


def _messages(value: Any, tokenizer: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise Refused("messages must be a list of at least one message", param="messages")
    messages: list[dict[str, str]] = []
    for i, one in enumerate(value):
        if not isinstance(one, Mapping) or not isinstance(one.get("role"), str):
            raise Refused(f"messages[{i}] must be an object with role and content", param="messages")
        unread = [k for k, v in one.items() if k not in MESSAGE and v not in (None, [], {}, "")]
        if unread:
            raise Refused(f"messages[{i}].{unread[0]} is not read by this server; leave it out", param="messages")
        content = one.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            parts = [p.get("text") for p in content if isinstance(p, Mapping) and p.get("type") == "text"]
            whole = len(parts) == len(content) and all(isinstance(p, str) for p in parts)
            content = "".join(map(str, parts)) if whole else None
        if not isinstance(content, str):
            raise Refused(f"messages[{i}].content must be text", param="messages")
        messages.append({"role": one["role"], "content": content})
    try:
        return tokenizer.chat(messages)
    except Exception as e:  # a template refuses in its own words (jinja2.TemplateError, ValueError, UserError)
        line = str(e) if isinstance(e, UserError) else f"the chat template refuses these messages: {e}"
        raise Refused(" ".join(line.split())[:300], param="messages") from None


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise Refused(f"stop must be a text or a list of at most {MAX_STOPS} texts", param="stop")
    if any(len(s) > MAX_STOP_LENGTH for s in stops):
        raise Refused(f"a stop text has at most {MAX_STOP_LENGTH} characters", param="stop")
    return tuple(stops)


def _logprobs(f: Fields, chat: bool) -> tuple[bool, int]:
    """(whether the tokens' log-probabilities are told, how many of the likeliest beside)."""
    most = MAX_TOPS[chat]
    if not chat:
        asked = f.integer("logprobs", None, 0, most)
        return asked is not None, asked or 0
    told, tops = f.flag("logprobs"), f.integer("top_logprobs", 0, 0, most) or 0
    if tops and not told:
        raise Refused("top_logprobs needs logprobs: true", param="top_logprobs")
    return told, tops
