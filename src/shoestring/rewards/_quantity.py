"""Reading one number as people and models write it: fractions, mixed numbers, powers of ten, thousands, LaTeX, money,
percent, degrees, units, intervals. Exact (`Fraction`). Standard library only.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from shoestring import answers
from shoestring.rewards._units import Unit, find

_LONGEST = 200
_DIGITS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+", strict=True))
_RAISED = re.compile(f"[{''.join(_DIGITS)}]+")
_VULGAR = re.compile("[¼½¾⅐-⅞]")
_MINUS = dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d"), "-")
_SPACES = re.compile(r"\\[,;:! ]|~|\\q?quad(?![A-Za-z])|\\left|\\right|\\displaystyle|[\u00a0\u2009\u202f]")
_WRAPS = (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$"))
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|mathit|textnormal|operatorname)\s*\{([^{}]*)\}")
_SIGN = r"([+-]?)\s*"
_PLAIN = r"(\d+(?:\.\d+)?|\.\d+)"
_FRACTION = re.compile(
    _SIGN + r"(?:(\d+)\s*)?\\[dtc]?frac\s*(?:\{\s*([+-]?)\s*(\d+)\s*\}|(?:\s*()(\d)))\s*(?:\{\s*(\d+)\s*\}|\s*(\d))"
)
_MIXED = re.compile(_SIGN + r"(\d+)(?:\s+|\s*-\s*|\s+and\s+)(\d+)\s*/\s*(\d+)")
_RATIO = re.compile(_SIGN + _PLAIN + r"\s*/\s*" + _SIGN + _PLAIN)
_POWER = re.compile(
    _SIGN + r"(?:" + _PLAIN + r"\s*(?:\\times|\\cdot|×|·|x|\*)\s*)?10\s*\^\s*(?:\{\s*([+-]?\d{1,3})\s*\}|([+-]?\d{1,3}))"
)
_GROUPED = re.compile(r"(?<![\d.])\d{1,3}(?:[ ]\d{3})+(?!\d| ?/)")
_INFINITE = re.compile(r"([+-]?)\s*(?:\\infty|\\infin|∞)")
_INTERVAL = re.compile(r"\s*([\[(])\s*([^,;]+?)\s*[,;]\s*([^,;]+?)\s*([\])])\s*")


@dataclass(frozen=True)
class Quantity:
    """A number and what stood behind it. `percent`: a percent sign; `unit`: None where there was none."""

    value: Fraction
    percent: bool = False
    unit: Unit | None = None


def _bare(text: str) -> str:
    # raised digits and vulgar fractions before NFKC, which would make 10² into 102 and 3½ into 31/2
    text = _RAISED.sub(lambda m: "^" + "".join(_DIGITS[c] for c in m[0]), text)
    text = _VULGAR.sub(lambda m: " " + unicodedata.normalize("NFKC", m[0]).replace("\u2044", "/"), text)
    text = unicodedata.normalize("NFKC", text).translate(_MINUS)
    text = _SPACES.sub(" ", text).strip().strip("*").strip().rstrip(".").strip()
    changed = True
    while changed:
        changed = False
        for left, right in _WRAPS:
            if text.startswith(left) and text.endswith(right) and len(text) > len(left) + len(right):
                text, changed = text[len(left) : -len(right)].strip(), True
    text = _TEXT.sub(r" \1 ", text).replace("{,}", ",").replace("\\%", "%").replace("\\$", "$")
    text = re.sub(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?:s)?", "°", text)
    return _GROUPED.sub(lambda m: m[0].replace(" ", ""), " ".join(text.split()))


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value


def _exact(text: str) -> Fraction | None:
    """A number alone, without unit."""
    plain = answers.normalise(text)
    if answers.is_number(plain):
        return Fraction(Decimal(plain))
    if m := _FRACTION.fullmatch(text):
        top, bottom = int(m[4] or m[6]), int(m[7] or m[8])
        if not bottom or (m[2] and m[3]):
            return None
        return _signed(m[1], Fraction(int(m[2] or 0)) + _signed(m[3] or "", Fraction(top, bottom)))
    if m := _MIXED.fullmatch(text):
        return _signed(m[1], int(m[2]) + Fraction(int(m[3]), int(m[4]))) if int(m[4]) else None
    if m := _RATIO.fullmatch(text):
        bottom = Fraction(m[4])
        return _signed(m[1], Fraction(m[2])) / _signed(m[3], bottom) if bottom else None
    if m := _POWER.fullmatch(text):
        exponent = int(m[3] or m[4])
        return _signed(m[1], Fraction(m[2] or 1)) * Fraction(10) ** exponent if abs(exponent) <= 100 else None
    return None


def quantity(text: str) -> Quantity | None:
    """The one number that a text says, with its percent sign or unit; None if it says anything else, or more.

    A "$", "€", "£" or "¥" before the number is dropped. Unknown units are not read.
    """
    if len(text) > _LONGEST:
        return None
    body = _bare(text)
    if m := re.fullmatch(r"([+-]?)\s*[$€£¥]\s*(.+)", body):
        body = m[1] + m[2]
    percent = body.endswith("%") or bool(re.search(r"\bper ?cent$", body))
    if percent:
        body = re.sub(r"\s*(%|per ?cent)$", "", body)
    value = _exact(body)
    if value is not None:
        return Quantity(value, percent)
    # the longest beginning that is a number; what follows must be one unit
    for m in reversed(list(re.finditer(r"(?<=[\d})])\s*(?=[^\W\d_]|°|\\[A-Za-z]|[$€£¥¢'\"])", body))[:20]):
        unit = find(body[m.end() :])
        value = _exact(body[: m.start()]) if unit is not None else None
        if value is not None:
            return Quantity(value, percent, unit)
    return None


def number(text: str) -> Fraction | None:
    """The value of a text that is one number without a unit; the percent sign is dropped; None for anything else."""
    found = quantity(text)
    return found.value if found is not None and (found.unit is None or found.unit.name == "degree") else None


@dataclass(frozen=True)
class Interval:
    """low to high, each end in or out."""

    low: Fraction
    high: Fraction
    low_in: bool
    high_in: bool

    def holds(self, value: Fraction) -> bool:
        return (self.low < value or (self.low_in and value == self.low)) and (
            value < self.high or (self.high_in and value == self.high)
        )


def interval(text: str) -> Interval | None:
    """ "[1, 2)" and the like; None if it is not one, or is empty."""
    if len(text) > 2 * _LONGEST or not (m := _INTERVAL.fullmatch(_bare(text))):
        return None
    low, high = number(m[2]), number(m[3])
    if low is None or high is None or low > high:
        return None
    return Interval(low, high, m[1] == "[", m[4] == "]")


def _member(text: str) -> Fraction | str | None:
    """A number, or "oo" and "-oo" for the infinities."""
    if m := _INFINITE.fullmatch(text.strip()):
        return "-oo" if m[1] == "-" else "oo"
    return number(text)


def numbers(text: str) -> tuple[str, list[Fraction | str]] | None:
    """The brackets and the members of a tuple, interval or set of numbers: "(1, 2]" is ("(]", [1, 2]), "\\{1, 2\\}" and
    "1, 2" are ("", [1, 2]), "(1, \\infty)" is ("()", [1, "oo"]). None for anything else, for one number, for nested ones."""
    if len(text) > 10 * _LONGEST:
        return None
    body = _bare(text)
    if re.fullmatch(r"\\\{.*\\\}", body):
        brackets, body = "", body[2:-2]
    elif body[:1] in ("(", "[") and body[-1:] in (")", "]"):
        brackets, body = body[0] + body[-1], body[1:-1]
    else:
        brackets = ""
        if re.search(r",(?! )", body):
            return None  # 1,234 may be one number
    members = [_member(part) for part in re.split(r",(?!\d{3}(?!\d))|, ", body)]
    if len(members) < 2 or any(m is None for m in members) or "%" in body or "°" in body:
        return None
    return brackets, [m for m in members if m is not None]
