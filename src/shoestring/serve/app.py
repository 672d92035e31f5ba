"""The HTTP side: addresses, limits, the key, streams, and clients that go away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from shoestring.serve import metrics, page, schema
from shoestring.serve.answer import Choice, Writer
from shoestring.serve.guard import Guard, error
from shoestring.serve.price import Rate
from shoestring.serve.schema import Asked, Limits, Refused
from shoestring.serve.talk import Talk
from shoestring.serve.worker import End, Job, Piece, Worker

HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # an escape of a surrogate


class Service:
    """What every request needs. encoder and decoder: two tokenizers of one model, because the engine's thread reads with
    one while requests are read with the other (a tokenizer is not made for two threads). rate: what the machine costs."""

    def __init__(
        self, worker: Worker, encoder: Any, decoder: Any, name: str, limits: Limits, vocab: int, rate: Rate | None = None
    ) -> None:  # fmt: skip
        self.worker, self.encoder, self.decoder = worker, encoder, decoder
        self.name, self.limits, self.vocab = name, limits, vocab
        self.rate, self.metrics = rate, metrics.Metrics()
        self.active = 0  # answers under way or waiting
        self.started = int(time.time())
        self._encoding = asyncio.Lock()
        self._texts: dict[int, str] = {}

    async def read(self, request: Request, chat: bool) -> Asked:
        data = await self._body(request)
        async with self._encoding:  # in a thread: a long prompt must not hold everybody's streams
            return await asyncio.to_thread(schema.read, data, chat, self.encoder, self.name, self.limits, self.vocab)

    async def _body(self, request: Request) -> Any:
        most = self.limits.body_bytes
        # any other type could be sent by a web page of another origin without asking first
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused("send JSON with the header Content-Type: application/json", 415)
        raw = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for chunk in request.stream():
                    raw += chunk
                    if len(raw) > most:
                        raise Refused(f"the body is above {most} bytes", 413)
        except TimeoutError:
            raise Refused(f"the body did not arrive within {self.limits.body_seconds:g} seconds", 408) from None
        try:
            data = json.loads(raw)
            if HALF.search(raw):  # half a character can be written in JSON and nowhere else
                json.dumps(data, ensure_ascii=False).encode()
            return data
        except (ValueError, RecursionError):
            raise Refused("the body is not JSON in whole UTF-8 characters") from None

    def show(self, token: int) -> str:
        """A token's text, special tokens included. Kept, as the likeliest others make 21 of them a token."""
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = self.encoder.inner.decode([token])
        return text


