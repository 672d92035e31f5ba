"""Start, announce, stop: a model folder behind an address."""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shoestring.records import UserError

GRACE = 10  # seconds that running answers have after SIGINT or SIGTERM


def main(
    model: Path,
    host: str,
    port: int,
    *,
    name: str,
    api_key_env: str,
    dtype: str,
    slots: int,
    cache_tokens: int | None,
    max_tokens: int | None,
    max_requests: int,
) -> int:
    """See `shoestring.serve.main`."""
    uvicorn = web_library()
    key = find_key(host, api_key_env)
    if slots < 1 or max_requests < 1 or (max_tokens is not None and max_tokens < 1):
        raise UserError("slots, max-tokens and max-requests must be at least 1")
    listener = bind(host, port)
    with listener:
        service, app = build(model, key, name, dtype, slots, cache_tokens, max_tokens, max_requests)
        server = make_server(uvicorn, app, max_requests)
        shown = f"[{host}]" if ":" in host else host
        print(f"serving {service.name} at http://{shown}:{listener.getsockname()[1]}/v1", flush=True)
        service.worker.start()
        try:
            server.run(sockets=[listener])
        finally:
            service.worker.stop()
    print("stopped", flush=True)
    return 0


def web_library() -> Any:
    try:
        importlib.import_module("starlette")
        return importlib.import_module("uvicorn")
    except ImportError as e:
        raise UserError(f"serving needs {e.name}: pip install 'shoestring[serve]'") from None


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def find_key(host: str, api_key_env: str) -> str:
    """The key clients must give, "" for none. An address that others can reach needs one."""
    if not api_key_env:
        if not is_loopback(host):
            raise UserError(f"{host} can be reached by others: name a variable that holds a key with --api-key-env")
        return ""
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        raise UserError(f"the environment variable {api_key_env} is not set; put the key that clients must give there")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"the key in {api_key_env} holds characters that no header may carry")
    return key


def bind(host: str, port: int) -> socket.socket:
    """Listen first: a taken port is said before a model is read. Port 0 takes a free one."""
    if not 0 <= port < 1 << 16:  # the resolver would take it modulo 65536
        raise UserError(f"cannot listen at {host}:{port}: a port is at most 65535; choose another with --port")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as e:
        raise UserError(f"cannot listen at {host}:{port}: {e}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as e:
        listener.close()
        raise UserError(f"cannot listen at {host}:{port}: {e.strerror}; choose another with --port") from None
    return listener


def build(
    model: Path, key: str, name: str, dtype: str, slots: int, cache_tokens: int | None, max_tokens: int | None,
    max_requests: int,
) -> tuple[Any, Any]:  # fmt: skip
    """(service, application) for a model folder. The worker is not started."""
    import torch

    from shoestring.allocator import keep_freed_memory
    from shoestring.generate.engine import Engine
    from shoestring.models import device, folder
    from shoestring.models.tokenizer import Tokenizer
    from shoestring.serve.app import Service, make
    from shoestring.serve.schema import Limits
    from shoestring.serve.worker import Worker

    types = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    if dtype not in types:
        raise UserError(f"dtype {dtype!r} is not one of {', '.join(types)}")
    keep_freed_memory()
    encoder, decoder = Tokenizer(model), Tokenizer(model)
    weights = folder.load(model, types[dtype], device.choose())
    engine = Engine(weights, slots, cache_tokens)
    window = weights.config.max_positions
    limits = Limits(window, min(max_tokens or window, window), max_requests)
    worker = Worker(engine.open)
    service = Service(worker, encoder, decoder, name or model.name, limits, weights.config.vocab)
    return service, make(service, key)


def make_server(uvicorn: Any, app: Any, max_requests: int) -> Any:
    """A uvicorn server that ends quietly on a signal; a second one ends it at once."""

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """uvicorn's own raises the signal again at the end, which would kill the process before it has tidied up."""
            before = {}
            with contextlib.suppress(ValueError):  # not in the main thread: whoever runs this stops it by should_exit
                for number in (signal.SIGINT, signal.SIGTERM):
                    before[number] = signal.signal(number, self.handle_exit)
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        def handle_exit(self, sig: int, frame: Any) -> None:
            if self.should_exit:
                self.force_exit = True
            else:
                print(f"stopping: running answers have {GRACE} seconds", file=sys.stderr, flush=True)
            self.should_exit = True

    config = uvicorn.Config(
        app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=GRACE, timeout_keep_alive=30, limit_concurrency=max_requests + 256,
    )  # fmt: skip
    return Server(config)
