"""An OpenAI-compatible server on our own engine: models, completions, chat completions.

    serve.main(Path("runs/quickstart/model"), port=8000)

`schema` reads what is asked, `worker` runs the engine in one thread for everybody, `reader` turns tokens into text as they
come and `talk` keeps the thinking apart, `answer` writes the JSON, `app` answers over HTTP behind `guard` (the key) and
`connection` (patience), `metrics` counts, `page` is what a browser sees at `/`, `server` starts and stops it. Importing this
package imports neither torch nor a web library.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoestring.serve.price import Rate


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
    api_key_file: Path | None = None,
    rate: Callable[[], Rate | None] | None = None,
) -> int:
    """Serve a model folder until SIGINT or SIGTERM; running answers get a moment to end. Returns the exit code.

    name: the model id that clients give (default: the folder's name). api_key_env, api_key_file: where the key is; an
    address other than loopback needs one. slots: answers decoded together. cache_tokens: size of the cache of keys and
    values. max_tokens: the longest answer. max_requests: answers under way and waiting, above which 429 is said. rate: asked
    once for what this machine costs; without it answers have no price.
    """
    from shoestring.serve import server

    return server.main(
        model, host, port, name=name, api_key_env=api_key_env, dtype=dtype, slots=slots,
        cache_tokens=cache_tokens, max_tokens=max_tokens, max_requests=max_requests,
        api_key_file=api_key_file, rate=rate,
    )  # fmt: skip
