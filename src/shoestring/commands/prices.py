"""`shoestring prices`: the price book."""

from __future__ import annotations

import argparse
from typing import Any

from shoestring.records import UserError


def add(sub: Any) -> argparse.ArgumentParser:
    c = sub.add_parser("prices", help="the price book")
    c.add_argument("--machine", default="", metavar="TEXT", help="only skus that contain this text")
    return c


def run(args: argparse.Namespace) -> int:
    from shoestring.cost.prices import PriceBook

    book = PriceBook.default()
    found = [s for s in sorted(book) if args.machine.lower() in s.lower()]
    if not found:
        raise UserError(f"no price for {args.machine!r}; `shoestring prices` lists all skus")
    for sku in found:
        price = book.price(sku)
        hourly = (
            f"{price.amount * 3600:.4f} USD/hour"
            if price.unit == "second"
            else f"{price.amount * 1000000:.4f} USD/1M {price.unit}s"
        )
        print(f"{sku}  {hourly}  {price.ref.source} ({price.ref.date})")
    return 0
