"""What machines cannot see: people's hours, bought labels, an invoice. Posted by hand, corrected by reversal only.

A charge is a ledger line of its own kind and no usage: it carries its rate, the price book does not know it, and it
never counts against the run's ceiling, which protects the money for machines and teachers. The bill shows it in a
section of its own, with and without. The payload of a line of kind "charge":

    {"what", "sku", "quantity", "unit", "unit_price", "currency": "USD", "note"}     decimals as text
    {"reverses": seq, "note"}                                                          takes that line back
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from shoestring.cost.decimals import MICRO
from shoestring.records import UserError

HOURS, ITEM = "people/hour", "charge/item"
_NUMBER = r"\d{1,9}(?:\.\d{1,6})?"
_PEOPLE = re.compile(rf"({_NUMBER})\s*h\s*@\s*\$?\s*({_NUMBER})(?:\s*USD(?:\s*/\s*h(?:our)?)?)?", re.IGNORECASE)


@dataclass(frozen=True)
class Charge:
    """One line: `quantity` × `unit_price` US dollars, or the reversal of line `reverses`. `seq` is its line in the ledger,
    `time` unix seconds."""

    seq: int
    time: float
    what: str
    sku: str
    quantity: Decimal
    unit: str
    unit_price: Decimal
    note: str
    reverses: int | None = None

    @property
    def amount(self) -> Decimal:
        return (self.quantity * self.unit_price).quantize(MICRO)


def people(text: str) -> tuple[Decimal, Decimal]:
    """"12h@80" → (12 hours, 80 US dollars an hour). Raises UserError for anything else, zero and negatives too."""
    match = _PEOPLE.fullmatch(text.strip())
    if not match:
        raise UserError(f'--people {text!r}: write hours and US dollars an hour, as in --people "12h@80"')
    hours, rate = (Decimal(g) for g in match.groups())
    if not hours or not rate:
        raise UserError(f"--people {text!r}: hours and rate must be above zero")
    return hours, rate


def payload(what: str, sku: str, quantity: Decimal, unit: str, unit_price: Decimal, note: str) -> dict[str, Any]:
    """The ledger line's payload. Raises ValueError for what is not above zero."""
    if not (quantity > 0 and unit_price > 0):
        raise ValueError(f"{quantity=} and {unit_price=} must be above zero; a correction is a reversal")
    return {
        "what": what, "sku": sku, "quantity": f"{quantity:f}", "unit": unit, "unit_price": f"{unit_price:f}",
        "currency": "USD", "note": note,
    }  # fmt: skip


def read(seq: int, time: float, data: Mapping[str, Any]) -> Charge:
    """A charge from its ledger line. Raises KeyError, TypeError or ValueError for a payload that is none."""
    if "reverses" in data:
        if isinstance(data["reverses"], bool) or not isinstance(data["reverses"], int):
            raise ValueError(f"reverses {data['reverses']!r} is no line")
        return Charge(seq, time, "", "", Decimal(0), "", Decimal(0), str(data.get("note", "")), data["reverses"])
    if data["currency"] != "USD":
        raise ValueError(f"currency {data['currency']!r}")
    quantity, price = (_positive(data[k]) for k in ("quantity", "unit_price"))
    return Charge(seq, time, str(data["what"]), str(data["sku"]), quantity, str(data["unit"]), price, str(data.get("note", "")))


def _positive(text: Any) -> Decimal:
    if not isinstance(text, str) or not re.fullmatch(r"\d+(\.\d+)?", text):
        raise ValueError(f"{text!r} is not a decimal")
    return Decimal(text)


def settled(charges: Iterable[Charge]) -> list[Charge]:
    """Every line in order, a reversal as the negative of what it takes back. A line is taken back once: a second reversal
    of it, or one of nothing, counts nothing and is left out."""
    posted: dict[int, Charge] = {}
    out: list[Charge] = []
    for c in charges:
        if c.reverses is None:
            posted[c.seq] = c
            out.append(c)
        elif was := posted.pop(c.reverses, None):
            what = f"reversal of line {was.seq}: {was.what}"
            out.append(Charge(c.seq, c.time, what, was.sku, -was.quantity, was.unit, was.unit_price, c.note, was.seq))
    return out


def open_lines(charges: Iterable[Charge]) -> dict[int, Charge]:
    """The charges that no reversal took back, by line."""
    left: dict[int, Charge] = {}
    for c in charges:
        if c.reverses is None:
            left[c.seq] = c
        else:
            left.pop(c.reverses, None)
    return left


def total(charges: Iterable[Charge]) -> Decimal:
    return sum((c.amount for c in settled(charges)), Decimal(0))
