"""A teacher that is asked for answers: a live endpoint, a local model on our engine, or completions recorded before.

    for index, reply in teacher.once(questions): ...      # one attempt each; what failed and may be asked again says so
    for index, reply in ask(teacher, questions): ...      # with repeats

Every attempt's tokens are handed to `teacher.spent` (a callback) before its reply is yielded, so that they can be posted
before a repeat is made. A `Cache` keeps one row a request, on the disk before anybody hears of the reply: a restart asks, and
pays, for none of them again. Keys stay in the environment (`endpoint.Server.key`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from shoestring.generate.endpoint import Endpoint, Server
from shoestring.generate.endpoint_wire import Answer, Attempt, TextRequest, split_thinking
from shoestring.generate.request import Request
from shoestring.records import Usage, content_hash

if TYPE_CHECKING:
    from shoestring.generate.engine import Engine

KINDS = ("in", "cached", "out", "thinking")  # fresh prompt tokens, cached ones, written ones, those of them that are thought
PER_MESSAGE, PER_REQUEST = 32, 512  # tokens that a template may add to a message, and a server to a request (a system prompt)
OFF_BY = 8  # a reported count this many times off our tokenizer's is wrong: no two tokenizers differ so much
Counter = Callable[[str], int]


@dataclass(frozen=True)
class Question:
    """One request. id: the problem's; sample: which of several answers to it; max_tokens: thought and answer together."""

    id: str
    messages: tuple[Mapping[str, str], ...]
    sample: int = 0
    max_tokens: int = 1024
    temperature: float = 1.0
    seed: int = 0

    def key(self, teacher: str) -> str:
        """16 hex digits that name this request to this teacher."""
        said = [asdict(self), teacher]
        return content_hash(json.dumps(said, sort_keys=True))

    @property
    def text(self) -> str:
        return self.messages[-1]["content"]

    def most(self) -> dict[str, int]:
        """An upper bound of the tokens of one attempt: a token is at least one byte of UTF-8."""
        size = sum(len(m["content"].encode()) + PER_MESSAGE for m in self.messages)
        return {"in": size + PER_REQUEST, "out": self.max_tokens}


@dataclass(frozen=True)
class Spent:
    """What one attempt used, in tokens by KINDS. key, number: of the request, and of its attempts at the server.

    basis "reported": the server's own usage. "estimated": the server gave none, or one that cannot be; counted by our
    tokenizer. "recorded": of a recording; paid by whoever made it.
    """

    key: str
    number: int
    counts: Mapping[str, int]
    basis: Literal["reported", "estimated", "recorded"] = "reported"
    error: str = ""
    start: float = 0.0
    end: float = 0.0

    def usages(self, sku: str, stage: str, cached: bool = True) -> tuple[Usage, ...]:
        """For the ledger under `<sku>/in|cached|out`, in tokens. cached: whether cached tokens have a price of their own;
        without one they are posted as fresh ones."""
        counts = {k: self.counts.get(k, 0) for k in ("in", "cached", "out")}
        if not cached:
            counts = {"in": counts["in"] + counts["cached"], "out": counts["out"]}
        name = f"{self.key}.{self.number}" + (" estimated" if self.basis == "estimated" else "")
        outcome = "failed" if self.error else "useful"
        return tuple(
            Usage(f"{sku}/{k}", float(n), "token", stage, name, self.start, self.end, outcome) for k, n in counts.items() if n
        )


@dataclass(frozen=True)
class Reply:
    """thinking and text apart; usage: tokens of the answering attempt. reason "error": nothing usable came (`error`);
    again: the same request may still succeed. tokens, logprobs: where the teacher is a local model.
    facts: what a recording says of itself (licence, source)."""

    text: str
    thinking: str = ""
    reason: Literal["stop", "length", "error"] = "stop"
    usage: Mapping[str, int] = field(default_factory=dict)
    attempts: tuple[Spent, ...] = ()
    error: str = ""
    again: bool = False
    model: str = ""
    basis: str = "reported"
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def content(self) -> str:
        """What a student learns to write."""
        text = self.text.strip()
        return f"<think>\n{self.thinking.strip()}\n</think>\n\n{text}" if self.thinking.strip() else text

    @property
    def settled(self) -> bool:
        """Whether asking again would pay for the same once more: it is an answer, or its failure was charged for."""
        return self.reason != "error" or any(sum(a.counts.values()) for a in self.attempts)


