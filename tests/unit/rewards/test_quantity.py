"""The number reader: what is written is what is read, in every form, and nothing else is read at all."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring import answers
from shoestring.rewards import _units
from shoestring.rewards._quantity import interval, number, numbers, quantity

wholes = st.integers(-(10**9), 10**9)
positive = st.integers(1, 10**4)


@given(wholes)
def test_whole_numbers_in_every_form(n: int) -> None:
    forms = [f"{n}", f"{n:,}", f"${n}$", f"\\({n}\\)", f"{n}.0", f"**{n}**", f"{n} .", f"{n:,}".replace(",", "{,}")]
    forms += [f"{n:,}".replace(",", "\\,"), f"{n:,}".replace(",", " "), f"\\text{{{n}}}", f"{n}".replace("-", "\u2212")]
    assert {number(f) for f in forms} == {Fraction(n)}


@given(wholes, positive, positive)
def test_fractions_in_every_form(top: int, bottom: int, whole: int) -> None:
    sign = "-" if top < 0 else ""
    size = abs(top)
    forms = [f"{top}/{bottom}", f"\\frac{{{top}}}{{{bottom}}}", f"{sign}\\dfrac{{{size}}}{{{bottom}}}", f"$ {top} / {bottom} $"]
    assert {number(f) for f in forms} == {Fraction(top, bottom)}
    mixed = [f"{whole} {size}/{bottom}", f"{whole}\\frac{{{size}}}{{{bottom}}}", f"{whole} and {size}/{bottom}"]
    assert {number(f) for f in mixed} == {whole + Fraction(size, bottom)}


@given(st.integers(-999, 999), st.integers(-20, 20))
def test_powers_of_ten(n: int, power: int) -> None:
    forms = [f"{n} \\times 10^{{{power}}}", f"{n}×10^{power}", f"{n}e{power}", f"{n} \\cdot 10^{{{power}}}"]
    assert {number(f) for f in forms} == {n * Fraction(10) ** power}


@given(wholes, st.sampled_from(sorted(_units.UNITS.keys() - {"$"})))
def test_units(n: int, unit: str) -> None:
    found = quantity(f"{n} {unit}")
    assert found is not None and found.value == n and found.unit == _units.UNITS[unit]


@given(wholes, wholes, st.booleans(), st.booleans())
def test_intervals(a: int, b: int, left: bool, right: bool) -> None:
    found = interval(f"{'[' if left else '('}{a}, {b}{']' if right else ')'}")
    if a > b:
        assert found is None
        return
    assert found is not None and (found.low, found.high) == (a, b)
    assert found.holds(Fraction(a)) == (left and (a < b or right)) and found.holds(Fraction(a + b, 2)) >= (a < b)
    assert not found.holds(Fraction(b + 1))


@given(st.text(max_size=60))
def test_any_text_is_a_number_or_not(text: str) -> None:
    """Never an error; and whatever `answers` calls a number has the same value here, unless NFKC changed its digits."""
    found = number(text)
    plain = answers.normalise(text)
    if text.isascii() and answers.is_number(plain) and "%" not in text:
        assert found == Fraction(plain)


@given(st.text(alphabet="0123456789+-*/^(){}[].,eE$%\\ frac", max_size=60))
def test_garbage_that_looks_like_numbers(text: str) -> None:
    quantity(text)
    interval(text)


@pytest.mark.parametrize(
    "text", ["", "about 5", "5 6", "1,2", "1,23", "5 or 6", "5/", "1/0", "2:30", "10^10^10", "5x", "--5", "9" * 300, "1.2.3"]
)
def test_what_is_no_number(text: str) -> None:
    assert number(text) is None


def test_conversion_is_exact() -> None:
    factor = {name: _units.UNITS[name].factor for name in ("mile", "km", "in", "cm", "hour", "kg")}
    assert factor["mile"] / factor["km"] == Fraction("1.609344") and factor["in"] / factor["cm"] == Fraction("2.54")
    assert _units.find("Kilometres") == _units.find("km") and _units.find("MM") is None and _units.find("parsec") is None


@given(st.lists(st.integers(-999, 999), min_size=2, max_size=5))
def test_members(values: list[int]) -> None:
    text = ", ".join(map(str, values))
    assert numbers(text) == numbers(f"\\{{{text}\\}}") == ("", values)
    assert numbers(f"({text}]") == ("(]", values) and numbers(f"$[{text})$") == ("[)", values)
    assert numbers(f"(({text}), 1)") is None and numbers(str(values[0])) is None and numbers("1,234") is None


def test_infinite_ends() -> None:
    assert numbers("(2, \\infty)") == ("()", [2, "oo"]) and numbers("(-∞, 1/2]") == ("(]", ["-oo", Fraction(1, 2)])
    assert numbers("\\infty") is None and numbers("(x, \\infty)") is None
