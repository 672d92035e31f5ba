"""`shoestring serve`: a model behind an OpenAI-compatible server, on this machine only unless told otherwise."""

from __future__ import annotations

import argparse
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.commands._options import hourly, price_arguments
from shoestring.records import UserError

if TYPE_CHECKING:
    from shoestring.cost.prices import PriceBook
    from shoestring.serve.price import Rate


def add(sub: Any) -> argparse.ArgumentParser:
    said = "serve a model to OpenAI-compatible clients"
    c = sub.add_parser("serve", help=said, description=said)
    c.add_argument("model", metavar="MODEL", help="a run's or a model's folder, a name or a hub id")
    c.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    c.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    c.add_argument("--api-key-env", default="", metavar="NAME", help="environment variable with the key that clients send")
    c.add_argument("--api-key-file", type=Path, metavar="FILE", help="file with that key")
    price_arguments(c)
    c.add_argument("--name", default="", help="the model id that clients give (default: the run's or the folder's)")
    c.add_argument("--slots", type=int, default=64, help="answers decoded together (default: 64)")
    c.add_argument("--cache-tokens", type=int, metavar="N", help="tokens of keys and values kept (default: 1,024 a slot)")
    c.add_argument("--max-tokens", type=int, metavar="N", help="the longest answer (default: what the model's window leaves)")
    c.add_argument("--max-requests", type=int, default=256, metavar="N", help="answers under way and waiting (default: 256)")
    return c


def run(args: argparse.Namespace) -> int:
    if not 0 <= args.port < 65536:
        raise UserError(f"serve: --port {args.port} is not between 0 and 65535")
    from shoestring.cost.prices import PriceBook

    book = PriceBook.default(args.prices, hourly(args.rate))
    from shoestring import export, serve

    model = export.run_model(args.model)
    folder = export.base_folder(model)
    name = args.name or named(args.model, model)
    return serve.main(
        folder, args.host, args.port, name=name, api_key_env=args.api_key_env, api_key_file=args.api_key_file,
        slots=args.slots, cache_tokens=args.cache_tokens, max_tokens=args.max_tokens, max_requests=args.max_requests,
        rate=lambda: machine_rate(book),
    )  # fmt: skip


def named(given: str, model: str) -> str:
    """What clients call it: the run, the .gguf without its ending, or what was given; "" is the folder's own name."""
    path = Path(model).expanduser()
    if model != given:
        return Path(given).expanduser().resolve().name
    return path.stem if path.is_file() else "" if path.is_dir() else model


def machine_rate(book: PriceBook) -> Rate | None:
    """What a second of this machine costs. The comparable machine that ships has no GPU, so it prices none."""
    from shoestring.cost.price import THIS
    from shoestring.cost.prices import quantity
    from shoestring.models import device
    from shoestring.recipe import MachineSpec
    from shoestring.records import Usage
    from shoestring.serve.price import Rate

    sku = book.machine_sku(MachineSpec())
    if sku != THIS and device.choose().type != "cpu":
        return None
    price = book.price(sku)
    facts = book.machine_facts(sku)
    like = [facts.provider.removeprefix("this:"), facts.instance, facts.region, facts.market]
    of = " ".join(["like", *filter(None, like)] if facts.instance else [price.ref.source])

    def usd(seconds: float) -> Decimal:
        return quantity(Usage(sku, seconds, "second", "serve", "", 0.0, 0.0, "useful")) * price.amount

    return Rate(usd, f"{of}, {price.ref.date.rpartition('..')[2]}", "measured" if sku == THIS else "estimate")
