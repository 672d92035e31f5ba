"""The engine's interface over an OpenAI-compatible server: generate, stream and tokens, with many requests in flight.

    endpoint = Endpoint(Server("http://127.0.0.1:8000/v1", "smollm2", key_env="MY_KEY"), on_attempt=post)
    completions = endpoint.generate(requests)

One background thread runs the connections; closing an iterator ends them. Every call of the server, retries included,
is handed to `on_attempt` as it ends and before the next is made, so that what it cost can be posted first.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import queue
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shoestring.generate import endpoint_forcing
from shoestring.generate import endpoint_wire as wire
from shoestring.generate.endpoint_wire import Answer, Attempt, Delta, Failure, TextRequest
from shoestring.generate.request import Request
from shoestring.records import UserError

BACKOFF = 0.5  # seconds before the first repeat; doubles, at most 30, each shortened at random by up to half
PATIENCE = 300.0  # a Retry-After above this ends the request: nobody waits an hour unseen
MAX_ERROR_BYTES = 65536
LOCAL = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class Server:
    """Where to ask. The key is read from the environment variable `key_env` when a call begins, and kept nowhere.

    chunk_seconds: the longest silence inside a streamed answer. answer_seconds: the longest wait for an unstreamed one.
    retries: repeats of one request after 429, 5xx and broken connections.
    """

    url: str
    model: str
    key_env: str = ""
    concurrency: int = 16
    retries: int = 4
    connect_seconds: float = 10.0
    chunk_seconds: float = 120.0
    answer_seconds: float = 900.0

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            raise UserError("endpoint: the address cannot be read; write it as https://host:port/v1") from None
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UserError(f"endpoint {parts.hostname}: no user, key or query in an address; key_env names the key's variable")
        if not usable:
            raise UserError(f"endpoint {self.url!r}: not an http(s) address; write it as https://host:port/v1")
        if not self.model:
            raise UserError(f"endpoint {self.url}: give a model id, one of GET {self.url.rstrip('/')}/models")
        if self.concurrency < 1 or self.retries < 0:
            raise UserError(f"endpoint {self.url}: {self.concurrency=} must be at least 1, {self.retries=} at least 0")
        if min(self.connect_seconds, self.chunk_seconds, self.answer_seconds) <= 0:
            raise UserError(f"endpoint {self.url}: every timeout must be above 0 seconds")

    def key(self) -> str:
        """The key, "" where none is named."""
        if not self.key_env:
            return ""
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise UserError(f"endpoint {self.url}: the environment variable {self.key_env} is not set; put the key there")
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise UserError(f"endpoint {self.url}: the key in {self.key_env} holds characters that no header may carry")
        return key


def client_library() -> Any:
    """httpx2, the maintained line of httpx (also what huggingface_hub and the openai client are built on)."""
    try:
        return importlib.import_module("httpx2")
    except ImportError as e:
        raise UserError(f"asking a server needs {e.name}: pip install 'shoestring[endpoint]'") from None


class Endpoint:
    """`on_attempt` is called by the background thread, one call at a time; an exception in it ends the run.

    repeat_paid: whether an attempt that the server may charge for (`Attempt.sent`) is repeated here too. False leaves that to
    the caller, who may have to ask for the money first; what costs nothing (a 429, a 503, no connection) is always repeated.
    text: ids → text, for the text of answers whose thinking was forced (`endpoint_forcing`).
    """

    def __init__(
        self, server: Server, on_attempt: Callable[[Attempt], None] | None = None, repeat_paid: bool = True,
        text: Callable[[Sequence[int]], str] | None = None,
    ) -> None:  # fmt: skip
        self.server, self.on_attempt, self.repeat_paid = server, on_attempt, repeat_paid
        self.text = text
        self.on_answer: Callable[[int, Answer], None] = lambda index, answer: None  # in that thread, before it is handed on
        self._http = client_library()

    def generate(
        self, requests: Sequence[Request | TextRequest], on_finish: Callable[[int, Answer], None] | None = None
    ) -> list[Answer]:
        """Answers in the order of the requests. UserError where no request can succeed; else Answer(reason="error")."""
        out: list[Answer | None] = [None] * len(requests)
        for i, done in self.stream(requests):
            out[i] = done
            if on_finish:
                on_finish(i, done)
        return [a for a in out if a is not None]

    def stream(self, requests: Sequence[Request | TextRequest]) -> Generator[tuple[int, Answer], None, None]:
        """Yield (index, answer) as requests finish."""
        for index, event in self._events(requests, streamed=False):
            if isinstance(event, Answer):
                yield index, event

    def tokens(self, requests: Sequence[Request]) -> Generator[tuple[int, int, float] | tuple[int, Answer], None, None]:
        """Yield (index, token id, logprob) as they arrive, (index, answer) at the end of each request.

        logprob is nan where the server gives none.
        """
        for index, event in self._events(requests, streamed=True):
            if isinstance(event, Answer):
                yield index, event
                continue
            known = event.logprobs if len(event.logprobs) == len(event.ids) else (float("nan"),) * len(event.ids)
            for token, logprob in zip(event.ids, known, strict=True):
                yield index, token, logprob

    def texts(self, requests: Sequence[Request | TextRequest]) -> Generator[tuple[int, Delta | Answer], None, None]:
        """Yield (index, piece of text and reasoning) as they arrive, (index, answer) at the end of each request."""
        for index, event in self._events(requests, streamed=True):
            if isinstance(event, Answer) or event.text or event.reasoning:
                yield index, event

    def _events(self, requests: Sequence[Request | TextRequest], streamed: bool) -> Iterator[tuple[int, Delta | Answer]]:
        if any(getattr(r, "top_logprobs", 0) for r in requests):
            raise UserError("endpoint: a server's likeliest other tokens are not read; ask for top_logprobs = 0")
        if requests:
            yield from _Run(
                self._http, self.server, self.on_attempt, requests, streamed, self.repeat_paid, self.on_answer,
                self.text,
            ).events()  # fmt: skip


class _Run:
    """The connections of one call, in a thread with an event loop of its own."""

    def __init__(
        self,
        http: Any,
        server: Server,
        on_attempt: Callable[[Attempt], None] | None,
        requests: Sequence[Request | TextRequest],
        streamed: bool,
        repeat_paid: bool = True,
        on_answer: Callable[[int, Answer], None] = lambda index, answer: None,
        text: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self.on_answer, self.text = on_answer, text
        self.http, self.server, self.on_attempt, self.streamed = http, server, on_attempt, streamed
        self.repeat_paid = repeat_paid
        self.base = server.url.rstrip("/")
        self.key = server.key()
        self.pending = iter(enumerate(requests))
        self.width = min(server.concurrency, len(requests))
        self.out: queue.SimpleQueue[tuple[int, Delta | Answer] | BaseException | None] = queue.SimpleQueue()
        self.reached = False  # an answer of any kind has come: the address is right
        self.not_before = 0.0  # monotonic seconds: a 429 holds everybody back, not only whom it met
        self.limit_name = "max_tokens"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False

    def events(self) -> Iterator[tuple[int, Delta | Answer]]:
        thread = threading.Thread(target=self._thread, name="endpoint", daemon=True)
        thread.start()
        try:
            while (item := self.out.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self._cancelled = True
            if self._loop is not None and self._task is not None:
                with contextlib.suppress(RuntimeError):  # the loop has already ended
                    self._loop.call_soon_threadsafe(self._task.cancel)
            thread.join()

    def _thread(self) -> None:
        try:
            asyncio.run(self._main())
        except asyncio.CancelledError:
            pass
        except BaseExceptionGroup as group:
            self.out.put(_first(group))
        except BaseException as e:
            self.out.put(e)
        finally:
            self.out.put(None)

    async def _main(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self._cancelled:
            return
        s = self.server
        read = s.chunk_seconds if self.streamed else s.answer_seconds
        client = self.http.AsyncClient(
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            timeout=self.http.Timeout(read, connect=s.connect_seconds, pool=None),
            limits=self.http.Limits(max_connections=self.width, max_keepalive_connections=self.width),
            trust_env=urllib.parse.urlsplit(self.base).hostname not in LOCAL,  # no proxy stands before this machine
        )
        async with client, asyncio.TaskGroup() as group:
            for _ in range(self.width):
                group.create_task(self._worker(client))

    async def _worker(self, client: Any) -> None:
        for index, request in self.pending:
            answer = await (self._forced if request.thinking else self._ask)(client, index, request)
            self.on_answer(index, answer)
            self.out.put((index, answer))

    async def _forced(self, client: Any, index: int, request: Request | TextRequest) -> Answer:
        """One request in rounds, whose pieces are handed on when they are certain."""

        def tell(delta: Delta) -> None:
            if self.streamed:
                self.out.put((index, delta))

        if isinstance(request, TextRequest) and not isinstance(request.prompt, str):
            raise UserError("a chat's thinking cannot be forced from outside: send its template as a prompt of text or ids")
        return await endpoint_forcing.run(request, lambda r: self._ask(client, index, r, quiet=True), tell, self.text)

    async def _ask(self, client: Any, index: int, request: Request | TextRequest, quiet: bool = False) -> Answer:
        """One request with its repeats. quiet: its pieces are not handed on."""
        attempts: list[Attempt] = []
        number = 0
        while True:
            while (wait := self.not_before - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            gather, began = wire.Gather(request), time.time()
            given, failure, sent = False, None, True
            try:
                given = await self._once(client, index, request, gather, quiet)
            except Failure as e:
                failure, sent = e, gather.working
            except (self.http.TransportError, self.http.DecodingError) as e:
                failure = self._broken(e)
                sent = not failure.unmet
            except asyncio.CancelledError:
                self._report(replace(gather.attempt(index, number, began, "cancelled"), sent=True))
                raise
            line = self._clean(failure.line) if failure else ""
            again = failure is not None and failure.again
            attempts.append(replace(gather.attempt(index, number, began, line), sent=sent, again=again))
            self._report(attempts[-1])
            if failure is None:
                return gather.answer(attempts)
            if failure.rename and self.limit_name == "max_tokens":
                self.limit_name = "max_completion_tokens"
                continue
            given = given or (self.streamed and not quiet and any((gather.ids, *gather.content, *gather.reasoning)))
            last = number >= self.server.retries or not failure.again or given or (sent and not self.repeat_paid)
            if failure.fatal or (last and failure.unmet and not self.reached):
                raise UserError(line)
            if last or (failure.after or 0.0) > PATIENCE:
                return gather.answer(attempts, line)
            await self._wait(number, failure)
            number += 1

    async def _once(
        self, client: Any, index: int, request: Request | TextRequest, gather: wire.Gather, quiet: bool
    ) -> bool:  # fmt: skip
        """One call of the server. True if pieces of the answer have been handed on."""
        body = wire.body(request, self.server.model, self.streamed, self.limit_name)
        given = False
        async with client.stream("POST", self.base + wire.path(request), json=body) as response:
            self.reached = True
            if response.status_code != 200:
                raw = b""
                async for chunk in response.aiter_bytes():
                    raw += chunk
                    if len(raw) > MAX_ERROR_BYTES:
                        break
                s = self.server
                raise wire.refusal(response.status_code, raw, response.headers, self.base, s.model, s.key_env)
            gather.working = True
            if not self.streamed:
                gather.feed(_json(await response.aread()))
            elif "text/event-stream" not in response.headers.get("content-type", ""):
                raise Failure(f"{self.base} does not stream: it answered a streaming request with another type", fatal=True)
            else:
                async for event in self.http.EventSource(response):
                    if event.data == "[DONE]":
                        break
                    delta = gather.feed(_json(event.data))
                    if delta is not None and delta != Delta() and not quiet:
                        self.out.put((index, delta))
                        given = True
        gather.check()
        return given

    def _broken(self, error: Exception) -> Failure:
        """A connection that could not be made or broke. The library's words may hold headers, so its class is named."""
        s = self.server
        if isinstance(error, self.http.ConnectTimeout):
            return Failure(f"{self.base}: no connection within {s.connect_seconds:g} s", again=True, unmet=True)
        if isinstance(error, self.http.ConnectError):
            return Failure(f"{self.base}: no server answers there; start it or check the address", again=True, unmet=True)
        if isinstance(error, self.http.ReadTimeout):
            seconds = s.chunk_seconds if self.streamed else s.answer_seconds
            return Failure(f"{self.base}: silent for {seconds:g} s", again=True)
        return Failure(f"{self.base}: the connection broke ({type(error).__name__})", again=True)

    async def _wait(self, number: int, failure: Failure) -> None:
        if failure.after is not None:
            self.not_before = max(self.not_before, time.monotonic() + failure.after)
        else:
            await asyncio.sleep(min(30.0, BACKOFF * 2**number) * random.uniform(0.5, 1.0))

    def _report(self, attempt: Attempt) -> None:
        if self.on_attempt is not None:
            self.on_attempt(attempt)

    def _clean(self, line: str) -> str:
        """A server may repeat our own key to us."""
        return line.replace(self.key, "***") if self.key else line


def _json(raw: bytes | str) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        raise Failure("the server's answer is not JSON", again=True) from None


def _first(group: BaseExceptionGroup) -> BaseException:
    """The error that ended a group of tasks; the others were cancelled because of it."""
    for e in group.exceptions:
        found = _first(e) if isinstance(e, BaseExceptionGroup) else e
        if not isinstance(found, asyncio.CancelledError):
            return found
    return group
