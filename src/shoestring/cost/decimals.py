"""Exact amounts as text: what a bill, a plan's variance and a break-even write down."""

from __future__ import annotations

from decimal import Decimal, localcontext

MICRO = Decimal("0.000001")  # amounts are shown to a millionth of a dollar


def usd(amount: Decimal) -> str:
    """Dollars to a millionth."""
    return f"{amount.quantize(MICRO):f}"


def plain(value: Decimal) -> str:
    """A decimal without exponent and without idle zeros."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def digits(value: Decimal, figures: int) -> str:
    """`plain`, to that many significant digits."""
    with localcontext(prec=figures):
        return plain(+value)


def brief(value: Decimal | None) -> str | None:
    """`plain`, to 12 significant digits, which is more than anybody reads; None stays None."""
    return None if value is None else digits(value, 12)
