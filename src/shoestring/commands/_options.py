"""What several commands ask for in the same words: prices, an amount of money, a file to write. No command itself."""

from __future__ import annotations

import argparse
from decimal import Decimal
from pathlib import Path

from shoestring.records import UserError


def price_arguments(c: argparse.ArgumentParser) -> None:
    c.add_argument("--prices", type=Path, metavar="FILE", help="your own price book (TOML), before the one that ships")
    c.add_argument("--rate", metavar="'0.10 USD/hour'", help="what an hour of this machine costs you")


def amount(text: str, option: str, per: str = "") -> Decimal:
    """The dollars that an option states, such as "0.10 USD/hour" with per="/hour". Raises UserError, which names the option."""
    from shoestring.recipe import parse_money

    try:
        return parse_money(text, option, per)
    except ValueError as e:
        raise UserError(str(e)) from None


def hourly(rate: str | None) -> Decimal | None:
    """What `--rate` states; None where it is not given."""
    return None if rate is None else amount(rate, "--rate", "/hour")


def write(path: Path, text: str, over: bool) -> None:
    """A file for the user, in UTF-8. Raises UserError, also where there is one already that is not to be overwritten."""
    try:
        with open(path, "w" if over else "x", encoding="utf-8") as f:
            f.write(text)
    except FileExistsError:
        raise UserError(f"{path}: this file exists; choose another name") from None
    except FileNotFoundError:
        raise UserError(f"{path}: cannot be written: no such folder: {path.parent}") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be written: {(e.strerror or str(e)).lower()}") from None
