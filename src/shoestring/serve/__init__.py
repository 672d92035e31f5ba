"""An OpenAI-compatible server on our own engine: models, completions, chat completions.

    serve.main(Path("runs/quickstart/model"), port=8000)

`schema` reads what is asked, `worker` runs the engine in one thread for everybody, `reader` turns tokens into text as they
come, `app` answers over HTTP, `server` starts and stops it. Importing this package imports neither torch nor a web library.
"""

from __future__ import annotations

from pathlib import Path


def main(
    model: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    name: str = "",
    api_key_env: str = "",
    dtype: str = "bfloat16",
    slots: int = 64,
    cache_tokens: int | None = None,
    max_tokens: int | None = None,
    max_requests: int = 256,
) -> int:
    """Serve a model folder until SIGINT or SIGTERM; running answers get a moment to end. Returns the exit code.

    name: the model id that clients give (default: the folder's name). api_key_env: the environment variable with the key;
    needed for an address other than loopback. slots: answers decoded together. cache_tokens: size of the cache of keys and
    values. max_tokens: the longest answer. max_requests: answers under way and waiting, above which 429 is said.
    """
    from shoestring.serve import server

    return server.main(
        model, host, port, name=name, api_key_env=api_key_env, dtype=dtype, slots=slots,
        cache_tokens=cache_tokens, max_tokens=max_tokens, max_requests=max_requests,
    )  # fmt: skip
