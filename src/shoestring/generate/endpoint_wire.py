"""What travels between an OpenAI-compatible server and us: bodies out, answers in, failures by class. No network here.

Written after the OpenAI API reference (completions, chat completions) and the fields that open servers add to it:
`return_token_ids`, `stop_token_ids`, `ignore_eos`, `top_k`, `min_p` (vLLM), `reasoning_content` (DeepSeek, vLLM, SGLang),
`reasoning` (OpenRouter, newer vLLM), `prompt_cache_hit_tokens` (DeepSeek).
"""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shoestring.generate.request import Completion, Request
from shoestring.generate.thinking import TextThinking
from shoestring.records import Usage

OPEN, CLOSE = "<think>", "</think>"
_TOO_LONG = re.compile(
    r"context.{0,12}(length|window|size)|maximum (model|input|sequence) length|max_model_len|prompt is too long|too many tok",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"token_id:(\d+)")


@dataclass(frozen=True)
class TextRequest:
    """A prompt of text (goes to /completions) or of messages ({"role", "content"}; goes to /chat/completions).

    `logprobs` asks for log-probabilities, which some servers refuse to give. thinking: of a prompt of text alone.
    """

    prompt: str | tuple[Mapping[str, str], ...]
    max_new: int
    temperature: float = 0.0
    seed: int = 0
    top_p: float = 1.0
    stop_strings: tuple[str, ...] = ()
    logprobs: bool = False
    thinking: TextThinking | None = None


@dataclass(frozen=True)
class Attempt:
    """One call of the server, retries counted apart, and the tokens that it used.

    basis "reported": the server's own counts. "lower bound": the answer broke off, so these are what we had received
    (and the prompt, where it was ids). "none": the server refused before it worked, or was not heard of again.
    completion_tokens includes the reasoning tokens; prompt_tokens includes the cached ones. sent: the server may have worked
    for it, and so may charge for it: it was no refusal, and there was a connection. again: it failed in a way in which the
    same request may still succeed.
    """

    index: int
    number: int
    start: float  # unix seconds
    end: float
    error: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    basis: Literal["reported", "lower bound", "none"] = "none"
    sent: bool = False
    again: bool = False

    def usages(self, sku: str, stage: str, attempt: str = "") -> tuple[Usage, ...]:
        """Quantities for the ledger under `<sku>/in|cached|out` (fresh prompt tokens are "in"), in tokens."""
        counts = {
            "in": self.prompt_tokens - self.cached_tokens,
            "cached": self.cached_tokens,
            "out": self.completion_tokens,
        }
        outcome = "failed" if self.error else "useful"
        return tuple(
            Usage(f"{sku}/{kind}", float(n), "token", stage, attempt, self.start, self.end, outcome)
            for kind, n in counts.items()
            if n
        )


@dataclass(frozen=True)
class Answer(Completion):
    """A completion from a server. tokens is empty where it was asked in text, logprobs where the server gives none.

    logprobs are as the server defines them: ours are of the distribution that was sampled from, vLLM's (by default) of the
    distribution before temperature. They agree at temperature 1, and at 0.
    """

    text: str = ""
    reasoning: str = ""
    attempts: tuple[Attempt, ...] = ()


@dataclass(frozen=True)
class Delta:
    """A piece of an answer while it is written. ids and logprobs as in Answer."""

    text: str = ""
    reasoning: str = ""
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()


class Failure(Exception):
    """One attempt failed. fatal: no request will do better. again: the same request may, after `after` seconds.
    rename: if the limit of tokens goes by its other name. unmet: there was no connection."""

    def __init__(
        self,
        line: str,
        *,
        fatal: bool = False,
        again: bool = False,
        after: float | None = None,
        rename: bool = False,
        unmet: bool = False,
    ) -> None:
        super().__init__(line)
        self.line, self.fatal, self.again, self.after = line, fatal, again, after
        self.rename, self.unmet = rename, unmet


def path(request: Request | TextRequest) -> str:
    chat = isinstance(request, TextRequest) and not isinstance(request.prompt, str)
    return "/chat/completions" if chat else "/completions"


def body(request: Request | TextRequest, model: str, streamed: bool, limit_name: str = "max_tokens") -> dict[str, Any]:
    """The JSON of one request. limit_name: newer OpenAI models want "max_completion_tokens" in chats.

    Ids in, ids out: a `Request` asks for ids back and for no other stop than its own, as our engine would do it.
    """
    seed = request.seed & (1 << 64) - 1
    out: dict[str, Any] = {
        "model": model,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": seed - (1 << 64) if seed >> 63 else seed,  # the API's seed is a signed 64-bit number
    }
    if request.stop_strings:
        out["stop"] = list(request.stop_strings)
    if streamed:
        out |= {"stream": True, "stream_options": {"include_usage": True}}
    if isinstance(request, Request):
        out |= {
            "prompt": list(request.prompt), "max_tokens": request.max_new, "logprobs": 0, "ignore_eos": True,
            "return_token_ids": True, "return_tokens_as_token_ids": True,
        }  # fmt: skip
        extra = {"stop_token_ids": sorted(request.stop), "top_k": request.top_k, "min_p": request.min_p}
        out |= {k: v for k, v in extra.items() if v}
    elif isinstance(request.prompt, str):
        out |= {"prompt": request.prompt, "max_tokens": request.max_new} | ({"logprobs": 0} if request.logprobs else {})
    else:
        out |= {"messages": [dict(m) for m in request.prompt], limit_name: request.max_new}
        out |= {"logprobs": True} if request.logprobs else {}
    return out


