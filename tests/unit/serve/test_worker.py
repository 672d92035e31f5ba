"""The worker over a scripted session: who gets what, who leaves, and an engine that breaks."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from shoestring.generate.engine import Completion, Request
from shoestring.serve.talk import Talk
from shoestring.serve.worker import End, Job, Piece, Worker


class Counting:
    """A session whose every request counts up from its prompt's first token. A prompt of 13 breaks the engine."""

    def __init__(self, log: list[Any]) -> None:
        self.rows: dict[int, tuple[Request, list[int]]] = {}
        self.log = log
        self.next = 0
        self.prefixes: dict[Any, Any] = {}
        self.waiting: list[Any] = []
        self.pool = SimpleNamespace(used=0, capacity=7)

    @property
    def idle(self) -> bool:
        return not self.rows

    def add(self, request: Request) -> int:
        self.next += 1
        self.rows[self.next] = (request, [])
        self.log.append(("add", self.next))
        return self.next

    def cancel(self, id: int) -> bool:
        self.log.append(("cancel", id))
        return self.rows.pop(id, None) is not None

    def close(self) -> None:
        self.log.append(("close", 0))

    def step(self) -> list[Any]:
        self.log.append(("step", len(self.rows)))
        events: list[Any] = []
        for id, (request, tokens) in list(self.rows.items()):
            if request.prompt[0] == 13:
                raise RuntimeError("broken")
            if request.prompt[0] == 99:
                events.append((id, Completion((), (), "error", "cannot be met")))
                del self.rows[id]
                continue
            token = request.prompt[0] + len(tokens)
            tokens.append(token)
            events.append((id, token, -0.5))
            reason = "stop" if token in request.stop else "length" if len(tokens) == request.max_new else ""
            if reason:
                events.append((id, Completion(tuple(tokens), (-0.5,) * len(tokens), reason)))  # pyright: ignore
                del self.rows[id]
        return events


def letters(tokens: Sequence[int]) -> str:
    return "".join(chr(t) for t in tokens)


@pytest.fixture
def world() -> Any:
    log: list[Any] = []
    worker = Worker(lambda: Counting(log))
    out: queue.Queue[Any] = queue.Queue()

    def job(prompt: str | int, max_new: int = 4, index: int = 0, stops: tuple[str, ...] = (), **rest: Any) -> Job:
        first = prompt if isinstance(prompt, int) else ord(prompt)
        return Job(index, Request((first,), max_new, **rest), Talk(letters, stops), out.put)

    worker.start()
    yield worker, job, out, log
    worker.stop()


def collect(out: queue.Queue[Any], ends: int) -> tuple[dict[int, str], dict[int, End]]:
    texts: dict[int, str] = {}
    found: dict[int, End] = {}
    while len(found) < ends:
        e = out.get(timeout=10)
        texts[e.index] = texts.get(e.index, "") + e.text
        if isinstance(e, End):
            found[e.index] = e
    return texts, found


def test_jobs_submitted_together_share_steps(world: Any) -> None:
    worker, job, out, log = world
    worker.submit([job("a", index=0), job("p", index=1), job("x", 2, index=2)])
    texts, ends = collect(out, 3)
    assert texts == {0: "abcd", 1: "pqrs", 2: "xy"}
    assert {e.reason for e in ends.values()} == {"length"}
    assert [e for e in log if e[0] == "step"] == [("step", 3), ("step", 3), ("step", 2), ("step", 2)]


def test_a_stop_string_cancels_at_once_and_a_stop_token_is_no_text(world: Any) -> None:
    worker, job, out, log = world
    both = frozenset(map(ord, "sz"))  # the end of a turn and that of a sequence, as Gemma has them
    worker.submit([job("a", 20, 0, ("cd",)), job("p", 20, 1, stop=both), job("x", 20, 2, stop=both)])
    texts, ends = collect(out, 3)
    assert texts == {0: "ab", 1: "pqr", 2: "xy"}
    assert {e.reason for e in ends.values()} == {"stop"}
    assert ("cancel", 1) in log and ("cancel", 2) not in log


def test_a_cancelled_job_hears_nothing_more(world: Any) -> None:
    worker, job, out, log = world
    one, other = job("a", 1 << 15, 0), job("p", 3, 1)
    worker.submit([one])
    assert isinstance(out.get(timeout=10), Piece)
    worker.cancel([one])
    worker.submit([other])
    while ("cancel", 1) not in log:
        pass
    assert collect(out, 1)[1][1].reason == "length"
    assert out.empty()


def test_one_cancelled_before_it_began_never_begins(world: Any) -> None:
    worker, job, out, log = world
    gone = job("a")
    gone.gone = True
    worker.submit([gone])
    worker.submit([job("p", index=1)])
    assert collect(out, 1)[0] == {1: "pqrs"}


