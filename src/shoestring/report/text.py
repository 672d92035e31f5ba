"""Numbers and words as people read them, shared by the page and the terminal.

Everything here takes what a file happened to hold: a missing, infinite or ill-typed number becomes a dash, never an
exception and never a zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from shoestring.records import LEASE

DASH = "–"
MINUS = "\N{MINUS SIGN}"
SYMBOLS = {"USD": "$", "EUR": "€", "CNY": "¥", "GBP": "£"}
BASIS_WORDS = {"measured": "measured", "simulated": "simulated", "literature": "from literature"}


def num(value: Any) -> float | None:
    """A finite float of sane size, or None. Decimal strings count, booleans do not."""
    if value is None or isinstance(value, bool):
        return None
    try:
        x = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return x if abs(x) < 1e100 else None  # what no honest file holds would overflow in sums; nan fails too


def interval(value: Any) -> tuple[float, float] | None:
    """The two finite ends of a [low, high] pair, in order, or None."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = num(value[0]), num(value[1])
    if low is None or high is None:
        return None
    return min(low, high), max(low, high)


def clean(value: Any, limit: int = 0) -> str:
    """Text without control characters (newline and tab stay); cut at `limit` characters with the rest counted."""
    text = "" if value is None else value if isinstance(value, str) else _words(value)
    rest = len(text) - limit if limit else 0
    if rest > 0:
        text = text[:limit]
    text = "".join(
        c if c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160) else "\N{REPLACEMENT CHARACTER}" for c in text
    )
    text = text.encode("utf-8", "replace").decode()  # lone surrogates cannot be written to a file
    return f"{text} … ({rest:,} characters more)" if rest > 0 else text


def _words(value: Any) -> str:
    try:
        return str(value)
    except (ValueError, RecursionError):  # an integer of too many digits, a nest too deep
        return type(value).__name__


def decimal(value: Any) -> Decimal | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        d = Decimal(str(value))
    except (InvalidOperation, ValueError):
        return None
    return d if d.is_finite() and abs(d.adjusted()) < 30 else None


def money(value: Any, currency: str = "USD", places: int | None = None) -> str:
    """Dollars to three significant digits and cents: $0.0132, $12.40, $1,250. `places` fixes the decimals."""
    d = decimal(value)
    if d is None:
        return "unknown"
    sign, d = (MINUS if d < 0 else ""), abs(d)
    if places is None:
        places = 0 if d == 0 or d >= 1000 else 2 if d >= 1 else min(9, 2 - d.adjusted())
        text = f"{d:,.{places}f}"
        whole, _, cents = text.partition(".")
        text = whole + ("." + cents[:2] + cents[2:].rstrip("0") if cents else "")
    else:
        text = f"{d:,.{places}f}"
    symbol = SYMBOLS.get(currency)
    other = currency if currency.isascii() and currency.isalnum() and len(currency) < 9 else "(unknown currency)"
    return f"{sign}{symbol}{text}" if symbol else f"{sign}{text} {other}"


def between(low: Any, high: Any, currency: str = "USD") -> str:
    """A range of dollars, one amount, or unknown."""
    if decimal(low) is None and decimal(high) is None:
        return "unknown"
    return (
        money(low, currency) if decimal(low) == decimal(high) else f"{money(low, currency)} – {money(high, currency)}"
    )


def money_places(total: Any) -> int:
    """How many decimals a column of amounts needs so that its lines add up to the eye."""
    d = decimal(total)
    if d is None or d == 0:
        return 6
    return 2 if d >= 1000 else 4 if d >= 1 else 6


def percent(share: Any, digits: int = 1) -> str:
    x = num(share)
    return DASH if x is None else f"{100 * x:.{digits}f}%".replace("-", MINUS)


def points(share: Any, digits: int = 1) -> str:
    """A difference of shares in percentage points, signed: +43.4."""
    x = num(share)
    if x is not None and abs(100 * x) < 0.5 * 10**-digits:
        return "0" if digits == 0 else f"{0:.{digits}f}"
    return DASH if x is None else f"{100 * x:+.{digits}f}".replace("-", MINUS)


def figure(value: Any, digits: int = 3) -> str:
    """A number to `digits` significant digits, with thousands separated."""
    x = num(value)
    if x is None:
        return DASH
    if x == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(x))))
    text = f"{x:,.{min(places, 12)}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", MINUS)


def quantity(value: Any) -> str:
    """A metered quantity, whole where it is whole."""
    x = num(value)
    if x is None:
        return DASH
    return f"{x:,.0f}" if x == int(x) or abs(x) >= 10_000 else f"{x:,.2f}"


def count(value: Any) -> str:
    """12.3k, 4.1M: counts of tokens and operations."""
    x = num(value)
    if x is None:
        return DASH
    for size, unit in (
        (1e24, "Y"),
        (1e21, "Z"),
        (1e18, "E"),
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
    ):
        if abs(x) >= size:
            return f"{x / size:.3g}{unit}" if x / size < 1e6 else f"{x:.2e}"
    return f"{x:.0f}" if x == int(x) else f"{x:.3g}"


def resource(sku: Any) -> str:
    """A sku as people name it: "this machine", or the machine without the suffix of lease seconds."""
    text = clean(sku, 120)
    if not text.endswith(f"/{LEASE}"):
        return text
    text = text.removesuffix(f"/{LEASE}")
    return "this machine" if text == "this" or text.startswith("this:") else text.replace("/-", "")


def p_value(value: Any) -> str:
    x = num(value)
    return DASH if x is None else "< 0.001" if x < 0.001 else f"{x:.3f}"


def duration(seconds: Any) -> str:
    x = num(seconds)
    if x is None or x < 0:
        return DASH
    if x < 60:
        return f"{x:.0f} s" if x >= 10 else f"{x:.1f} s"
    if x < 3600:
        return f"{int(x // 60)} min {int(x % 60)} s"
    return f"{int(x // 3600):,} h {int(x % 3600 // 60)} min"


def moment(value: Any) -> str:
    """Unix seconds or an ISO time, as UTC to the minute."""
    x = num(value)
    try:
        if x is not None:
            return datetime.fromtimestamp(x, UTC).strftime("%Y-%m-%d %H:%M UTC")
        when = datetime.fromisoformat(str(value))
        return (when.astimezone(UTC) if when.tzinfo else when).strftime(
            "%Y-%m-%d %H:%M" + (" UTC" if when.tzinfo else "")
        )
    except (ValueError, OverflowError, OSError):
        return clean(value, 40) or DASH


def timestamp(value: Any) -> float | None:
    """Unix seconds from unix seconds or an ISO time."""
    x = num(value)
    if x is not None:
        return x
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def spread(q: Any, show: Any, scale: float = 1.0) -> str:
    """A quantity {"low","mid","high"} as "mid (low–high)"; a bare number as itself."""
    if not isinstance(q, dict):
        x = num(q)
        return DASH if x is None else show(x * scale)
    low, mid, high = (num(q.get(k)) for k in ("low", "mid", "high"))
    if mid is None:
        return DASH
    if low is None or high is None or low == high:
        return show(mid * scale)
    return f"{show(mid * scale)} ({show(low * scale)}–{show(high * scale)})"


def listed(words: Sequence[str]) -> str:
    """a, b and c"""
    words = [w for w in words if w]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
