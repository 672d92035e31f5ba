"""Runs as `bill`, `compare` and `charge` read them: folder, recipe, ledger, prices. No command itself."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.commands._options import hourly
from shoestring.records import LEASE, UserError

if TYPE_CHECKING:
    from shoestring.cost.ledger import State
    from shoestring.cost.prices import Price
    from shoestring.recipe import Recipe
    from shoestring.report.load import RunFolder

NO_LEDGER = "no ledger.jsonl; give the folder of a run, such as runs/quickstart"
STDOUT = "-"


@dataclass(frozen=True)
class Loaded:
    """A run with its bill under the book that was asked for. `name` is unique among the runs of a command."""

    name: str
    path: Path
    folder: RunFolder
    recipe: Recipe
    state: State
    bill: dict[str, Any]


def out_argument(c: argparse.ArgumentParser, kind: str, help: str) -> None:
    c.add_argument(f"--{kind}", nargs="?", const=STDOUT, metavar="FILE", help=f"{help}, to FILE or to standard output")


def load(paths: Sequence[Path], prices: Path | None, rate: str | None) -> list[Loaded]:
    """Every run, priced. Raises UserError in one line: a folder that is no run, one given twice, a broken ledger."""
    usd_per_hour = hourly(rate)
    if prices is not None and not prices.is_file():
        raise UserError(f"{prices}: no price book there; give a TOML file, see docs/prices.md")
    seen: dict[Path, Path] = {}
    for path in paths:
        where = path.resolve()
        if where in seen:
            raise UserError(f"{path}: this run is given twice; a bill counts it once")
        seen[where] = path
    made = [_load(path, prices, usd_per_hour) for path in paths]
    names = [m.name for m in made]
    return [m if names.count(m.name) == 1 else _named(m, str(m.path)) for m in made]


def _named(m: Loaded, name: str) -> Loaded:
    return Loaded(name, m.path, m.folder, m.recipe, m.state, m.bill)


def _load(path: Path, prices: Path | None, hourly: Decimal | None) -> Loaded:
    from shoestring import recipe, stages
    from shoestring.cost import bill
    from shoestring.cost.ledger import Ledger
    from shoestring.cost.prices import THIS, PriceBook
    from shoestring.report import load as folders

    check(path)
    state = Ledger.read(path / "ledger.jsonl")
    made = recipe.load(path / "recipe.toml", stages.configs())
    folder = folders.load(path)
    book = PriceBook.default(user=prices)
    own = book.price(THIS) if prices is not None and THIS in book else None
    started = folder.run.get("started")
    day = time.strftime("%Y-%m-%d", time.gmtime(started)) if isinstance(started, int | float) else None
    book.machine_sku(made.machine, made.rate, today=day)
    mine = {u.sku for u in state.usages if u.sku.endswith(LEASE) and u.sku.split("/")[0].split(":")[0] == "this"}
    if hourly is not None:
        if not mine:
            raise UserError(f'{path}: --rate prices machine = "this" only, and this run rented one; use --prices')
        own = _rate(hourly)
    for sku in mine if own else ():  # whatever this machine's seconds were priced by when they were used
        book.add(sku, own)  # pyright: ignore[reportArgumentType]
    data = bill.to_dict(bill.price(state.usages, book, made.budget))
    return Loaded(folder.name, path, folder, made, state, data)


def check(path: Path) -> None:
    if not (path / "ledger.jsonl").is_file():
        raise UserError(f"{path}: {NO_LEDGER}")


def _rate(hourly: Decimal) -> Price:
    from shoestring.cost.prices import SECOND, Price, per_second
    from shoestring.records import PriceRef

    today = time.strftime("%Y-%m-%d", time.gmtime())
    return Price(per_second(hourly), SECOND, PriceRef("user's rate", today, f"{hourly} USD an hour, from --rate"))


def priced_with(prices: Path | None, rate: str | None) -> str:
    named = str(prices) if prices else os.environ.get("SHOESTRING_PRICES", "")
    words = [f"the book {named}, then the shipped one"] if named else []
    words += [f"--rate {rate}"] if rate is not None else []
    return " and ".join(words) or "the shipped book and the recipe's rate"


def write(where: str, text: str, bom: bool = False) -> None:
    """To a file, or to standard output for "-". `bom`: what makes a spreadsheet read the file as UTF-8."""
    from shoestring.report.page import replace

    if where == STDOUT:
        sys.stdout.write(text)
        return
    path = Path(where)
    if path.is_dir():
        raise UserError(f"{path} is a folder; runs come before the option, as in `shoestring bill RUN --csv FILE`")
    if not path.parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} is not there; make it first")
    replace(path, ("\ufeff" if bom else "") + text)
    print(f"wrote {path}")
