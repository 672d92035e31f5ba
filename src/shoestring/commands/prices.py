"""`shoestring prices`: the price book, the user's own prices in it, and newer catalogues made into a book."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from shoestring.commands._options import hourly
from shoestring.records import UserError

KINDS = ("machines", "teachers", "storage", "egress", "conflicts")


def add(sub: Any) -> argparse.ArgumentParser:
    about = "the price book: machines by GPU-hour, teachers, storage, egress; each price with source and date"
    c = sub.add_parser("prices", help="the price book", description=about)
    c.add_argument("--gpu", default="", metavar="NAME", help="machines with this GPU, such as H100")
    c.add_argument("--market", default="", choices=["on-demand", "spot"], help="machines of this market")
    c.add_argument("--provider", default="", metavar="NAME", help="prices of this provider")
    c.add_argument("--region", default="", metavar="REGION", help="machines there; us-east-1 or us-east-1/az4")
    c.add_argument("--machine", default="", metavar="TEXT", help="a plain line for every sku that contains this text")
    c.add_argument("--teachers", action="store_true", help="models behind an API, dollars a million tokens")
    c.add_argument("--storage", action="store_true", help="disks by the GB-month, traffic by the GB")
    c.add_argument("--conflicts", action="store_true", help="the same thing at two prices")
    c.add_argument("--prices", type=Path, metavar="FILE", help="your own book (else $SHOESTRING_PRICES); it goes first")
    c.add_argument("--rate", metavar="'0.10 USD/hour'", help="what an hour of this machine costs you")
    c.add_argument("--json", action="store_true", help="as JSON (docs/json/prices.md)")
    new = c.add_argument_group("a newer catalogue, made into a book of your own")
    new.add_argument("--import", type=Path, metavar="FILE", dest="take", help="read this catalogue, with --out")
    new.add_argument("--format", default="", metavar="NAME", help="skypilot-csv, litellm, genai-prices or instances")
    new.add_argument("--out", type=Path, metavar="FILE", help="the book to write: .toml, or .csv for machines")
    new.add_argument("--date", default="", metavar="YYYY-MM-DD", help="the day that its prices are of (else the file's)")
    new.add_argument("--source", default="", metavar="TEXT", help="where it is from (else the file's name)")
    return c


def run(args: argparse.Namespace) -> int:
    if args.take:
        return _import(args)
    for name in ("format", "out", "date", "source"):
        if getattr(args, name):
            raise UserError(f"--{name} belongs to --import FILE")
    from shoestring.cost.prices import PriceBook

    book = PriceBook.default(args.prices, hourly(args.rate or None))
    if args.machine and not args.json:
        return _plain(book, args)
    from shoestring.report import pricelist

    wanted = [k for k, on in (("teachers", args.teachers), ("storage", args.storage), ("conflicts", args.conflicts)) if on]
    if "storage" in wanted:
        wanted.insert(wanted.index("storage") + 1, "egress")
    if not wanted or args.gpu or args.market or args.region:
        wanted.insert(0, "machines")
    data = _data(book, args, wanted)
    if args.json:
        import json

        print(json.dumps(data, indent=1, ensure_ascii=False))
        return 0
    pricelist.show(data)
    return 0


def _plain(book: Any, args: argparse.Namespace) -> int:
    from shoestring.cost.price import per_hour

    if args.rate:
        from shoestring.recipe import MachineSpec

        book.machine_sku(MachineSpec())
    skus = _matching(book, args)
    for sku in skus:
        for price in book.clashes.get(sku) or (book.price(sku),):
            if price.unit == "second":
                said = f"{per_hour(price):.4f} USD/hour"
            elif price.unit == "token":
                said = f"{price.amount * 1000000:.4f} USD/1M tokens"
            else:
                said = f"{price.amount:.4f} USD/{price.unit}"
            print(f"{sku}  {said}  {price.ref.source} ({price.ref.date})")
    return 0


def _matching(book: Any, args: argparse.Namespace) -> list[str]:
    """Skus that contain the text, or whose GPU does, and that the other options leave."""
    text = args.machine.lower()
    chosen = {o.sku for o in book.offers(args.gpu, args.market, args.provider, args.region)}
    narrowed = args.gpu or args.market or args.provider or args.region
    found = []
    for sku in sorted(book):
        machine = book.clashes.get(sku, (None,))[0] or book.price(sku)
        gpu = machine.machine.gpu.lower() if machine.machine else ""
        if (text in sku.lower() or text in gpu) and (not narrowed or sku in chosen):
            found.append(sku)
    if not found:
        raise UserError(f"no price for {args.machine!r}; `shoestring prices` lists all machines, --teachers the teachers")
    return found


def _data(book: Any, args: argparse.Namespace, wanted: list[str]) -> dict[str, Any]:
    """What is shown, as `--json` prints it."""
    from shoestring.cost.listing import conflict_rows, machine_rows, this_row, unit_rows
    from shoestring.recipe import MachineSpec

    made: dict[str, Any] = {"currency": "USD", "this": this_row(book, book.machine_sku(MachineSpec()))}
    if "machines" in wanted:
        rows = machine_rows(book, args.gpu, args.market, args.provider, args.region)
        if args.machine:
            some = set(_matching(book, args))
            rows = [r for r in rows if r["sku"] in some]
        if not rows:
            raise UserError(_nothing(book, args))
        made["machines"] = rows
    for kind, head in (("teachers", "teacher:"), ("storage", "storage:"), ("egress", "egress:")):
        if kind in wanted:
            made[kind] = unit_rows(book, head, args.provider)
    if "conflicts" in wanted:
        made["conflicts"] = conflict_rows(book)
    return made


def _nothing(book: Any, args: argparse.Namespace) -> str:
    """Which of the options leaves no machine, with the nearest word that would."""
    from shoestring.tables import nearest

    facts = [o.facts for o in book.offers()]
    for name, known in (
        ("gpu", {f.gpu for f in facts if f.gpu}),
        ("provider", {f.provider for f in facts}),
        ("region", {f.region for f in facts}),
    ):
        value = getattr(args, name)
        if value and not book.offers(**{name: value}):
            return f'no machine with --{name} "{value}"{nearest(value, sorted(known))} (known: {", ".join(sorted(known))})'
    said = " ".join(f"--{n} {getattr(args, n)}" for n in ("gpu", "market", "provider", "region", "machine") if getattr(args, n))
    return f"no machine has a known price with {said}; leave an option out"


def _import(args: argparse.Namespace) -> int:
    from datetime import date

    from shoestring.cost import catalogues, writing
    from shoestring.cost.book import is_date, read
    from shoestring.cost.price import is_gpu
    from shoestring.cost.rows import MachineRow

    if not args.out:
        raise UserError("--import needs --out FILE.toml (or .csv for machines): the book to write")
    if args.date and not is_date(args.date):
        raise UserError(f'--date must be a day or an interval such as "2026-11-01", not {args.date!r}')
    try:
        day = args.date or date.fromtimestamp(args.take.stat().st_mtime).isoformat()
    except OSError as e:
        raise UserError(f"{args.take}: cannot be read: {e.strerror}") from None
    taken = catalogues.take(args.take, catalogues.Ask(day, args.source or args.take.name, args.provider), args.format)
    rows = [
        r
        for r in taken.rows
        if (not args.gpu or isinstance(r, MachineRow) and is_gpu(args.gpu, r.gpu))
        and args.region.lower() in ("", r.region.lower() if isinstance(r, MachineRow) else "")
        and args.provider.lower() in ("", r.provider.lower())
    ]
    if not rows:
        raise UserError(f"{args.take}: {len(taken.rows)} rows were read, and the options leave none")
    writing.write(rows, args.out)
    count = len(read(args.out))  # what was written is a book that reads
    for line in taken.said:
        print(line)
    print(f"wrote {args.out}: {len(rows)} rows, {count} prices of {day}" + ("" if args.date else " (the file's date)"))
    print(f"use it: shoestring prices --prices {args.out}, or SHOESTRING_PRICES={args.out}")
    return 0
