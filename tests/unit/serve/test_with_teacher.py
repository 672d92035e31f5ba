"""Distilling from our own server: the same answers as the engine gives directly, and its usage to the token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("httpx2", reason="needs httpx2: pip install 'shoestring[endpoint]'")

from shoestring.generate.endpoint import Server
from shoestring.generate.teacher import Cache, LiveTeacher, LocalTeacher, Question, Spent, ask


def questions() -> list[Question]:
    return [
        Question(f"{a}", ({"role": "user", "content": f"What is {a} + 1?"},), k, 10 + a, 1.0, seed=50 * a + k)
        for a in range(4) for k in range(2)
    ]  # fmt: skip


def test_the_same_through_the_server_as_from_the_engine(served: Any, direct: Any, tmp_path: Path) -> None:
    engine, tokenizer = direct
    spent: list[Spent] = []

    def count(text: str) -> int:
        return len(tokenizer.encode(text))

    live = LiveTeacher(Server(served.url, "tiny", concurrency=4), count, spent.append)
    cache = Cache(tmp_path / "replies.jsonl")
    far = dict(ask(live, questions(), cache))
    near = dict(ask(LocalTeacher(engine, tokenizer, "tiny"), questions()))
    assert [far[i].text.strip() for i in range(8)] == [near[i].text.strip() for i in range(8)]
    assert [far[i].reason for i in range(8)] == [near[i].reason for i in range(8)]
    assert [(dict(far[i].usage)["in"] + dict(far[i].usage)["cached"], far[i].usage["out"]) for i in range(8)] == [
        (near[i].usage["in"], near[i].usage["out"]) for i in range(8)
    ]
    assert {s.basis for s in spent} == {"reported"} and len(spent) == 8
    assert dict(ask(LiveTeacher(Server("http://127.0.0.1:9/v1", "tiny"), count), questions(), Cache(cache.path))) == far


def test_more_requests_than_the_server_takes(running: Any, sharp: Path, monkeypatch: Any) -> None:
    """A server that takes two at once says 429 with Retry-After: everything is answered in the end, and paid once."""
    from shoestring.generate import endpoint
    from shoestring.serve.server import build

    monkeypatch.setattr(endpoint, "BACKOFF", 0.01)
    service, app = build(sharp, "", "tiny", "float32", 8, None, 200, 2)
    spent: list[Spent] = []
    asked = [Question(str(a), ({"role": "user", "content": f"What is {a} + 1?"},), 0, 40, 1.0, a) for a in range(5)]
    with running(service, app) as server:
        teacher = LiveTeacher(Server(server.url, "tiny", concurrency=5, retries=6), len, spent.append)
        replies = dict(ask(teacher, asked))
    assert len(replies) == 5 and {r.reason for r in replies.values()} <= {"stop", "length"} and len(spent) == 5