def test_a_refused_request_and_a_broken_engine(world: Any, capfd: Any) -> None:
    worker, job, out, log = world
    worker.submit([job(99, index=0), job("a", index=1)])
    assert collect(out, 2)[1][0] == End(0, "refused", error="cannot be met")
    worker.submit([job(13, index=0), job("a", index=1)])
    ends = collect(out, 2)[1]
    assert ends[0].reason == ends[1].reason == "failed" and "RuntimeError" in ends[0].error
    worker.submit([job("p", index=2)])  # a new session serves who comes next
    assert collect(out, 1)[0] == {2: "pqrs"}
    assert "broken" in capfd.readouterr().err


def test_who_left_with_the_broken_engine_takes_nobody_along(world: Any, capfd: Any) -> None:
    """A new session counts its ids from the beginning: the late farewell of an old job must not end the new one."""
    worker, job, out, log = world
    old = job(13)
    worker.submit([old])
    assert collect(out, 1)[1][0].reason == "failed"
    new = job("p", 1 << 12, 1)
    worker.submit([new])
    assert isinstance(out.get(timeout=10), Piece) and old.id == new.id
    worker.cancel([old])
    assert collect(out, 1)[1][1].reason == "length" and not [x for x in log if x[0] == "cancel"]
    capfd.readouterr()


def test_stopping_ends_everybody() -> None:
    worker = Worker(lambda: Counting([]))
    out: queue.Queue[Any] = queue.Queue()
    worker.start()
    worker.submit([Job(0, Request((97,), 1 << 20), Talk(letters), out.put)])
    out.get(timeout=10)
    worker.stop()
    *_, last = [out.get() for _ in range(out.qsize())]
    assert last == End(0, "failed", error="the server is stopping")
    worker.submit([Job(1, Request((97,), 5), Talk(letters), out.put)])
    assert out.get(timeout=1) == End(1, "failed", error="the server is stopping") and worker.ended


def test_no_second_session(capfd: Any, monkeypatch: Any) -> None:
    """The engine breaks, and so does the next: everybody is told, nobody waits for ever."""
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    sessions = iter([Counting([])])
    worker = Worker(lambda: next(sessions))
    out: queue.Queue[Any] = queue.Queue()
    worker.start()
    worker.submit([Job(0, Request((13,), 5), Talk(letters), out.put)])
    assert out.get(timeout=10).reason == "failed"
    worker.submit([Job(1, Request((97,), 5), Talk(letters), out.put)])
    assert out.get(timeout=10).reason == "failed"
    worker.stop()
    assert worker.ended and "broken" in capfd.readouterr().err


class Tokens:
    ends = frozenset({0})

    def decode(self, ids: Sequence[int]) -> str:
        return letters(ids)


def answer(body: dict[str, Any], worker: Worker, receive: Any, send: Any, send_seconds: float) -> Any:
    """One answer by the application, without sockets: a coroutine that ends with it. `receive` gives what follows the body."""
    from shoestring.serve.app import Answer, Service
    from shoestring.serve.schema import Limits

    incoming = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def first_the_body() -> Any:
        return incoming.pop() if incoming else await receive()

    async def main() -> None:
        service = Service(worker, Tokens(), Tokens(), "m", Limits(1 << 20, 1 << 20, 4, send_seconds=send_seconds), 1 << 20)
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [(b"content-type", b"application/json")]}
        await asyncio.wait_for(Answer(service, False)(scope, first_the_body, send), 10)
        assert service.active == 0

    return main()


def test_a_client_that_stops_reading_is_let_go() -> None:
    """`send` never returns: after send_seconds the request is over and its job has left the session."""
    pytest.importorskip("starlette", reason="needs starlette: pip install 'shoestring[serve]'")
    log: list[Any] = []
    worker = Worker(lambda: Counting(log))
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    worker.start()
    body = {"prompt": [97], "max_tokens": 1 << 18, "stream": True}
    asyncio.run(answer(body, worker, lambda: asyncio.Event().wait(), send, 0.1))
    while ("cancel", 1) not in log:
        time.sleep(0.001)
    worker.stop()
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"]


@pytest.mark.parametrize("later", range(8))
def test_a_client_that_goes_while_it_is_sent_to_is_let_go(later: int) -> None:
    """A connection that breaks releases whoever waits to send as well, and a few turns of the loop lie between the two. In
    some of them Python 3.11's `asyncio.wait_for` loses the cancellation: the answer ran on to its end."""
    pytest.importorskip("starlette", reason="needs starlette: pip install 'shoestring[serve]'")
    log: list[Any] = []
    worker = Worker(lambda: Counting(log))
    broken = asyncio.Event()
    sent = 0

    async def receive() -> Any:
        await broken.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal sent
        sent += 1
        if sent == 5:
            asyncio.get_running_loop().call_later(0.01, broken.set)
            await broken.wait()
            for _ in range(later):
                await asyncio.sleep(0)

    worker.start()
    asyncio.run(answer({"prompt": [97], "max_tokens": 1 << 18, "stream": True}, worker, receive, send, 9.0))
    while ("cancel", 1) not in log:
        time.sleep(0.001)
    worker.stop()
    assert 5 <= sent < 10
