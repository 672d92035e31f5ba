"""An OpenAI-compatible chat server that does as it is told: right answers to sums, and the ways in which servers fail."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def solved(prompt: str) -> str:
    a, b = map(int, re.findall(r"-?\d+", prompt)[:2])
    return f"{a} and {b} make {a + b}.\nAnswer: {a + b}"


class Handler(http.server.BaseHTTPRequestHandler):
    """`script[n]` answers the n-th request, the last one all that follow."""

    protocol_version = "HTTP/1.1"
    script: list[Callable[[Handler], None]]
    seen: list[dict[str, Any]]
    lock: threading.Lock

    def do_POST(self) -> None:
        self.data = json.loads(self.rfile.read(int(self.headers["content-length"])))
        cls = type(self)
        with cls.lock:
            n = len(cls.seen)
            cls.seen.append({"n": n, "body": self.data, "headers": dict(self.headers), "time": time.monotonic()})
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            cls.script[min(n, len(cls.script) - 1)](self)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    @property
    def prompt(self) -> str:
        return self.data["messages"][-1]["content"]

    def refuse(self, status: int, **headers: str) -> None:
        raw = json.dumps({"error": {"message": f"status {status}"}}).encode()
        self.send_response(status)
        for k, v in {"content-type": "application/json", "content-length": str(len(raw)), **headers}.items():
            self.send_header(k.replace("_", "-"), v)
        self.end_headers()
        self.wfile.write(raw)

    def open(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True

    def put(self, payload: Any) -> None:
        line = payload if isinstance(payload, str) else json.dumps(payload)
        self.wfile.write(f"data: {line}\n\n".encode())
        self.wfile.flush()

    def piece(self, text: str = "", finish: str | None = None, **more: str) -> None:
        self.put({"choices": [{"index": 0, "delta": {"content": text, **more}, "finish_reason": finish}]})


def usage(read: Any = 40, wrote: Any = 12, **details: Any) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": read, "completion_tokens": wrote, **details}}


def says(text: str | None = None, end: Any = None, finish: str = "stop", slow: float = 0.0, **more: str) -> Callable[[Handler], None]:
    """A whole streamed answer; end: the last chunk, which carries the usage (False: none)."""

    def step(h: Handler) -> None:
        h.open()
        for part in re.findall(r"\S+\s*", solved(h.prompt) if text is None else text):
            h.piece(part, **more)
            more.clear()
            time.sleep(slow)
        h.piece(finish=finish)
        if end is not False:
            h.put(end or usage())
        h.put("[DONE]")

    return step


def refuses(status: int, **headers: str) -> Callable[[Handler], None]:
    return lambda h: h.refuse(status, **headers)


def truncated(h: Handler) -> None:
    """The stream ends in the middle, properly closed."""
    h.open()
    h.piece("the sum ")
    h.piece("of both ")


def malformed(h: Handler) -> None:
    h.open()
    h.piece("the sum ")
    h.put('{"choices": [{"delta"')


def dies(h: Handler) -> None:
    """The process behind the socket is killed."""
    h.open()
    h.piece("the ")
    h.connection.close()


def hangs(h: Handler) -> None:
    h.open()
    h.piece("the sum ")
    time.sleep(3.0)


@contextlib.contextmanager
def serving(*script: Callable[[Handler], None]) -> Iterator[Any]:
    """(url, seen, handler) of a running server."""
    handler = type("Scripted", (Handler,), {"script": list(script) or [says()], "seen": [], "lock": threading.Lock()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    handler.url = f"http://127.0.0.1:{server.server_address[1]}/v1"  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield handler
    finally:
        server.shutdown()
        server.server_close()


def prompts(seen: Sequence[dict[str, Any]]) -> list[str]:
    return [s["body"]["messages"][-1]["content"] for s in seen]
