"""Assumptions behind a money question: a number with both ends and where it comes from. What nobody gave stays unknown.

A file of assumptions is TOML whose keys are declared (`Key`). Amounts are exact (`Decimal`); an amount of people's time may be
written as hours and a rate. Which end of which assumption changes an answer is `swings`, in the same way for every question.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Generic, Literal, Protocol, TypeVar

from shoestring.cost.decimals import brief, usd
from shoestring.tables import located, nearest, parse, positions

Basis = Literal["measured", "simulated", "literature", "given"]
BASES = ("measured", "simulated", "literature", "given")
Kind = Literal["usd", "number", "percent", "text"]

_NUMBER = r"\d{1,15}(?:\.\d{1,18})?"
_USD = re.compile(rf"({_NUMBER})\s*USD(/[A-Za-z]+)?", re.ASCII)
_PEOPLE = re.compile(rf"({_NUMBER})\s*h\s*@\s*({_NUMBER})(?:\s*USD)?", re.ASCII)
_PLAIN = re.compile(rf"-?{_NUMBER}", re.ASCII)


@dataclass(frozen=True)
class Key:
    """One thing that a file of assumptions may state. `name` is "table.key" or "key".

    unit: what one of it is, in words; per: what an amount of dollars is for ("/hour"); absent: what it means that nobody
    gave it; example: a value as it would stand in the file; positive: zero makes no sense; signed: it may be below zero;
    whole: a count, such as months; fact: what is known, and not varied unless both ends are stated.
    """

    name: str
    what: str
    kind: Kind = "usd"
    unit: str = "USD"
    per: str = ""
    absent: str = ""
    example: str = '"0 USD"'
    positive: bool = False
    signed: bool = False
    whole: bool = False
    fact: bool = False


@dataclass(frozen=True)
class Value:
    """What is assumed, with both ends; `low` = `high` where only one number is known."""

    low: Decimal
    mid: Decimal
    high: Decimal
    basis: Basis = "given"
    note: str = ""

    def __post_init__(self) -> None:
        if not self.low <= self.mid <= self.high:
            raise ValueError(f"low {self.low}, mid {self.mid} and high {self.high} are out of order")

    @property
    def ranged(self) -> bool:
        return self.low < self.high


def exactly(value: Decimal | int | str, basis: Basis = "given", note: str = "") -> Value:
    made = Decimal(value)
    return Value(made, made, made, basis, note)


def read(text: str, origin: str, keys: Sequence[Key]) -> tuple[dict[str, Value], dict[str, str]]:
    """(numbers by key, texts by key) of a TOML file. Raises UserError with file, line and the nearest right word."""
    tables = parse(text, origin)
    lines = positions(text)
    known = {k.name: k for k in keys}
    heads = {k.rpartition(".")[0] for k in known}
    numbers: dict[str, Value] = {}
    texts: dict[str, str] = {}
    flat: list[tuple[str, tuple[str, ...], Any]] = []
    for name, value in tables.items():
        if name in heads and name and isinstance(value, dict):
            flat += [(f"{name}.{inner}", (name, inner), v) for inner, v in value.items()]
        else:
            flat.append((name, (name,), value))
    for name, path, value in flat:
        where = f"{origin}:{lines.get(path, lines.get(path[:1], 1))}"
        key = known.get(name)
        if key is None:
            raise located(where, f'unknown key "{name}"{nearest(name, known)}')
        try:
            if key.kind == "text":
                if not isinstance(value, str) or not value.strip():
                    raise ValueError(f"must be text, not {value!r}")
                texts[name] = value.strip()
            else:
                numbers[name] = _value(key, value)
        except ValueError as e:
            raise located(where, f"{name} {e}") from None
    return numbers, texts


def _value(key: Key, raw: Any) -> Value:
    if not isinstance(raw, dict):
        amount, note = amount_of(key, raw)
        return exactly(amount, note=note)
    extra = set(raw) - {"low", "mid", "high", "source"}
    if extra or not {"low", "high"} <= set(raw):
        raise ValueError("as a table has low and high, and may have mid and source")
    low, high = amount_of(key, raw["low"])[0], amount_of(key, raw["high"])[0]
    mid = amount_of(key, raw["mid"])[0] if "mid" in raw else (low + high) / 2
    if key.whole:
        mid = mid.to_integral_value()
    return Value(low, mid, high, "given", str(raw.get("source", "")))


def amount_of(key: Key, raw: Any) -> tuple[Decimal, str]:
    """(the amount, how it was made up) of one written value. ValueError says what is wrong and how to write it."""
    made, note = _amount(key, raw)
    if made < 0 and not key.signed or key.positive and made <= 0:
        raise ValueError(f"must be {'above zero' if key.positive else 'zero or more'}, not {raw!r}")
    if key.kind == "percent" and made > 100 and not key.signed:
        raise ValueError(f"is a percentage of at most 100, not {raw!r}")
    if key.kind == "percent" and made <= -100:
        raise ValueError(f"must be above -100 percent, not {raw!r}")
    if key.whole and made != made.to_integral_value():
        raise ValueError(f"must be a whole number, not {raw!r}")
    return made, note


def _amount(key: Key, raw: Any) -> tuple[Decimal, str]:
    if key.kind != "usd":
        if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not _PLAIN.fullmatch(said := f"{Decimal(str(raw)):f}"):
            raise ValueError(f"must be a number such as {key.example}, not {raw!r}")
        return Decimal(said), ""
    if isinstance(raw, str):
        body = raw.strip()
        if (m := _USD.fullmatch(body)) and (m[2] or "").lower() in ("", key.per.lower()):
            return Decimal(m[1]), ""
        if (m := _PEOPLE.fullmatch(body)) and not key.per:
            return Decimal(m[1]) * Decimal(m[2]), f"{m[1]} hours at {m[2]} USD"
    people = "" if key.per else ' or of time as "12h@80"'
    raise ValueError(f'must be an amount such as "120 USD{key.per}"{people}, not {raw!r}')


def template(keys: Sequence[Key], head: str) -> str:
    """A file with every key commented out and explained: nothing is filled in until the user does."""
    out = [f"# {line}".rstrip() for line in head.strip().splitlines()] + [""]
    table = ""
    for key in keys:
        place, _, name = key.name.rpartition(".")
        if place != table:
            out += ["", f"[{place}]"]
            table = place
        absent = f" Not given: {key.absent}." if key.absent else ""
        out.append(f"# {name} = {key.example}".ljust(42) + f" # {key.what}.{absent}")
    return "\n".join(out) + "\n"


class Answer(Protocol):
    """What a question gives: a month, or None for never, and the dollars saved at the horizon."""

    @property
    def month(self) -> int | None: ...
    @property
    def saving(self) -> Decimal: ...


A = TypeVar("A", bound=Answer)


@dataclass(frozen=True)
class Swing(Generic[A]):
    """The answer with one assumption at either end and all others in the middle.

    stated: the ends are the assumption's own interval; else it is halved and doubled. flips: one end answers "never" and the
    other does not. flips_at: where between the ends, to within a thousandth of their distance.
    """

    key: str
    low: Decimal
    high: Decimal
    stated: bool
    at_low: A
    at_high: A
    flips_at: Decimal | None

    @property
    def flips(self) -> bool:
        return (self.at_low.month is None) != (self.at_high.month is None)

    @property
    def width(self) -> Decimal:
        """By how many dollars the saving moves: what the bars are ordered by."""
        return abs(self.at_high.saving - self.at_low.saving)


def middle(values: Mapping[str, Value]) -> dict[str, Decimal]:
    return {k: v.mid for k, v in values.items()}


def ends(key: Key, value: Value) -> tuple[Decimal, Decimal]:
    """The interval that a sensitivity looks at: the value's own, else half and double (percentages up to 100)."""
    if value.ranged or key.fact:
        return value.low, value.high
    low, high = sorted((value.mid / 2, value.mid * 2))
    if key.kind == "percent":
        low, high = max(low, Decimal(-99)), min(high, Decimal(100))
    if key.whole:
        low, high = max(Decimal(1), low.to_integral_value()), high.to_integral_value()
    return low, high