def held_back(text: str, marker: str) -> int:
    """How many characters at the end of `text` could be the beginning of `marker`."""
    for n in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:n]):
            return n
    return 0


class Thinking:
    """Splits streamed content that begins with <think> into reasoning and text; other content passes as text."""

    def __init__(self) -> None:
        self._state = "before"
        self._buffer = ""

    def feed(self, content: str) -> tuple[str, str]:
        """(reasoning, text) that is certain by now."""
        self._buffer += content
        reasoning = ""
        if self._state == "before":
            start = self._buffer.lstrip()
            if start.startswith(OPEN):
                self._state, self._buffer = "inside", start[len(OPEN) :]
            elif OPEN.startswith(start):
                return "", ""
            else:
                self._state = "text"
        if self._state == "inside":
            inside, found, rest = self._buffer.partition(CLOSE)
            keep = 0 if found else held_back(inside, CLOSE)
            reasoning = inside[: len(inside) - keep]
            self._buffer = rest if found else inside[len(inside) - keep :]
            if not found:
                return reasoning, ""
            self._state = "gap"
        if self._state == "gap":  # the blank lines between the two belong to neither
            self._buffer = self._buffer.lstrip()
            self._state = "text" if self._buffer else "gap"
        text, self._buffer = self._buffer, ""
        return reasoning, text

    def end(self) -> tuple[str, str]:
        rest, self._buffer = self._buffer, ""
        return (rest, "") if self._state == "inside" else ("", rest)


def split_thinking(content: str) -> tuple[str, str]:
    """(reasoning, text) of a whole content. A lone </think> counts too: some templates open the thought in the prompt."""
    if CLOSE in content and not content.lstrip().startswith(OPEN):
        reasoning, _, text = content.partition(CLOSE)
        return reasoning, text.lstrip()
    split = Thinking()
    a, b = split.feed(content), split.end()
    return a[0] + b[0], a[1] + b[1]


class Gather:
    """Collects one answer from one body, or from the chunks of a stream."""

    def __init__(self, request: Request | TextRequest) -> None:
        self.request = request
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.finish: str | None = None
        self.usage: Mapping[str, Any] | None = None
        self.working = False  # the server has begun to answer, and so to count
        self._pieces = 0
        self._thinking = Thinking() if path(request) == "/chat/completions" else None

    def feed(self, payload: Any) -> Delta | None:
        """One body or chunk → what it adds. Failure where it is not one, or where it carries an error."""
        if not isinstance(payload, Mapping):
            raise Failure("the server's answer is not a JSON object")
        if payload.get("error"):
            raise Failure(f"the server broke off: {message(payload)}", again=True)
        if isinstance(payload.get("usage"), Mapping):
            self.usage = payload["usage"]
        choices = payload.get("choices")
        if not isinstance(choices, Sequence):
            raise Failure("the server's answer has no choices")
        if not choices:
            return None
        choice = choices[0]
        try:
            return self._choice(choice)
        except (TypeError, KeyError, ValueError, AttributeError) as e:
            raise Failure(f"the server's answer has an unknown form ({type(e).__name__}: {e})") from None

    def _choice(self, choice: Mapping[str, Any]) -> Delta:
        self.finish = choice.get("finish_reason") or self.finish
        logprobs = choice.get("logprobs") or {}
        if self._thinking is None:
            content, reasoning = choice.get("text") or "", ""
            names = logprobs.get("tokens") or []
            values = logprobs.get("token_logprobs") or []
        else:
            said = choice.get("message") or choice.get("delta") or {}
            content = said.get("content") or ""
            reasoning = said.get("reasoning_content") or said.get("reasoning") or ""
            rows = logprobs.get("content") or []
            names, values = [r["token"] for r in rows], [r["logprob"] for r in rows]
        ids = choice.get("token_ids")
        if ids is None:
            found = [_TOKEN.fullmatch(str(n)) for n in names]
            ids = [int(m[1]) for m in found if m] if all(found) else []
        self.ids += [int(i) for i in ids]
        self.logprobs += [float(v) for v in values]
        self.content.append(content)
        self.reasoning.append(reasoning)
        self._pieces += bool(content or reasoning or ids)
        if self._thinking is None:
            return Delta(content, "", tuple(ids), tuple(values))
        more, text = self._thinking.feed(content)
        if self.finish:
            late = self._thinking.end()
            more, text = more + late[0], text + late[1]
        return Delta(text, reasoning + more, tuple(ids), tuple(values))

    def attempt(self, index: int, number: int, start: float, error: str = "") -> Attempt:
        counts: dict[str, Any] = {}
        if self.usage is not None:
            counts = _counts(self.usage) | {"basis": "reported"}
        elif self.working:
            prompt = len(self.request.prompt) if isinstance(self.request, Request) else 0
            counts = {"prompt_tokens": prompt, "completion_tokens": max(len(self.ids), self._pieces), "basis": "lower bound"}
        return Attempt(index, number, start, time.time(), error, **counts)

    def answer(self, attempts: Sequence[Attempt], error: str = "") -> Answer:
        """The whole answer, or what there is of it with the error that ended it."""
        content, reasoning = "".join(self.content), "".join(self.reasoning)
        if self._thinking is not None and not reasoning:
            reasoning, content = split_thinking(content)
        asked = isinstance(self.request, Request)
        reason: Literal["stop", "length", "error"] = "stop"
        if error:
            reason = "error"
        elif self.finish == "length":
            reason = "length"
        ids = tuple(self.ids) if asked else ()
        aligned = not asked or len(self.logprobs) == len(ids)
        return Answer(ids, tuple(self.logprobs) if aligned else (), reason, error, content, reasoning, tuple(attempts))

    def check(self) -> None:
        """Failure where the answer is not whole."""
        if self.finish is None:
            raise Failure("the answer ended without a finish reason", again=True)
        if self.finish not in ("stop", "length", "tool_calls", "eos_token", "stop_sequence"):
            raise Failure(f"the server ended the answer early: {self.finish}")
        if isinstance(self.request, Request) and not self.ids and "".join(self.content):
            raise Failure("this server returns no token ids (return_token_ids): ask it with text instead", fatal=True)


