"""The server over HTTP: shapes, limits, keys, refusals, and clients that go away."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'shoestring[serve]'")
httpx2 = pytest.importorskip("httpx2", reason="needs httpx2: pip install 'shoestring[endpoint]'")

from shoestring import serve  # noqa: E402
from shoestring.generate.endpoint import Endpoint, Server  # noqa: E402
from shoestring.generate.engine import Request  # noqa: E402
from shoestring.records import UserError  # noqa: E402
from shoestring.serve.app import make  # noqa: E402
from shoestring.serve.server import bind, find_key  # noqa: E402

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "What is 2 + 3?"}], "max_tokens": 8, "seed": 4}
TEXT = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 8, "seed": 4}


@pytest.fixture(scope="module")
def client(served: Any) -> Any:
    with httpx2.Client(base_url=served.url, trust_env=False, timeout=60) as c:
        yield c


def counts(usage: Any) -> Any:
    """Usage without what it took, which no two answers share."""
    got = usage if isinstance(usage, dict) else usage.model_dump()
    assert got["machine_seconds"] > 0
    return {k: v for k, v in got.items() if k not in ("machine_seconds", "cost")}


def events(response: Any) -> list[dict[str, Any]]:
    lines = [x for x in response.text.split("\n\n") if x]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(x.removeprefix("data: ")) for x in lines[:-1]]


def refused(response: Any, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and "\n" not in error["message"] and len(response.text) < 1000
    for w in words:
        assert w in json.dumps(error), (w, error)


def test_models(client: Any) -> None:
    listed = client.get("/models").json()
    assert [m["id"] for m in listed["data"]] == ["tiny"] and listed["object"] == "list"
    assert client.get("/models/tiny").json()["max_model_len"] == 1024
    refused(client.get("/models/other"), 404, "model_not_found")
    refused(client.get("/nothing"), 404)
    refused(client.get("/chat/completions"), 405)


def test_n_choices_are_the_seeds_that_follow(client: Any) -> None:
    three = client.post("/completions", json=TEXT | {"n": 3}).json()
    assert [c["index"] for c in three["choices"]] == [0, 1, 2]
    for i, c in enumerate(three["choices"]):
        alone = client.post("/completions", json=TEXT | {"seed": 4 + i}).json()
        assert alone["choices"][0]["text"] == c["text"]
    assert three["usage"]["completion_tokens"] <= 24 and three["usage"]["prompt_tokens"] == 4
    assert three["usage"]["total_tokens"] == three["usage"]["prompt_tokens"] + three["usage"]["completion_tokens"]


def test_many_prompts_in_order(client: Any) -> None:
    prompts = ["Once upon a time", [1, 2, 3]]
    both = client.post("/completions", json=TEXT | {"prompt": prompts, "n": 2, "temperature": 0}).json()
    assert [c["index"] for c in both["choices"]] == [0, 1, 2, 3] and both["usage"]["prompt_tokens"] == 7
    texts = [c["text"] for c in both["choices"]]
    assert texts[0] == texts[1] != texts[2] == texts[3]


@pytest.mark.parametrize("path, body", [("/completions", TEXT), ("/chat/completions", CHAT)])
def test_a_stream_adds_up(client: Any, path: str, body: dict[str, Any]) -> None:
    body = body | {"n": 2, "logprobs": True if "messages" in body else 0}
    whole = client.post(path, json=body).json()
    response = client.post(path, json=body | {"stream": True, "stream_options": {"include_usage": True}})
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events(response)
    assert len({c["id"] for c in chunks}) == 1
    assert chunks[-1]["choices"] == [] and counts(chunks[-1]["usage"]) == counts(whole["usage"])
    assert all(c["usage"] is None for c in chunks[:-1])
    for i, choice in enumerate(whole["choices"]):
        mine = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == i]
        if "messages" in body:
            assert mine[0]["delta"] == {"role": "assistant", "content": ""}
            assert "".join(c["delta"].get("content", "") for c in mine) == choice["message"]["content"]
            tokens = [t["token"] for c in mine if c["logprobs"] for t in c["logprobs"]["content"]]
            assert tokens == [t["token"] for t in choice["logprobs"]["content"]]
        else:
            assert "".join(c["text"] for c in mine) == choice["text"]
            tokens = [t for c in mine if c["logprobs"] for t in c["logprobs"]["tokens"]]
            assert tokens == choice["logprobs"]["tokens"] and len(tokens) <= 8
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model": "gpt"}, ["model_not_found", "tiny"]),
        ({"prompt": None}, ["prompt"]),
        ({"prompt": ""}, ["at least one token"]),
        ({"prompt": [1, -2]}, ["49152"]),
        ({"prompt": [1, True]}, ["49152"]),
        ({"prompt": [99999]}, ["49152"]),
        ({"prompt": {"a": 1}}, ["prompt"]),
        ({"prompt": [7] * 1020}, ["context_length_exceeded", "1024", "1020"]),
        ({"max_tokens": 201}, ["max_tokens", "200"]),
        ({"max_tokens": 0}, ["max_tokens"]),
        ({"max_tokens": 1.5}, ["whole number"]),
        ({"temperature": -1}, ["temperature"]),
        ({"temperature": "hot"}, ["temperature"]),
        ({"top_p": 0}, ["top_p"]),
        ({"n": 65}, ["64"]),
        ({"n": 1000}, ["n must be"]),
        ({"prompt": ["a"] * 22, "n": 3}, ["22 prompts", "21"]),
        ({"seed": "x"}, ["seed"]),
        ({"logprobs": 6}, ["logprobs", "0 to 5"]),
        ({"top_logprobs": 1}, ["top_logprobs"]),
        ({"echo": True}, ["echo"]),
        ({"best_of": 3}, ["best_of"]),
        ({"frequency_penalty": 0.5}, ["frequency_penalty"]),
        ({"stop": [""]}, ["stop"]),
        ({"stop": 5}, ["stop"]),
        ({"stop": ["a" * 1001]}, ["1000 characters"]),
        ({"stop_token_ids": ["a"]}, ["stop_token_ids"]),
        ({"stop_token_ids": [7] * 1001}, ["at most 1000 ids"]),
        ({"stream_options": {"include_usage": True}}, ["stream_options"]),
        ({"colour": "red"}, ["unknown field colour"]),
        ({"many\nlines " * 9999: 1}, ["unknown field many lines many"]),
    ],
    ids=str,
)
def test_bad_completions_are_refused(client: Any, change: dict[str, Any], words: list[str]) -> None:
    body = TEXT | change
    refused(client.post("/completions", json=body), 404 if "model" in change else 400, *words)


@pytest.mark.parametrize(
    "change",
    [
        {"messages": []}, {"messages": "hi"}, {"messages": [{"content": "x"}]}, {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "a"}]}]},
        {"tools": [{"type": "function"}]}, {"response_format": {"type": "json_object"}}, {"top_logprobs": 3}, {"logprobs": 1},
        {"top_logprobs": 21, "logprobs": True}, {"top_logprobs": True, "logprobs": True},
    ],
    ids=str,
)  # fmt: skip
def test_bad_chats_are_refused(client: Any, change: dict[str, Any]) -> None:
    refused(client.post("/chat/completions", json=CHAT | change), 400, next(iter(change)))


def test_harmless_fields_are_taken(client: Any) -> None:
    body = CHAT | {"user": "u", "frequency_penalty": 0, "tools": [], "response_format": {"type": "text"}, "n": 1, "stop": None}
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 3?"}]}]
    a, b = (client.post("/chat/completions", json=x).json() for x in (body, CHAT | {"messages": parts}))
    assert a["choices"][0]["message"] == b["choices"][0]["message"]


def test_a_crowd_of_prompts_is_refused_before_it_is_read(client: Any, served: Any, monkeypatch: Any) -> None:
    read: list[str] = []
    encode = served.service.encoder.inner.encode
    monkeypatch.setattr(served.service.encoder.inner, "encode", lambda text: read.append(text) or encode(text))
    refused(client.post("/completions", json=TEXT | {"prompt": ["a"] * 200_000, "n": 60}), 400, "200000 prompts")
    assert not read


def test_an_answer_can_be_sent_back_as_it_came(client: Any) -> None:
    """The official client's `message.model_dump()`: fields that hold nothing, and the thinking, which is not read again."""
    rest = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    plain = [{"role": "assistant", "content": "5"}, *CHAT["messages"]]
    dumped = [plain[0] | rest | {"reasoning_content": "2 + 3 is 5"}, *plain[1:]]
    a, b = (client.post("/chat/completions", json=CHAT | {"messages": m}).json() for m in (plain, dumped))
    assert a["choices"] == b["choices"] and a["usage"]["prompt_tokens"] == b["usage"]["prompt_tokens"]