class Teacher(Protocol):
    """model: its name in traces; width: requests that are worth handing over at once; retries: repeats of one request whose
    attempts may be charged; spent: hears of every attempt."""

    model: str
    width: int
    retries: int
    spent: Callable[[Spent], None]

    def once(self, questions: Sequence[Question]) -> Generator[tuple[int, Reply], None, None]: ...


def ask(teacher: Teacher, questions: Sequence[Question], cache: Cache | None = None) -> Iterator[tuple[int, Reply]]:
    """(index, reply) as they come. A request is made again up to `retries` times where that may help, `width` at a time."""
    waiting = []
    for i, q in enumerate(questions):
        if cache is not None and (known := cache.get(q.key(teacher.model))):
            yield i, known
        else:
            waiting.append(i)
    tries = dict.fromkeys(waiting, 0)
    while waiting:
        batch, waiting = waiting[: teacher.width], waiting[teacher.width :]
        for at, reply in teacher.once([questions[i] for i in batch]):
            i = batch[at]
            if reply.again and tries[i] < teacher.retries:
                tries[i] += 1
                waiting.append(i)
                continue
            if cache is not None and reply.settled:
                cache.put(questions[i].key(teacher.model), reply)
            yield i, reply


class LiveTeacher:
    """An OpenAI-compatible server, asked for streamed chats. count: tokens of a text by our tokenizer, for what the server
    does not report."""

    def __init__(self, server: Server, count: Counter, spent: Callable[[Spent], None] = lambda s: None) -> None:
        self.server, self.count, self.spent = server, count, spent
        self.model, self.width, self.retries = server.model, 4 * server.concurrency, server.retries
        self.top_p = 1.0
        self.late: list[tuple[int, Reply]] = []  # replies that were whole when `once` was closed and that nobody had heard of

    def once(self, questions: Sequence[Question]) -> Generator[tuple[int, Reply], None, None]:
        """One attempt each that may cost something. Closing ends what is in flight; its tokens go to `spent` too."""
        heard: list[Attempt] = []  # by the connections' thread; all of them are in when the stream is closed
        told: set[int] = set()
        requests = [TextRequest(q.messages, q.max_tokens, q.temperature, q.seed, self.top_p) for q in questions]
        endpoint = Endpoint(self.server, heard.append, repeat_paid=False)
        whole: dict[int, Answer] = {}
        endpoint.on_answer = whole.__setitem__
        stream, self.late = endpoint.texts(requests), []
        try:
            for index, event in stream:
                if isinstance(event, Answer):
                    told.add(index)
                    yield index, self._reply(questions[index], event)
        finally:
            stream.close()
            self.late = [(i, self._reply(questions[i], a)) for i, a in whole.items() if i not in told]
            told |= whole.keys()
            for attempt in heard:
                if attempt.index not in told and attempt.sent:
                    self.spent(self._spent(questions[attempt.index], attempt, "", "", attempt.completion_tokens))

    def _reply(self, question: Question, answer: Answer) -> Reply:
        text, thinking = clean(answer.text), clean(answer.reasoning)
        spent = tuple(self._spent(question, a, text, thinking) for a in answer.attempts if a.sent)
        for one in spent:
            self.spent(one)
        last = spent[-1] if spent else None
        again = answer.reason == "error" and answer.attempts[-1].again and answer.attempts[-1].sent
        return Reply(
            text, thinking, answer.reason, last.counts if last else {}, spent, answer.error, again, self.model,
            last.basis if last else "reported",
        )  # fmt: skip

    def _spent(self, question: Question, attempt: Attempt, text: str, thinking: str, least: int = 0) -> Spent:
        counts, reported = counted(question, attempt, text, thinking, self.count, least)
        basis: Literal["reported", "estimated"] = "reported" if reported else "estimated"
        return Spent(question.key(self.model), attempt.number, counts, basis, attempt.error, attempt.start, attempt.end)


