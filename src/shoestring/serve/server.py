"""Start, announce, stop: a model folder behind an address."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.records import UserError

if TYPE_CHECKING:
    from shoestring.serve.price import Rate

GRACE = 10  # seconds that running answers have after SIGINT or SIGTERM
LEAST_CACHE = 64  # tokens: `generate.cache.BLOCK`, which importing torch would be needed for
BACKLOG = 512  # connections that the system holds until they are taken
UNSENT = 1 << 17  # bytes that the system holds for a client that does not read: beyond them it is found to be slow
UNREAD = 120_000  # milliseconds after which the system drops a connection whose client takes nothing
SILENT = 30  # seconds without a byte after which the system asks whether a client is still there, and asks again


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
    api_key_file: Path | None,
    rate: Callable[[], Rate | None] | None,
) -> int:
    """See `shoestring.serve.main`."""
    uvicorn = web_library()
    key = find_key(host, api_key_env, api_key_file)
    if slots < 1 or max_requests < 1 or (max_tokens is not None and max_tokens < 1):
        raise UserError("slots, max-tokens and max-requests must be at least 1")
    if cache_tokens is not None and cache_tokens < LEAST_CACHE:
        raise UserError(f"cache-tokens {cache_tokens} is less than one block of the cache, {LEAST_CACHE} tokens")
    listener = bind(host, port)
    with listener:
        service, app = build(
            model, key, name, dtype, slots, cache_tokens, max_tokens, max_requests, rate() if rate else None
        )  # fmt: skip
        server = make_server(uvicorn, app, max_requests, service.worker.end)
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}"
        try:
            service.worker.start()
        except (MemoryError, RuntimeError) as e:
            why = str(e).splitlines()[0][:200] if str(e) else type(e).__name__
            raise UserError(f"the cache does not fit into memory; lower --cache-tokens or --slots ({why})") from None
        try:
            listener.listen(BACKLOG)  # before the address is said: whoever reads the line may connect
            print(f"serving {service.name} at {url}/v1", flush=True)
            print(f"a page to ask it: {url}/   Ctrl-C stops", flush=True)
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


def find_key(host: str, api_key_env: str, api_key_file: Path | None = None) -> str:
    """The key clients must give, "" for none. An address that others can reach needs one. The key itself is no argument
    anywhere, because whoever lists processes would see it."""
    from shoestring.serve import guard

    if api_key_env and api_key_file is not None:
        raise UserError("give the key with --api-key-env or with --api-key-file, not with both")
    if api_key_file is not None:
        where = str(api_key_file)
        try:
            key = api_key_file.read_text("utf-8").strip()
        except (OSError, ValueError) as e:
            raise UserError(f"{where}: the key cannot be read ({e}); put it there in one line") from None
        if not key:
            raise UserError(f"{where} is empty; put the key that clients must give there")
    elif api_key_env:
        where = api_key_env
        key = os.environ.get(api_key_env, "").strip()
        if not key:
            raise UserError(f"the environment variable {api_key_env} is not set; put the key that clients must give there")
    elif guard.is_loopback(host):
        return ""
    else:
        said = "name a variable or a file that holds a key with --api-key-env or --api-key-file"
        raise UserError(f"{host} can be reached by others: {said}")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"the key in {where} holds characters that no header may carry")
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
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNSENT)  # connections inherit it
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD)
        # a machine that was switched off says no farewell, and to who waits for a whole answer nothing is sent meanwhile
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
            if hasattr(socket, option):
                listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), SILENT)
        listener.bind(address)
    except OSError as e:
        listener.close()
        raise UserError(f"cannot listen at {host}:{port}: {e.strerror}; choose another with --port") from None
    return listener


def build(
    model: Path, key: str, name: str, dtype: str, slots: int, cache_tokens: int | None, max_tokens: int | None,
    max_requests: int, rate: Rate | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """(service, application) for a model folder. The worker is not started."""
    import torch

    from shoestring.allocator import keep_freed_memory
    from shoestring.generate.cache import BLOCK
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
    # what the cache cannot hold would be refused later on, and so every chat that leaves max_tokens to the server
    window = min(weights.config.max_positions, engine.cache_blocks * BLOCK)
    limits = Limits(window, min(max_tokens or window, window), max_requests)
    worker = Worker(engine.open)
    service = Service(worker, encoder, decoder, name or model.name, limits, weights.config.vocab, rate)
    return service, make(service, key)


def make_server(uvicorn: Any, app: Any, max_requests: int, cut: Callable[[], None] | None = None) -> Any:
    """A uvicorn server that ends quietly on a signal; a second one ends it at once. cut: ends the answers that still run
    when their time is over, so that their clients are told, before uvicorn would tear them off."""
    from shoestring.serve.connection import protocol

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
                if cut is not None:
                    timer = threading.Timer(GRACE, cut)
                    timer.daemon = True
                    timer.start()
                print(f"stopping: running answers have {GRACE} seconds", file=sys.stderr, flush=True)
            self.should_exit = True

    config = uvicorn.Config(
        app, http=protocol(), ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=GRACE + 2, timeout_keep_alive=30, limit_concurrency=max_requests + 256,
    )  # fmt: skip
    return Server(config)