@pytest.mark.parametrize("cold", [1e-6, 1e-40, 1e-300])
def test_next_to_no_temperature_is_greedy(client: Any, cold: float) -> None:
    """Logits divided by it are infinite in fp32, and the answer and its log-probabilities would be no numbers."""
    a, b = (client.post("/completions", json=TEXT | {"logprobs": 0, "temperature": t}).json() for t in (0, cold))
    assert a["choices"] == b["choices"]


def test_bodies(client: Any, served: Any) -> None:
    kind = {"Content-Type": "application/json"}
    refused(client.post("/completions", content=b"{", headers=kind), 400, "JSON")
    refused(client.post("/completions", content=b"[" * 100000, headers=kind), 400, "JSON")
    refused(client.post("/completions", content=b"[1]", headers=kind), 400, "object")
    for half in ({"prompt": "half \ud800"}, {"\udfff": 1}, {"user": "\udc00\ud800"}):  # no answer could repeat them
        refused(client.post("/completions", content=json.dumps(TEXT | half), headers=kind), 400, "whole UTF-8")
    smile = json.dumps(TEXT | {"prompt": "\U0001f600"})
    assert "\\ud83d" in smile and client.post("/completions", content=smile, headers=kind).status_code == 200
    refused(client.post("/completions", content=json.dumps(TEXT)), 415, "Content-Type")
    refused(client.post("/completions", content=b" " * ((1 << 20) + 1), headers=kind), 413, "bytes")
    assert served.service.active == 0


