"""Files of assumptions: what is read, what is refused and where, and the sensitivity against an obvious twin."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.cost import breakeven, own
from shoestring.cost.assumptions import Key, Value, amount_of, corners, ends, exactly, read, swings, template
from shoestring.records import UserError

D = Decimal
KEYS = breakeven.KEYS


def test_what_is_read() -> None:
    text = 'queries = 1000\n[own]\npeople_start = "12h@80"\ntraining = {low = "9 USD", high = "48 USD", source = "s1"}\n[api]\nmodel = "a/b"\n'
    numbers, texts = read(text, "a.toml", KEYS)
    assert numbers["own.people_start"] == exactly(960, note="12 hours at 80 USD")
    assert numbers["own.training"] == Value(D(9), D("28.5"), D(48), "given", "s1")
    assert numbers["queries"].mid == 1000 and texts == {"api.model": "a/b"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[own]\npeople_strat = 1", 'a.toml:2: unknown key "own.people_strat"; did you mean "own.people_start"?'),
        ("[won]\nx = 1", 'a.toml:1: unknown key "won"'),
        ("queries = 0", "a.toml:1: queries must be above zero"),
        ("queries = true", "must be a number such as"),
        ("queries = nan", "must be a number such as"),
        ("[own]\npeople_start = 12", 'own.people_start must be an amount such as "120 USD" or of time as "12h@80", not 12'),
        ('[own]\npeople_start = "12 EUR"', "must be an amount"),
        ('[own]\nusd_per_hour = "1 USD/day"', '"120 USD/hour"'),
        ('[own]\npeople_start = {low = "3 USD"}', "as a table has low and high"),
        ('[own]\npeople_start = {low = "3 USD", high = "1 USD"}', "out of order"),
        ("[own]\nutilisation_percent = 101", "at most 100"),
        ("[own]\nretrain_every = 2.5", "whole number"),
        ("[api]\nmodel = 3", "must be text"),
        ("queries = \n", "not TOML"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError) as e:
        read(text, "a.toml", KEYS)
    assert said in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("module", [breakeven, own])
def test_the_template_is_read_back_as_nothing_given_and_uncommented_as_all(module) -> None:
    text = template(module.KEYS, module.HEAD)
    assert read(text, "t", module.KEYS) == ({}, {})
    names = {k.name.rpartition(".")[2] for k in module.KEYS}
    lines = [line.removeprefix("# ") if line[2:].split(" = ")[0] in names else line for line in text.splitlines()]
    numbers, texts = read("\n".join(lines), "t", module.KEYS)
    assert set(numbers) | set(texts) == {k.name for k in module.KEYS}, "every example is valid"


@given(st.decimals(0, 10**9, allow_nan=False, places=6), st.decimals(0, 10**4, allow_nan=False, places=2))
def test_amounts_are_exact(hours: Decimal, usd: Decimal) -> None:
    key = Key("x", "")
    assert amount_of(key, f"{hours:f} USD")[0] == hours
    assert amount_of(key, f"{hours:f}h@{usd:f}")[0] == hours * usd


@dataclass(frozen=True)
class Told:
    saving: Decimal
    month: int | None


def line(v) -> Told:
    saving = v["a"] * 3 - v["b"]
    return Told(saving, 0 if saving >= 0 else None)


def test_swings_flip_where_the_twin_flips() -> None:
    keys = (Key("a", "", "number"), Key("b", "", "number"))
    values = {"a": exactly(10), "b": Value(D(5), D(20), D(60))}
    found = swings(values, keys, line)
    assert [s.key for s in found] == ["b", "a"] and [s.stated for s in found] == [True, False]
    by_b = found[0]
    assert by_b.flips and by_b.flips_at is not None and abs(by_b.flips_at - 30) < D("0.06")  # 3 x 10 = b
    assert (found[1].low, found[1].high) == (5, 20), "halved and doubled"
    best, worst = corners(values, line)
    assert (best.saving, worst.saving) == (25, -30)


def test_ends_stay_where_a_key_makes_sense() -> None:
    assert ends(Key("x", "", "percent"), exactly(80)) == (40, 100)
    assert ends(Key("x", "", "number", whole=True), exactly(1)) == (1, 2)
    assert ends(Key("x", "", "percent", signed=True), exactly(-30)) == (-60, -15)