def _counts(usage: Mapping[str, Any]) -> dict[str, int]:
    """prompt, cached, completion and reasoning tokens. Some servers leave reasoning out of completion_tokens; their total
    tells."""

    def number(*keys: str) -> int:
        at: Any = usage
        for key in keys:
            at = at.get(key) if isinstance(at, Mapping) else None
        return int(at) if isinstance(at, int | float) and at > 0 else 0

    prompt, total = number("prompt_tokens"), number("total_tokens")
    cached = number("prompt_tokens_details", "cached_tokens") or number("prompt_cache_hit_tokens")
    return {
        "prompt_tokens": prompt,
        "cached_tokens": min(cached, prompt),
        "completion_tokens": max(number("completion_tokens"), total - prompt if total else 0),
        "reasoning_tokens": number("completion_tokens_details", "reasoning_tokens"),
    }


def message(payload: Any) -> str:
    """The server's own words in one line of at most 300 characters."""
    found = payload
    if isinstance(payload, Mapping):
        error = payload.get("error", payload)
        found = error.get("message") or error if isinstance(error, Mapping) else error
        found = payload.get("detail", found) if error is payload else found
    text = found if isinstance(found, str) else json.dumps(found, default=str)
    return " ".join(text.split())[:300]


def refusal(status: int, raw: bytes, headers: Mapping[str, str], url: str, model: str, key_env: str) -> Failure:
    """What an answer other than 200 means. The key is named by its variable; what a server says about it is not repeated."""
    try:
        payload: Any = json.loads(raw)
    except ValueError:
        payload = raw[:300].decode(errors="replace")
    error = payload.get("error") if isinstance(payload, Mapping) else None
    code = str(error.get("code") or error.get("type") or "") if isinstance(error, Mapping) else ""
    said = message(payload)
    if status in (401, 403):
        which = f"the key in ${key_env}" if key_env else "a request without a key: name its variable in key_env"
        return Failure(f"{url} refuses {which} (HTTP {status})", fatal=True)
    if status == 404:
        return Failure(f"{url}: HTTP 404 for model {model!r}: check address and model id ({said})", fatal=True)
    if status == 413 or (status in (400, 422) and ("context" in code or _TOO_LONG.search(said))):
        return Failure(f"too long for {model}: {said}")
    if status == 400 and isinstance(error, Mapping) and error.get("param") == "max_tokens" and "max_completion_tokens" in said:
        return Failure(said, again=True, after=0.0, rename=True)
    if status == 429 and "insufficient_quota" not in code:
        return Failure(f"{url}: too many requests (HTTP 429): {said}", again=True, after=retry_after(headers))
    if status in (408, 409, 425) or status >= 500:
        return Failure(f"{url}: HTTP {status}: {said}", again=True, after=retry_after(headers))
    return Failure(f"{url}: HTTP {status}: {said}", fatal=True)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks for (RFC 9110, section 10.2.3: a number or a date), None where it does not."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time())
