"""The tiny model (SmolLM2's tokenizer) behind our server, in a thread; and an application over a scripted session."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'shoestring[serve]'")
pytest.importorskip("starlette", reason="needs starlette: pip install 'shoestring[serve]'")
pytest.importorskip("httpx2", reason="needs httpx2: pip install 'shoestring[endpoint]'")


@dataclass
class Running:
    url: str  # ends in /v1
    service: Any
    server: Any

    def wait_until(self, condition: Any, seconds: float = 20.0) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, "did not happen in time"
            time.sleep(0.005)


@contextlib.contextmanager
def run(service: Any, app: Any, max_requests: int = 64) -> Iterator[Running]:
    import uvicorn

    from shoestring.serve.server import bind, make_server

    listener = bind("127.0.0.1", 0)
    listener.listen()
    server = make_server(uvicorn, app, max_requests)
    service.worker.start()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", service, server)
    finally:
        server.should_exit = True
        thread.join(20)
        service.worker.stop()
        listener.close()
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def running() -> Any:
    return run


@pytest.fixture(scope="session")
def sharp(world: Any, tmp_path_factory: Any) -> Path:
    """The tiny model with logits that differ: over a flat distribution of 49,152 tokens the last bit of a logit, which
    depends on the batch, would choose the token now and then."""
    import torch

    from shoestring.models import folder

    model = folder.load(world.base, torch.float32)
    with torch.no_grad():
        model.norm.mul_(15)
    return folder.save(model, tmp_path_factory.mktemp("sharp") / "model", world.base)


@pytest.fixture(scope="session")
def served(sharp: Path) -> Iterator[Running]:
    """The tiny model in fp32 under the name "tiny", without a key."""
    from shoestring.serve.server import build

    service, app = build(sharp, "", "tiny", "float32", 8, None, 200, 64)
    with run(service, app) as r:
        yield r


@pytest.fixture(scope="session")
def direct(sharp: Path) -> Any:
    """The same model in an engine of its own, with its tokenizer: (engine, tokenizer)."""
    import torch

    from shoestring.generate.engine import Engine
    from shoestring.models import folder
    from shoestring.models.tokenizer import Tokenizer

    return Engine(folder.load(sharp, torch.float32), 8), Tokenizer(sharp)


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps as long as those of a model of some size: the tiny one ends 200 tokens before anybody notices anything."""
    from shoestring.generate.engine import Session

    quick = Session.step
    monkeypatch.setattr(Session, "step", lambda self: (time.sleep(0.01), quick(self))[1])