def counted(
    question: Question, attempt: Attempt, text: str, thinking: str, count: Counter, least: int = 0
) -> tuple[dict[str, int], bool]:
    """(tokens by KINDS, whether they are the server's own). A report that cannot be is replaced by our tokenizer's count:
    none at all; more written than was allowed; more read than the question has bytes; or `OFF_BY` times less than either is."""
    thought = min(count(thinking) if thinking else 0, question.max_tokens)
    written = min(thought + (count(text) if text else 0), question.max_tokens)
    asked = sum(count(m["content"]) for m in question.messages)
    most = question.most()
    said = attempt
    plausible = (
        said.basis == "reported"
        and asked <= OFF_BY * said.prompt_tokens
        and said.prompt_tokens <= most["in"]
        and written <= OFF_BY * said.completion_tokens
        and said.completion_tokens <= most["out"]
    )
    if plausible:
        fresh = said.prompt_tokens - said.cached_tokens
        inner = min(said.reasoning_tokens or thought, said.completion_tokens)
        return dict(zip(KINDS, (fresh, said.cached_tokens, said.completion_tokens, inner), strict=True)), True
    template = 8 * len(question.messages)
    return dict(zip(KINDS, (asked + template, 0, max(written, min(least, question.max_tokens)), thought), strict=True)), False


class LocalTeacher:
    """A model on our engine. tokenizer: with chat, encode, decode and end, as models.tokenizer's. Its tokens are paid by the
    machine's seconds, so nothing goes to `spent`."""

    retries = 0

    def __init__(self, engine: Engine, tokenizer: Any, model: str, width: int = 48) -> None:
        self.engine, self.tokenizer, self.model, self.width = engine, tokenizer, model, width
        self.spent: Callable[[Spent], None] = lambda s: None

    def once(self, questions: Sequence[Question]) -> Generator[tuple[int, Reply], None, None]:
        stop = self.tokenizer.ends
        prompts = [self.tokenizer.chat([dict(m) for m in q.messages]) for q in questions]
        requests = [
            Request(prompt, q.max_tokens, q.temperature, q.seed, stop) for prompt, q in zip(prompts, questions, strict=True)
        ]
        for index, done in self.engine.stream(requests):
            said = self.tokenizer.decode([t for t in done.tokens if t not in self.tokenizer.ends])
            thinking, text = split_thinking(clean(said))
            thought = len(self.tokenizer.encode(thinking)) if thinking else 0
            usage: dict[str, int] = dict(zip(KINDS, (len(prompts[index]), 0, len(done.tokens), thought), strict=True))
            yield index, Reply(
                text, thinking, done.reason, usage, error=done.error, model=self.model, tokens=done.tokens,
                logprobs=done.logprobs,
            )  # fmt: skip


def clean(text: str) -> str:
    """Text that UTF-8 can hold: half of a surrogate pair, which JSON can carry, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


class Cache:
    """Replies by request, one line of JSON each, whole or absent, on the disk when `put` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Reply] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = path.read_bytes() if path.exists() else b""
        whole = 0
        for line in raw.splitlines(keepends=True):
            try:
                row = json.loads(line)
                if not line.endswith(b"\n"):
                    break
                self.rows[row["key"]] = _reply(row)
            except (ValueError, KeyError, TypeError):
                break
            whole += len(line)
        if whole < len(raw):  # a torn end: its writer was killed
            with open(path, "r+b") as f:
                f.truncate(whole)

    def get(self, key: str) -> Reply | None:
        return self.rows.get(key)

    def put(self, key: str, reply: Reply) -> None:
        line = json.dumps({"key": key, **asdict(reply)}) + "\n"
        with open(self.path, "a", encoding="ascii") as f:
            f.write(line)
            f.flush()
            os.fsync(f.fileno())
        self.rows[key] = replace(reply)


def _reply(row: Mapping[str, Any]) -> Reply:
    known: dict[str, Any] = {f.name: row[f.name] for f in fields(Reply) if f.name in row}
    known |= {k: tuple(known[k]) for k in ("tokens", "logprobs")}
    known["attempts"] = tuple(Spent(**a) for a in row["attempts"])
    return Reply(**known)