def swings(values: Mapping[str, Value], keys: Sequence[Key], solve: Callable[[Mapping[str, Decimal]], A]) -> list[Swing[A]]:
    """Every assumption moved alone, the widest first. One that stands at zero cannot be halved and is left out."""
    base, known = middle(values), {k.name: k for k in keys}
    out: list[Swing[A]] = []
    for name, value in values.items():
        low, high = ends(known[name], value)
        if low == high:
            continue
        one, other = solve({**base, name: low}), solve({**base, name: high})
        at = None
        if (one.month is None) != (other.month is None):
            at = _flip(low, high, one.month is None, lambda x, name=name: solve({**base, name: x}).month is None)
        out.append(Swing(name, low, high, value.ranged, one, other, at))
    return sorted(out, key=lambda s: (-s.width, s.key))


def _flip(low: Decimal, high: Decimal, never_at_low: bool, never: Callable[[Decimal], bool]) -> Decimal:
    """Halving the interval: where "never" begins or ends."""
    for _ in range(10):
        half = (low + high) / 2
        if never(half) == never_at_low:
            low = half
        else:
            high = half
    return (low + high) / 2


def corners(values: Mapping[str, Value], solve: Callable[[Mapping[str, Decimal]], A]) -> tuple[A, A]:
    """(best, worst): every assumption that states an interval at the end that saves most, and least, taken one by one."""
    base = middle(values)
    best, worst = dict(base), dict(base)
    for name, value in values.items():
        if value.ranged:
            low, high = solve({**base, name: value.low}).saving, solve({**base, name: value.high}).saving
            best[name], worst[name] = (value.low, value.high) if low >= high else (value.high, value.low)
    return solve(best), solve(worst)


# as JSON: decimal strings


def assumption_rows(values: Mapping[str, Value], keys: Mapping[str, Key]) -> list[dict[str, Any]]:
    """One row a value, as decimal strings, in the order of the keys."""
    return [
        {
            "key": k, "what": key.what, "unit": key.unit, "low": brief(values[k].low), "mid": brief(values[k].mid),
            "high": brief(values[k].high), "basis": values[k].basis, "note": values[k].note,
        }
        for k, key in keys.items() if k in values
    ]  # fmt: skip


def not_given_rows(keys: Iterable[Key]) -> list[dict[str, str]]:
    return [{"key": k.name, "what": k.what, "meaning": k.absent or "not in any total"} for k in keys]


def swing_rows(found: Sequence[Swing[Any]]) -> list[dict[str, Any]]:
    return [
        {
            "assumption": s.key, "low": brief(s.low), "high": brief(s.high),
            "range": "stated" if s.stated else "halved and doubled", "month_at_low": s.at_low.month,
            "month_at_high": s.at_high.month, "saving_at_low": usd(s.at_low.saving), "saving_at_high": usd(s.at_high.saving),
            "flips": s.flips, "flips_at": brief(s.flips_at),
        }
        for s in found
    ]  # fmt: skip
