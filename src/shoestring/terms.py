"""A recipe's keys about money: amounts, what a point of accuracy is worth, storage, the result's way out, credits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from shoestring import windows
from shoestring.tables import nearest
from shoestring.windows import Window

KEYS = ("credits", "window", "storage", "egress", "worth")
_MONEY = re.compile(r"([+-]?)\s*(\d{1,15}(?:\.\d{1,30})?|\.\d{1,30})\s*([A-Za-z$€£¥]*)", re.ASCII)


@dataclass(frozen=True)
class Storage:
    """`gb` GB provisioned with `provider` as long as the lease runs; the price is that of storage:<provider>/<kind>."""

    provider: str
    kind: str
    gb: float

    @property
    def sku(self) -> str:
        return f"storage:{self.provider.lower()}/{self.kind}"


@dataclass(frozen=True)
class Egress:
    """`gb` GB of the result that leave `provider`, once a run."""

    provider: str
    gb: float


@dataclass(frozen=True)
class Terms:
    """credits: "10 USD grant" and the like, free credits that pay for part of the cost without lowering it. window: the hours
    in which the run may work. storage, egress: what is paid for beside the machine. worth: US dollars that a point (0.01) of
    accuracy is worth: training that gains less for its money stops."""

    credits: tuple[str, ...] = ()
    window: Window | None = None
    storage: Storage | None = None
    egress: Egress | None = None
    worth: Decimal | None = None

    def deciding(self) -> dict[str, Any]:
        """What belongs to the recipe's hash: it changes the result or what its seconds cost. Absent keys are left out, so
        that recipes without them keep their hash."""
        out: dict[str, Any] = {}
        if self.storage is not None:
            out["storage"] = vars(self.storage)
        if self.egress is not None:
            out["egress"] = vars(self.egress)
        if self.worth is not None:
            out["worth"] = money_text(self.worth)
        return out

    def plain(self) -> dict[str, Any]:
        """The keys as a recipe writes them."""
        out: dict[str, Any] = {}
        if self.credits:
            out["credits"] = list(self.credits)
        if self.window is not None:
            out["window"] = str(self.window)
        if self.storage is not None:
            out["storage"] = dict(vars(self.storage))
        if self.egress is not None:
            out["egress"] = dict(vars(self.egress))
        if self.worth is not None:
            out["worth"] = f"{money_text(self.worth)} USD per point"
        return out


@dataclass
class BadTerm(ValueError):
    """What is wrong with a key; `path` leads to the value."""

    message: str
    path: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        return self.message


def read(top: Mapping[str, Any]) -> Terms:
    """The terms among a recipe's top-level keys. Raises BadTerm."""
    made: dict[str, Any] = {}
    for key in KEYS:
        if key not in top:
            continue
        value = top[key]
        try:
            if key == "credits":
                made[key] = _credits(value)
            elif key == "window":
                made[key] = windows.parse(value)
            elif key == "worth":
                made[key] = parse_money(value, key, " per point")
            elif key == "storage":
                made[key] = Storage(*_table(key, value, ("provider", "kind", "gb")))
            else:
                made[key] = Egress(*_table(key, value, ("provider", "gb")))
        except BadTerm:
            raise
        except ValueError as e:
            raise BadTerm(str(e), (key,)) from None
    return Terms(**made)


def _credits(value: Any) -> tuple[str, ...]:
    """One text or a list of them: an amount, and who gives it (cost/funding.py reads them)."""
    listed = value if isinstance(value, list) else [value]
    for text in listed:
        if not isinstance(text, str):
            raise ValueError(f'credits must be text such as "10 USD", or a list of them, not {text!r}')
        amount, currency, _ = (text.strip() + "  ").split(" ", 2)
        parse_money(f"{amount} {currency}" if currency else text, "credits")
    if not listed:
        raise ValueError('credits is empty; write it as "10 USD" or leave it away')
    return tuple(" ".join(t.split()) for t in listed)


def _table(name: str, value: Any, keys: Iterable[str]) -> list[Any]:
    keys = list(keys)
    shape = ", ".join(f"{k} = {20 if k == 'gb' else '…'}" for k in keys)
    if not isinstance(value, Mapping):
        raise BadTerm(f"{name} must be a table {{ {shape} }}, not {value!r}", (name,))
    for key in value:
        if key not in keys:
            raise BadTerm(f'unknown key "{key}" in {name}{nearest(str(key), keys)}', (name, key))
    for key in keys:
        if key not in value:
            raise BadTerm(f'{name} lacks "{key}"', (name,))
        given = value[key]
        if key == "gb":
            if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < 1e9:
                raise BadTerm(f"{name}.gb must be a number of GB above zero, not {given!r}", (name, key))
        elif not isinstance(given, str) or not given.strip() or not given.isprintable():
            raise BadTerm(f"{name}.{key} must be text, not {given!r}", (name, key))
    return [float(value[k]) if k == "gb" else value[k] for k in keys]


def parse_money(text: Any, what: str = "budget", per: str = "") -> Decimal:
    """Read "0.05 USD" (with `per="/hour"`: "0.10 USD/hour") as Decimal dollars. Raises ValueError saying what is wrong."""
    example = f'"0.05 USD{per}"'
    if isinstance(text, bool) or not isinstance(text, str):
        raise ValueError(f"{what} must be text with a currency such as {example}, not {text!r}")
    body = text.strip()
    if per:
        if not body.lower().endswith(per):
            raise ValueError(f"{what} {text!r} is not an amount such as {example}")
        body = body[: -len(per)].rstrip()
    match = _MONEY.fullmatch(body)
    if not match:
        raise ValueError(f"{what} {text!r} is not an amount such as {example}")
    sign, number, currency = match.groups()
    if currency.upper() != "USD":
        said = f"currency {currency!r} is not known" if currency else "has no currency"
        raise ValueError(f"{what} {text!r}: {said}; write it as {example}")
    amount = Decimal(number)
    if sign == "-" or not amount:
        raise ValueError(f"{what} {text!r} must be above zero")
    return amount


def money_text(amount: Decimal) -> str:
    return format(amount.normalize(), "f")  # one spelling for 0.05 and 0.0500
