"""Amounts as text: no exponent, no idle zero, no digit lost that was asked for."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.cost.decimals import brief, digits, plain, usd


@pytest.mark.parametrize(
    ("value", "text"),
    [("0", "0"), ("100", "100"), ("1E+2", "100"), ("1.500", "1.5"), ("2.000", "2"), ("-0.10", "-0.1"), ("1E-9", "0.000000001")],
)
def test_plain(value: str, text: str) -> None:
    assert plain(Decimal(value)) == text


@given(st.decimals(allow_nan=False, allow_infinity=False, places=9, min_value=-(10**9), max_value=10**9))
def test_plain_loses_nothing(value: Decimal) -> None:
    text = plain(value)
    assert Decimal(text) == value and "E" not in text and not ("." in text and text.endswith(("0", ".")))


def test_digits_and_dollars() -> None:
    third = Decimal(1) / 3
    assert digits(third, 12) == "0." + 12 * "3" and digits(third, 20) == "0." + 20 * "3"
    assert digits(Decimal("1234567"), 3) == "1230000" and digits(Decimal("2.50"), 12) == "2.5"
    assert brief(third) == digits(third, 12) and brief(None) is None
    assert usd(third) == "0.333333" and usd(Decimal(2)) == "2.000000"
