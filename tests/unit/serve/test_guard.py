"""Who may ask: this machine's own names, what pages of other origins can send, and connections that never ask."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'shoestring[serve]'")
httpx2 = pytest.importorskip("httpx2", reason="needs httpx2: pip install 'shoestring[endpoint]'")

from shoestring.serve.app import make  # noqa: E402

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "What is 2 + 3?"}], "max_tokens": 8, "seed": 4}
TEXT = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 8, "seed": 4}
WHOLE = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def client(served: Any) -> Any:
    with httpx2.Client(base_url=served.url, trust_env=False, timeout=60) as c:
        yield c


def refused(response: Any, status: int, word: str) -> None:
    assert response.status_code == status and word in response.json()["error"]["message"], response.text


def test_without_a_key_only_this_machine_is_answered(client: Any) -> None:
    assert client.get("/models", headers={"Host": "localhost:1"}).status_code == 200
    for own in ("127.0.0.1", "127.0.0.2:80", "[::1]:80", "LOCALHOST"):
        assert client.get("/models", headers={"Host": own}).status_code == 200
    for other in ("evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example:80", "0.0.0.0", "192.168.0.5", ""):
        for path in ("/models", client.base_url.join("/metrics"), client.base_url.join("/"), client.base_url.join("/health")):
            refused(client.get(path, headers={"Host": other}), 403, "localhost")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
def test_what_a_page_of_another_origin_can_send_unasked_is_refused(client: Any, kind: str) -> None:
    """Such a type needs no preflight; any other does, and none is answered with leave."""
    headers = {"Origin": "https://evil.example"} | ({"Content-Type": kind} if kind else {})
    refused(client.post("/chat/completions", content=json.dumps(CHAT), headers=headers), 415, "Content-Type")
    asked = client.options("/chat/completions", headers=headers | {"Access-Control-Request-Method": "POST"})
    assert asked.status_code == 405 and not [h for h in asked.headers if h.startswith("access-control-")]


@pytest.mark.parametrize("before", [b"", WHOLE], ids=["at first", "after an answer"])
@pytest.mark.parametrize("head", [b"GET /hea", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "], ids=len)
def test_who_does_not_finish_asking_is_let_go(served: Any, running: Any, monkeypatch: Any, before: bytes, head: bytes) -> None:
    """Needs no key, so it must not hold a place; an answer that takes longer than that is not cut."""
    from shoestring.serve import connection
    from shoestring.serve.app import Service
    from shoestring.serve.worker import Worker

    monkeypatch.setattr(connection.protocol, "__defaults__", (0.3,))
    s = served.service
    service = Service(Worker(s.worker._open), s.encoder, s.decoder, "tiny", s.limits, s.vocab)
    with running(service, make(service, "secret")) as r:
        host, port = r.url.removeprefix("http://").removesuffix("/v1").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as c:
            c.sendall(before)
            while before and not c.recv(4096).endswith(b"}"):
                pass
            c.sendall(head)
            assert c.recv(4096) == b"", "closed"
        r.wait_until(lambda: not r.server.server_state.connections)


def test_an_answer_may_take_longer_than_the_asking(served: Any, running: Any, monkeypatch: Any, slow_steps: None) -> None:
    from shoestring.serve import connection
    from shoestring.serve.app import Service
    from shoestring.serve.worker import Worker

    monkeypatch.setattr(connection.protocol, "__defaults__", (0.1,))
    s = served.service
    service = Service(Worker(s.worker._open), s.encoder, s.decoder, "tiny", s.limits, s.vocab)
    with running(service, make(service)) as r:
        answer = httpx2.post(r.url + "/completions", json=TEXT | {"max_tokens": 60, "ignore_eos": True}, trust_env=False)
        assert answer.json()["usage"]["completion_tokens"] == 60
