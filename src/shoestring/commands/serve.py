"""`shoestring serve`: a model behind an OpenAI-compatible server, on this machine only unless told otherwise."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from shoestring.records import UserError


def add(sub: Any) -> argparse.ArgumentParser:
    said = "serve a model to OpenAI-compatible clients"
    c = sub.add_parser("serve", help=said, description=said)
    c.add_argument("model", metavar="MODEL", help="a model's folder, name or hub id, such as runs/quickstart/model")
    c.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    c.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    c.add_argument("--api-key-env", default="", metavar="NAME", help="environment variable with the key that clients send")
    c.add_argument("--name", default="", help="the model id that clients give (default: the folder's name)")
    c.add_argument("--slots", type=int, default=64, help="answers decoded together (default: 64)")
    c.add_argument("--cache-tokens", type=int, metavar="N", help="tokens of keys and values kept (default: by the memory)")
    c.add_argument("--max-tokens", type=int, metavar="N", help="the longest answer (default: what the model's window leaves)")
    c.add_argument("--max-requests", type=int, default=256, metavar="N", help="answers under way and waiting (default: 256)")
    return c


def run(args: argparse.Namespace) -> int:
    if not 0 <= args.port < 65536:
        raise UserError(f"serve: --port {args.port} is not between 0 and 65535")
    from shoestring import export, serve

    folder = export.base_folder(args.model)
    name = args.name or ("" if Path(args.model).exists() else args.model)
    return serve.main(
        folder, args.host, args.port, name=name, api_key_env=args.api_key_env, slots=args.slots,
        cache_tokens=args.cache_tokens, max_tokens=args.max_tokens, max_requests=args.max_requests,
    )  # fmt: skip
