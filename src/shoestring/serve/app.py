"""The HTTP side: addresses, limits, the key, streams, and clients that go away."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from shoestring.serve import schema
from shoestring.serve.answer import Choice, Writer
from shoestring.serve.reader import Reader
from shoestring.serve.schema import Asked, Limits, Refused
from shoestring.serve.worker import End, Job, Piece, Worker

LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}


class Service:
    """What every request needs. encoder and decoder: two tokenizers of one model, because the engine's thread reads with
    one while requests are read with the other (a tokenizer is not made for two threads)."""

    def __init__(self, worker: Worker, encoder: Any, decoder: Any, name: str, limits: Limits, vocab: int) -> None:
        self.worker, self.encoder, self.decoder = worker, encoder, decoder
        self.name, self.limits, self.vocab = name, limits, vocab
        self.active = 0  # answers under way or waiting
        self.started = int(time.time())
        self._encoding = asyncio.Lock()

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
            return json.loads(raw)
        except (ValueError, RecursionError):
            raise Refused("the body is not JSON") from None

    def show(self, token: int) -> str:
        return self.encoder.inner.decode([token])


class Answer(Response):
    """One HTTP request from its body to its last byte. Whatever ends it, its jobs leave the engine."""

    def __init__(self, service: Service, chat: bool) -> None:
        self.service, self.chat = service, chat
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, held = self.service, 0
        jobs: list[Job] = []
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
            await self._until_gone(receive, self._respond(asked, events, scope, receive, send))
        except Refused as e:
            await error(e)(scope, receive, send)
        except ClientDisconnect:  # while its body was read: nobody is left to answer
            pass
        finally:
            service.active -= held
            service.worker.cancel(jobs)

    def _jobs(self, asked: Asked, events: asyncio.Queue[Piece | End]) -> list[Job]:
        loop = asyncio.get_running_loop()

        def emit(event: Piece | End) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: the server is stopping
                loop.call_soon_threadsafe(events.put_nowait, event)

        return [Job(i, r, Reader(self.service.decoder.decode, asked.stop_strings), emit) for i, r in enumerate(asked.requests)]

    @staticmethod
    async def _until_gone(receive: Receive, work: Any) -> None:
        """Run `work`, but no longer than the client stays."""

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        tasks = {asyncio.create_task(work), asyncio.create_task(gone())}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _respond(
        self, asked: Asked, events: asyncio.Queue[Piece | End], scope: Scope, receive: Receive, send: Send
    ) -> None:
        writer = Writer(asked, self.service.name, self.service.show)
        choices = [Choice() for _ in asked.requests]
        if asked.stream:
            await self._stream(writer, choices, events, send)
            return
        while any(c.end is None for c in choices):
            self._take(await events.get(), choices)
        await JSONResponse(writer.whole(choices))(scope, receive, send)

    @staticmethod
    def _take(event: Piece | End, choices: Sequence[Choice]) -> None:
        choices[event.index].add(event)
        if isinstance(event, End) and event.reason == "refused":
            raise Refused(event.error)
        if isinstance(event, End) and event.reason == "failed":
            raise Refused(event.error, 503)

    async def _stream(self, writer: Writer, choices: list[Choice], events: asyncio.Queue[Piece | End], send: Send) -> None:
        async def put(data: bytes, more: bool = True) -> None:
            message = {"type": "http.response.body", "body": data, "more_body": more}
            await asyncio.wait_for(send(message), self.service.limits.send_seconds)

        async def say(payload: dict[str, Any] | None) -> None:
            if payload is not None:
                await put(b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n")

        event = await events.get()
        self._take(event, choices)  # a refusal before the first token is still an HTTP error
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            for i in range(len(choices)):
                await say(writer.first(i))
            await say(writer.chunk(event))
            while any(c.end is None for c in choices):
                event = await events.get()
                self._take(event, choices)
                await say(writer.chunk(event))
            await say(writer.last(sum(len(c.tokens) for c in choices)))
            await put(b"data: [DONE]\n\n", more=False)
        except Refused as e:  # the status has been sent: the error is an event of its own, and no [DONE] follows
            await say(e.body())
            await put(b"", more=False)
        except TimeoutError:  # the client has stopped reading
            return


def error(e: Refused) -> JSONResponse:
    headers = {"Retry-After": str(e.retry_after)} if e.retry_after is not None else {}
    if e.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(e.body(), e.status, headers)


class Guard:
    """Before anything is read: the key where one is set; without one, only this machine's own names for itself, so that a
    web page whose name was made to point here (DNS rebinding) is turned away."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self.key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refused := self._refuse(scope)):
            await error(refused)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refuse(self, scope: Scope) -> Refused | None:
        headers = dict(scope["headers"])
        if not self.key:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            return None if name in LOCAL_NAMES else Refused("this server answers to localhost only", 403)
        if scope["path"] == "/health":
            return None
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.key):
            return None
        return Refused("a key is needed: Authorization: Bearer KEY", 401, code="invalid_api_key")


def make(service: Service, key: str = "") -> ASGIApp:
    """The application. key "" means none, and then only for clients on this machine."""

    async def chat(request: Request) -> Response:
        return Answer(service, chat=True)

    async def completions(request: Request) -> Response:
        return Answer(service, chat=False)

    def about() -> dict[str, Any]:
        window = service.limits.window
        return {
            "id": service.name, "object": "model", "created": service.started, "owned_by": "shoestring",
            "max_model_len": window,
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
        ],
        exception_handlers={404: other, 405: other, Exception: broken},
    )
    return Guard(app, key)
