"""What starts the server: the size of what it takes, and the connections that it hands over."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'shoestring[serve]'")

from shoestring.serve.schema import read
from shoestring.serve.server import bind, build

MESSAGES = [{"role": "user", "content": "What is 2 + 3?"}]


@pytest.mark.parametrize("size, window", [({"slots": 4, "cache_tokens": 100}, 128), ({"slots": 8, "cache_tokens": None}, 1024)])
def test_no_chat_is_longer_than_the_cache(sharp: Path, size: dict[str, Any], window: int) -> None:
    """Else a chat that leaves max_tokens to the server would ask for the model's window, and be refused for it."""
    service, _ = build(sharp, "", "tiny", "float32", max_tokens=None, max_requests=8, **size)
    asked = read({"messages": MESSAGES}, True, service.encoder, "tiny", service.limits, service.vocab)
    assert service.limits.window == window == len(asked.requests[0].prompt) + asked.requests[0].max_new
    with service.worker._open() as session:
        session.add(asked.requests[0])
        assert not session._refused


def test_the_system_watches_for_clients_that_are_gone() -> None:
    """A machine that is switched off sends no farewell; connections inherit what the listener was told."""
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as taken:
            assert taken.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if hasattr(socket, "TCP_KEEPIDLE"):
                assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
