"""`shoestring bill`: the itemised bill of a run."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from shoestring.records import UserError


def add(sub: Any) -> argparse.ArgumentParser:
    c = sub.add_parser("bill", help="the itemised bill of a run")
    c.add_argument("run", type=Path, help="a run's folder")
    c.add_argument("--json", action="store_true")
    return c


def run(args: argparse.Namespace) -> int:
    from shoestring import recipe, stages
    from shoestring.commands.recipes import console
    from shoestring.cost import bill
    from shoestring.cost.ledger import Ledger
    from shoestring.cost.prices import PriceBook
    from shoestring.report import terminal

    if not (args.run / "ledger.jsonl").exists():
        raise UserError(f"{args.run}: no ledger.jsonl; give the folder of a run, such as runs/quickstart")
    made = recipe.load(args.run / "recipe.toml", stages.configs())
    run = json.loads((args.run / "run.json").read_text()) if (args.run / "run.json").exists() else None
    book = PriceBook.default()
    book.machine_sku(made.machine, made.rate, today=time.strftime("%Y-%m-%d", time.gmtime(run["started"])) if run else None)
    data = bill.to_dict(bill.price(Ledger.read(args.run / "ledger.jsonl").usages, book, made.budget))
    if args.json:
        print(json.dumps(data, indent=1))
    else:
        terminal.print_bill(data, console(), run)
    return 0
