"""The endpoint against a scripted server: repeats, waiting, refusals, broken connections, secrets, cancelling."""

from __future__ import annotations

import http.server
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("httpx2", reason="needs httpx2: pip install 'shoestring[endpoint]'")

from shoestring.generate import endpoint as module
from shoestring.generate.endpoint import Answer, Endpoint, Server, TextRequest
from shoestring.generate.engine import Request
from shoestring.records import UserError

SECRET = "sk-do-not-tell-1234"
ASK = TextRequest("hi", 5)
GOOD = {
    "choices": [{"index": 0, "text": "four", "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3},
}

Step = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Plays the server's script, one step a request; the last step goes on for ever."""

    protocol_version = "HTTP/1.1"
    script: list[Step]
    seen: list[dict[str, Any]]
    lock: threading.Lock

    def do_POST(self) -> None:
        data = json.loads(self.rfile.read(int(self.headers["content-length"])))
        cls = type(self)
        with cls.lock:
            step = cls.script[min(len(cls.seen), len(cls.script) - 1)]
            cls.seen.append({"path": self.path, "headers": dict(self.headers), "body": data, "time": time.monotonic()})
        step(self)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def say(self, status: int, payload: Any = None, **headers: str) -> None:
        raw = json.dumps(payload).encode() if not isinstance(payload, bytes) else payload
        self.send_response(status)
        for k, v in {"content-type": "application/json", "content-length": str(len(raw)), **headers}.items():
            self.send_header(k.replace("_", "-"), v)
        self.end_headers()
        self.wfile.write(raw)

    def stream(self, *events: Any, done: bool = True) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for e in events:
            self.wfile.write(f": ping\r\ndata: {json.dumps(e, ensure_ascii=False)}\r\n\r\n".encode())
            self.wfile.flush()
        if done:
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True


class Fake:
    def __init__(self, handler: type[Handler], url: str) -> None:
        self.handler, self.url = handler, url

    def plays(self, *script: Step) -> Fake:
        self.handler.script = list(script)
        return self

    @property
    def seen(self) -> list[dict[str, Any]]:
        return self.handler.seen

    def endpoint(self, posted: list[Any] | None = None, **rest: Any) -> Endpoint:
        return Endpoint(Server(self.url, "m", **rest), None if posted is None else posted.append)


def good(h: Handler) -> None:
    h.say(200, GOOD)


def says(status: int, payload: Any = None, **headers: str) -> Step:
    return lambda h: h.say(status, payload, **headers)


def hang_up(h: Handler) -> None:
    h.connection.close()
    h.close_connection = True


def piece(text: str, **rest: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": None} | rest]}


@pytest.fixture
def fake(monkeypatch: Any) -> Iterator[Fake]:
    monkeypatch.setattr(module, "BACKOFF", 0.01)
    handler = type("Scripted", (Handler,), {"script": [good], "seen": [], "lock": threading.Lock()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield Fake(handler, f"http://127.0.0.1:{server.server_address[1]}/v1")
    server.shutdown()
    server.server_close()


def test_an_answer(fake: Fake) -> None:
    posted: list[Any] = []
    (a,) = fake.endpoint(posted).generate([ASK])
    assert (a.text, a.reason, a.error, list(a.attempts)) == ("four", "stop", "", posted)
    assert (posted[0].prompt_tokens, posted[0].completion_tokens, posted[0].basis, posted[0].error) == (2, 1, "reported", "")
    assert fake.seen[0]["path"] == "/v1/completions" and fake.seen[0]["body"]["prompt"] == "hi"
    assert not any(k.lower() == "authorization" for k in fake.seen[0]["headers"])
    assert fake.endpoint().generate([]) == []


def test_repeats_are_posted_before_the_next(fake: Fake) -> None:
    """500, a dropped connection, then an answer: three attempts, each handed over before the next began."""
    fake.plays(says(500, {"error": {"message": "oops"}}), hang_up, good)
    calls: list[tuple[int, int]] = []
    e = Endpoint(Server(fake.url, "m"), lambda a: calls.append((a.number, len(fake.seen))))
    (a,) = e.generate([ASK])
    assert a.text == "four" and calls == [(0, 1), (1, 2), (2, 3)]
    assert "HTTP 500: oops" in a.attempts[0].error and "connection broke" in a.attempts[1].error and a.attempts[2].error == ""
    assert [x.basis for x in a.attempts] == ["none", "none", "reported"]


def test_retry_after_holds_everybody_back(fake: Fake) -> None:
    fake.plays(says(429, {"error": {"message": "slow"}}, Retry_After="0.4"), good)
    answers = fake.endpoint(concurrency=1).generate([ASK] * 3)
    times = [s["time"] for s in fake.seen]
    assert [a.text for a in answers] == ["four"] * 3 and len(times) == 4
    assert times[1] - times[0] >= 0.39 and [len(a.attempts) for a in answers] == [2, 1, 1]


def test_a_retry_after_beyond_patience_ends_the_request(fake: Fake) -> None:
    fake.plays(says(429, {"error": {"message": "tomorrow"}}, Retry_After="86400"))
    (a,) = fake.endpoint().generate([ASK])
    assert a.reason == "error" and "429" in a.error and len(fake.seen) == 1


def test_repeats_are_bounded(fake: Fake) -> None:
    fake.plays(says(503, {"error": {"message": "busy"}}))
    (a,) = fake.endpoint(retries=2).generate([ASK])
    assert a.reason == "error" and "503: busy" in a.error and len(a.attempts) == len(fake.seen) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_no_repeat_can_mend_fails_at_once(fake: Fake, status: int) -> None:
    fake.plays(says(status, {"error": {"message": "no\nway"}}))
    with pytest.raises(UserError, match=str(status)) as e:
        fake.endpoint(concurrency=1).generate([ASK] * 5)
    assert len(fake.seen) == 1 and "\n" not in str(e.value)


def test_too_long_is_an_error_for_that_request_alone(fake: Fake) -> None:
    def by_length(h: Handler) -> None:
        long = len(h.seen[-1]["body"]["prompt"]) > 10
        h.say(400, {"error": {"message": "maximum context length is 10"}}) if long else h.say(200, GOOD)

    fake.plays(by_length)
    answers = fake.endpoint(concurrency=1).generate([ASK, TextRequest("x" * 50, 5), ASK])
    assert [a.reason for a in answers] == ["stop", "error", "stop"]
    assert "too long" in answers[1].error and len(fake.seen) == 3


def test_no_server_is_one_line(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "BACKOFF", 0.01)
    with pytest.raises(UserError, match="no server answers there"):
        Endpoint(Server("http://127.0.0.1:9/v1", "m", retries=1)).generate([ASK])


def test_max_completion_tokens_where_the_server_wants_it(fake: Fake) -> None:
    error = {"message": "Use 'max_completion_tokens' instead.", "param": "max_tokens", "code": "unsupported_parameter"}
    done = {"choices": [{"message": {"content": "4"}, "finish_reason": "stop"}]}
    fake.plays(says(400, {"error": error}), says(200, done))
    chat = TextRequest(({"role": "user", "content": "q"},), 7)
    answers = fake.endpoint(concurrency=1, retries=0).generate([chat, chat])
    assert [a.text for a in answers] == ["4", "4"]
    assert [s["body"].get("max_completion_tokens") for s in fake.seen] == [None, 7, 7]


@pytest.mark.parametrize("streamed", [False, True])
def test_silence_is_bounded(fake: Fake, streamed: bool) -> None:
    def silent(h: Handler) -> None:
        if streamed:
            h.stream(piece("a"), done=False)
        time.sleep(1.0)

    fake.plays(silent)
    e = fake.endpoint(retries=0, chunk_seconds=0.2, answer_seconds=0.2)
    began = time.monotonic()
    answer = list(e.texts([ASK]))[-1][1] if streamed else e.generate([ASK])[0]
    assert isinstance(answer, Answer) and answer.reason == "error" and "silent for 0.2 s" in answer.error
    assert (answer.text, answer.attempts[0].basis) == (("a", "lower bound") if streamed else ("", "none"))
    assert time.monotonic() - began < 5


def test_a_stream_that_breaks_after_it_gave_something_is_not_repeated(fake: Fake) -> None:
    fake.plays(lambda h: h.stream(piece("a", token_ids=[7]), piece("b", token_ids=[8]), done=False))
    posted: list[Any] = []
    *tokens, last = fake.endpoint(posted).tokens([Request((1, 2, 3), 9)])
    assert [t[1] for t in tokens] == [7, 8] and len(fake.seen) == 1
    answer = last[1]
    assert (
        isinstance(answer, Answer) and answer.reason == "error" and answer.tokens == (7, 8) and "finish reason" in answer.error
    )
    assert (posted[0].prompt_tokens, posted[0].completion_tokens, posted[0].basis) == (3, 2, "lower bound")


def test_a_stream_that_breaks_before_is_repeated(fake: Fake) -> None:
    end = piece("b\u2028c", finish_reason="stop")  # a line separator inside JSON is no end of an event
    fake.plays(lambda h: h.stream(done=False), lambda h: h.stream(piece("a"), end, GOOD | {"choices": []}))
    *pieces, last = fake.endpoint().texts([ASK])
    assert "".join(e.text for _, e in pieces) == last[1].text == "ab\u2028c"
    assert isinstance(last[1], Answer) and len(last[1].attempts) == 2 and last[1].attempts[1].basis == "reported"


def test_a_server_that_does_not_stream_says_so(fake: Fake) -> None:
    with pytest.raises(UserError, match="does not stream"):
        list(fake.endpoint().texts([ASK]))


def test_an_error_inside_a_stream(fake: Fake) -> None:
    fake.plays(lambda h: h.stream(piece("a"), {"error": {"message": "engine died"}}))
    answer = list(fake.endpoint().texts([ASK]))[-1][1]
    assert isinstance(answer, Answer) and "engine died" in answer.error and answer.text == "a"


def test_the_key_is_in_the_header_and_nowhere_else(fake: Fake, monkeypatch: Any, caplog: Any, capfd: Any) -> None:
    monkeypatch.setenv("TEACHER_KEY", SECRET)
    echo = {"error": {"message": f"key {SECRET} is over its limit"}}
    fake.plays(good, says(500, echo), says(400, echo))
    e = fake.endpoint(key_env="TEACHER_KEY", retries=0, concurrency=1)
    with caplog.at_level(logging.DEBUG):
        first = e.generate([ASK])[0]
        second = e.generate([ASK])[0]
        with pytest.raises(UserError) as third:
            e.generate([ASK])
    assert fake.seen[0]["headers"]["Authorization"] == f"Bearer {SECRET}"
    assert first.reason == "stop" and "key *** is over" in second.error
    out = capfd.readouterr()
    everything = [
        repr(e),
        repr(e.server),
        repr(vars(e)),
        repr(first),
        repr(second),
        str(third.value),
        caplog.text,
        out.out,
        out.err,
    ]
    assert not [x for x in everything if SECRET in x]


def test_keys_that_cannot_be_used(fake: Fake, monkeypatch: Any) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(UserError, match="TEACHER_KEY is not set"):
        fake.endpoint(key_env="TEACHER_KEY").generate([ASK])
    for bad in ("sk-a b", "sk-é", "sk-a\nX: y"):
        monkeypatch.setenv("TEACHER_KEY", bad)
        with pytest.raises(UserError, match="no header may carry") as e:
            fake.endpoint(key_env="TEACHER_KEY").generate([ASK])
        assert "sk-" not in str(e.value)
    assert fake.seen == []


@pytest.mark.parametrize(
    "url, words",
    [
        ("ftp://h/v1", "http"), ("h:80/v1", "http"), ("", "http"), ("http://", "http"), ("http://h:port/v1", "cannot be read"),
        ("https://me:pw@h/v1", "no user"), ("https://h/v1?key=pw", "no user"),
    ],
)  # fmt: skip
def test_addresses(url: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as e:
        Server(url, "m")
    assert "pw" not in str(e.value)


@pytest.mark.parametrize("bad", [{"model": ""}, {"concurrency": 0}, {"retries": -1}, {"chunk_seconds": 0}], ids=str)
def test_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="endpoint http://h"):
        Server(**({"url": "http://h/v1", "model": "m"} | bad))


def test_a_redirect_does_not_carry_the_key_away(fake: Fake, monkeypatch: Any) -> None:
    monkeypatch.setenv("TEACHER_KEY", SECRET)
    fake.plays(says(307, {}, Location="http://127.0.0.1:9/elsewhere"))
    with pytest.raises(UserError, match="307"):
        fake.endpoint(key_env="TEACHER_KEY").generate([ASK])
    assert len(fake.seen) == 1


def test_requests_are_in_flight_together_but_no_more_than_stated(fake: Fake) -> None:
    now, most, lock = [0], [0], threading.Lock()

    def slow(h: Handler) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        h.say(200, GOOD)

    fake.plays(slow)
    finished: list[int] = []
    answers = fake.endpoint(concurrency=4).generate([ASK] * 12, lambda i, a: finished.append(i))
    assert most[0] == 4 and sorted(finished) == list(range(12)) and all(a.text == "four" for a in answers)


def test_closing_ends_the_connections(fake: Fake) -> None:
    broken = threading.Event()

    def endless(h: Handler) -> None:
        try:
            h.stream(*(piece("a") for _ in range(3)), done=False)
            for _ in range(2000):
                h.wfile.write(b": ping\n\n")
                h.wfile.flush()
                time.sleep(0.005)
        except OSError:
            broken.set()

    fake.plays(endless)
    posted: list[Any] = []
    events = fake.endpoint(posted).texts([ASK])
    next(events)
    before = threading.active_count()
    events.close()
    assert broken.wait(5) and threading.active_count() <= before
    assert [a.error for a in posted] == ["cancelled"] and posted[0].basis == "lower bound"
    assert not [t for t in threading.enumerate() if t.name == "endpoint"]


def test_an_error_of_the_caller_ends_the_run(fake: Fake) -> None:
    def over_budget(a: Any) -> None:
        raise UserError("the budget is used up")

    with pytest.raises(UserError, match="budget is used up"):
        Endpoint(Server(fake.url, "m", concurrency=1), over_budget).generate([ASK] * 5)
    assert len(fake.seen) == 1


def test_a_missing_library_is_one_line(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(UserError, match=r"pip install 'shoestring\[endpoint\]'"):
        Endpoint(Server("http://h/v1", "m"))