def test_a_full_server_says_429(client: Any, served: Any) -> None:
    served.service.active += 64
    try:
        response = client.post("/completions", json=TEXT)
    finally:
        served.service.active -= 64
    refused(response, 429, "rate_limit_exceeded")
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("stream", [False, True])
def test_a_vanished_client_frees_its_request(served: Any, stream: bool, slow_steps: None) -> None:
    service = served.service
    host, port = served.url.removeprefix("http://").removesuffix("/v1").split(":")
    body = json.dumps(TEXT | {"max_tokens": 200, "n": 4, "ignore_eos": True, "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    steps = service.worker._open.__self__.counters
    s = socket.create_connection((host, int(port)))
    s.sendall(head.encode() + body)
    served.wait_until(lambda: service.worker._jobs)
    begun = steps.steps
    s.close()
    served.wait_until(lambda: service.active == 0 and not service.worker._jobs)
    assert steps.steps - begun < 199


def test_keys(served: Any, running: Any, monkeypatch: Any, caplog: Any) -> None:
    from shoestring.serve.app import Service
    from shoestring.serve.worker import Worker

    s = served.service
    secret = "sk-very-secret-42"
    monkeypatch.setenv("SERVE_KEY", secret)
    assert find_key("0.0.0.0", "SERVE_KEY") == secret
    service = Service(Worker(s.worker._open), s.encoder, s.decoder, "tiny", s.limits, s.vocab)
    with caplog.at_level(0), running(service, make(service, secret)) as r, httpx2.Client(base_url=r.url, trust_env=False) as c:
        refused(c.get("/models"), 401, "invalid_api_key")
        for bad in ("Bearer wrong", "Bearer", "Basic " + secret, "Bearer " + secret + "x", "Bearer \xff"):
            refused(c.get("/models", headers={"Authorization": bad.encode("latin-1")}), 401)
        assert c.get("/models", headers={"Authorization": f"Bearer {secret}", "Host": "a.example"}).status_code == 200
        assert c.get(r.url.removesuffix("/v1") + "/health").status_code == 200
        request = Request((1, 2, 3), 4)
        (answer,) = Endpoint(Server(r.url, "tiny", key_env="SERVE_KEY")).generate([request])
        assert len(answer.tokens) == 4
        monkeypatch.setenv("SERVE_KEY", secret + "-wrong")
        with pytest.raises(UserError, match=r"refuses the key in \$SERVE_KEY.*401") as e:
            Endpoint(Server(r.url, "tiny", key_env="SERVE_KEY")).generate([request])
        with pytest.raises(UserError, match="without a key.*401"):
            Endpoint(Server(r.url, "tiny")).generate([request])
    assert secret not in str(e.value) and secret not in caplog.text


def test_addresses(monkeypatch: Any, tmp_path: Path) -> None:
    assert find_key("127.0.0.1", "") == find_key("::1", "") == find_key("localhost", "") == ""
    for host in ("0.0.0.0", "192.168.0.5", "example.org"):
        with pytest.raises(UserError, match="--api-key-env"):
            find_key(host, "")
    monkeypatch.delenv("NO_SUCH", raising=False)
    with pytest.raises(UserError, match="NO_SUCH is not set"):
        find_key("127.0.0.1", "NO_SUCH")
    file = tmp_path / "key"
    with pytest.raises(UserError, match="cannot be read"):
        find_key("0.0.0.0", "", file)
    for text, words in (("\n", "is empty"), ("two words", "no header may carry"), ("ü", "no header may carry")):
        file.write_text(text, "utf-8")
        with pytest.raises(UserError, match=words):
            find_key("127.0.0.1", "", file)
    file.write_text("sk-from-a-file\n")
    assert find_key("0.0.0.0", "", file) == "sk-from-a-file"
    with pytest.raises(UserError, match="not with both"):
        find_key("127.0.0.1", "SOME", file)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        with pytest.raises(UserError, match="--port"):
            bind("127.0.0.1", s.getsockname()[1])
    with pytest.raises(UserError, match="cannot listen"):
        bind("127.0.0.1", 70000)
    with pytest.raises(UserError, match="config.json|tokenizer"):
        serve.main(Path("/nowhere"), port=0)


@contextmanager
def serving(model: Path, world: Any, first: str = "") -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """(a server in a process of its own, what it prints), killed at the end. first: statements that it runs before."""
    code = (
        f"import sys; from pathlib import Path; from shoestring import serve; {first}"
        f"sys.exit(serve.main(Path({str(model)!r}), port=0, name='tiny', dtype='float32'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=world.env | {"PATH": os.environ["PATH"]}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process, process.stdout
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_answers_end(sharp: Path, world: Any, number: signal.Signals) -> None:
    with serving(sharp, world) as (process, stdout):
        line = stdout.readline()
        assert line.startswith("serving tiny at http://127.0.0.1:"), process.communicate(timeout=20)
        assert "a page to ask it: http://127.0.0.1:" in stdout.readline()
        url = line.split(" at ")[1].strip()
        events = Endpoint(Server(url, "tiny")).tokens([Request((1, 2, 3), 60, 1.0, seed=3)])
        next(events)
        process.send_signal(number)
        answer: Any = None
        for event in events:
            answer = event[1]
        assert answer.reason == "length" and len(answer.tokens) == 60
        out, err = process.communicate(timeout=20)
        assert process.returncode == 0 and out.strip() == "stopped", (process.returncode, out, err)
        assert "Traceback" not in err


@pytest.mark.slow
def test_an_answer_that_outlasts_the_grace_is_told_so(sharp: Path, world: Any) -> None:
    slow = (
        "import time; from shoestring.serve import server; from shoestring.generate.engine import Session;"
        "server.GRACE = 0.5; quick = Session.step; Session.step = lambda self: (time.sleep(0.02), quick(self))[1];"
    )
    with serving(sharp, world, slow) as (process, stdout):
        url = stdout.readline().split(" at ")[1].strip()
        body = TEXT | {"max_tokens": 900, "ignore_eos": True, "stream": True}
        with httpx2.Client(trust_env=False, timeout=60) as c, c.stream("POST", url + "/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            last = [x for x in lines if x][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["message"] == "the server is stopping"
        out, err = process.communicate(timeout=20)
        assert process.returncode == 0 and out.endswith("stopped\n") and "Traceback" not in err, (out, err)


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_a_missing_library_is_one_line(monkeypatch: Any, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"needs {missing}: pip install 'shoestring\[serve\]'"):
        serve.main(Path("/nowhere"), port=0)


@pytest.mark.parametrize("bad", [{"slots": 0}, {"max_requests": 0}, {"max_tokens": 0}], ids=str)
def test_settings(bad: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at least 1"):
        serve.main(Path("/nowhere"), port=0, **bad)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("tokens", [-1, 0, 63])
def test_a_cache_of_less_than_a_block_is_one_line(tokens: int) -> None:
    from shoestring.generate.cache import BLOCK
    from shoestring.serve.server import LEAST_CACHE

    assert LEAST_CACHE == BLOCK
    with pytest.raises(UserError, match=f"cache-tokens {tokens} is less than one block"):
        serve.main(Path("/nowhere"), port=0, cache_tokens=tokens)


def test_a_cache_that_does_not_fit_is_one_line(monkeypatch: Any, capsys: Any) -> None:
    from shoestring.serve import server

    def full() -> None:
        raise RuntimeError("can't allocate memory: you tried to allocate 1 bytes\nand more lines")

    worker = SimpleNamespace(start=full, end=lambda: None)
    monkeypatch.setattr(server, "build", lambda *a: (SimpleNamespace(name="m", worker=worker), None))
    with pytest.raises(UserError, match="lower --cache-tokens or --slots") as e:
        serve.main(Path("/nowhere"), port=0)
    assert "\n" not in str(e.value) and "serving" not in capsys.readouterr().out