class Answer(Response):
    """One HTTP request from its body to its last byte. Whatever ends it, its jobs leave the engine."""

    def __init__(self, service: Service, chat: bool) -> None:
        self.service, self.chat = service, chat
        self.background = None
        self.begun = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, held = self.service, 0
        jobs: list[Job] = []
        outcome: metrics.Outcome = "failed"
        try:
            asked = await service.read(Request(scope, receive), self.chat)
            wanted = len(asked.requests)
            if service.active + wanted > service.limits.max_requests:
                line = f"{service.active} answers are under way; this server takes {service.limits.max_requests}"
                raise Refused(line, 429, code="rate_limit_exceeded", retry_after=1)
            service.active += wanted
            held = wanted
            events: asyncio.Queue[Piece | End] = asyncio.Queue()
            jobs = self._jobs(asked, events)
            service.worker.submit(jobs)
            outcome = await self._until_gone(receive, self._respond(asked, events, scope, receive, send))
        except Refused as e:
            outcome = "limited" if e.status == 429 else "failed" if e.status >= 500 else "refused"
            await error(e)(scope, receive, send)
        except ClientDisconnect:  # while its body was read: nobody is left to answer
            outcome = "gone"
        finally:
            service.active -= held
            service.worker.cancel(jobs)
            service.metrics.requests[outcome] += 1

    def _jobs(self, asked: Asked, events: asyncio.Queue[Piece | End]) -> list[Job]:
        loop = asyncio.get_running_loop()

        def emit(event: Piece | End) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: the server is stopping
                loop.call_soon_threadsafe(events.put_nowait, event)

        decode = self.service.decoder.decode
        return [Job(i, r, Talk(decode, asked.stop_strings, asked.marks), emit) for i, r in enumerate(asked.requests)]

    @staticmethod
    async def _until_gone(receive: Receive, work: Any) -> metrics.Outcome:
        """Run `work`, but no longer than the client stays: its outcome, or "gone"."""

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        answering = asyncio.create_task(work)
        tasks = {answering, asyncio.create_task(gone())}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            return answering.result() if answering in done else "gone"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _respond(
        self, asked: Asked, events: asyncio.Queue[Piece | End], scope: Scope, receive: Receive, send: Send
    ) -> metrics.Outcome:
        writer = Writer(asked, self.service.name, self.service.show, self.service.rate)
        choices = [Choice(keep=not asked.stream) for _ in asked.requests]
        try:
            if asked.stream:
                return await self._stream(writer, choices, events, send)
            while any(c.end is None for c in choices):
                self._take(await events.get(), choices)
            whole = JSONResponse(writer.whole(choices))
            async with asyncio.timeout(self.service.limits.send_seconds):
                await whole(scope, receive, send)
            return "ok"
        except TimeoutError:  # the client has stopped reading
            return "gone"
        finally:
            self._count(writer.usage(choices))

    def _count(self, usage: dict[str, Any]) -> None:
        """Tokens of an answer, also of one that was not read to its end."""
        m = self.service.metrics
        m.prompt_tokens += usage["prompt_tokens"] if usage["completion_tokens"] else 0
        m.cached_tokens += usage["prompt_tokens_details"]["cached_tokens"]
        m.completion_tokens += usage["completion_tokens"]
        m.thinking_tokens += usage["completion_tokens_details"]["reasoning_tokens"]
        m.answer_seconds += usage["machine_seconds"]

    def _take(self, event: Piece | End, choices: Sequence[Choice]) -> None:
        choice = choices[event.index]
        choice.add(event)
        if isinstance(event, Piece):
            now = time.monotonic()
            if choice.count == 1:
                self.service.metrics.first_token.observe(now - self.begun)
            else:
                self.service.metrics.between_tokens.observe(now - choice.at)
            choice.at = now
        elif event.reason == "refused":
            raise Refused(event.error)
        elif event.reason == "failed":
            raise Refused(event.error, 503)

    async def _stream(
        self, writer: Writer, choices: list[Choice], events: asyncio.Queue[Piece | End], send: Send
    ) -> metrics.Outcome:
        async def put(data: bytes, more: bool = True) -> None:
            message = {"type": "http.response.body", "body": data, "more_body": more}
            async with asyncio.timeout(self.service.limits.send_seconds):
                await send(message)
            await asyncio.sleep(0)  # a backlog waits for nothing: give the others, and the news of a leaver, a turn

        async def say(payload: dict[str, Any] | None) -> None:
            if payload is not None:
                await put(b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n")

        event = await events.get()
        self._take(event, choices)  # a refusal before the first token is still an HTTP error
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        async with asyncio.timeout(self.service.limits.send_seconds):
            await send(start)
        try:
            for i in range(len(choices)):
                await say(writer.first(i))
            await say(writer.chunk(event, choices))
            while any(c.end is None for c in choices):
                event = await events.get()
                self._take(event, choices)
                await say(writer.chunk(event, choices))
            await say(writer.last(choices))
            await put(b"data: [DONE]\n\n", more=False)
        except Refused as e:  # the status has been sent: the error is an event of its own, and no [DONE] follows
            await say(e.body())
            await put(b"", more=False)
            return "failed"
        return "ok"


def make(service: Service, key: str = "") -> ASGIApp:
    """The application. key "" means none, and then only for clients on this machine."""

    async def chat(request: Request) -> Response:
        return Answer(service, chat=True)

    async def completions(request: Request) -> Response:
        return Answer(service, chat=False)

    def about() -> dict[str, Any]:
        limits, rate = service.limits, service.rate
        return {
            "id": service.name, "object": "model", "created": service.started, "owned_by": "shoestring",
            "max_model_len": limits.window, "max_tokens": limits.max_tokens, "price": rate.about() if rate else None,
        }  # fmt: skip

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [about()]})

    async def model(request: Request) -> Response:
        if request.path_params["id"] != service.name:
            return error(Refused(f"no model {request.path_params['id']!r} here", 404, "model", "model_not_found"))
        return JSONResponse(about())

    async def health(request: Request) -> Response:
        ended = service.worker.ended
        return JSONResponse({"status": "no engine" if ended else "ok"}, 503 if ended else 200)

    async def measured(request: Request) -> Response:
        text = service.metrics.render(service.worker.load, service.active, service.rate)
        return PlainTextResponse(text, media_type=metrics.CONTENT_TYPE)

    async def front(request: Request) -> Response:
        return page.response()

    async def other(request: Request, exception: Any) -> Response:
        return error(Refused(f"{request.method} {request.url.path}: {exception.detail}", exception.status_code))

    async def broken(request: Request, exception: Exception) -> Response:
        return error(Refused(f"the server failed ({type(exception).__name__})", 500))

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{id:path}", model),
            Route("/health", health),
            Route("/metrics", measured),
            Route("/", front),
        ],
        exception_handlers={404: other, 405: other, Exception: broken},
    )

    def denied() -> None:
        service.metrics.requests["denied"] += 1

    return Guard(app, key, denied)
