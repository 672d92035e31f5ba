"""The break-even against sums done by hand, what is not given, and what must hold for any numbers."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.cost import breakeven
from shoestring.cost.assumptions import Value, exactly, middle

D = Decimal
VALUES = {
    "queries": exactly(100_000), "tokens_in": exactly(100), "tokens_out": exactly(50), "own.training": exactly(50),
    "own.usd_per_hour": exactly("0.10"), "own.decode_tokens_per_second": exactly(500), "own.prefill_tokens_per_second": exactly(1000),
    "api.usd_per_mtok_in": exactly(2), "api.usd_per_mtok_out": exactly(10), "rag.tokens": exactly(1000),
}  # fmt: skip


def given_values(**more: Value | int | str) -> dict[str, Value]:
    extra = {k.replace("__", "."): v if isinstance(v, Value) else exactly(v) for k, v in more.items()}
    return {**VALUES, **extra}


def test_by_hand() -> None:
    made = breakeven.compare(VALUES, 12)
    # 100,000 x (100 x 2 + 50 x 10) / 1e6 = 70 a month; one machine all month: 73; 0.2 s a query
    assert made.flows["api"][1] == {"api.tokens": D(70)} and made.flows["own"][0] == {"own.training": D(50)}
    assert made.flows["own"][1] == {"own.serving": D(73)}
    assert made.flows["rag"][1] == {"rag.tokens": D(270)}
    api, rag = made.verdicts
    assert api.mid.month is None and api.mid.saving == 12 * 70 - 50 - 12 * 73 and api.later is None
    assert rag.mid.month == 1 and rag.mid.saving == 12 * 270 - 50 - 12 * 73  # 50 + 73 <= 270
    assert rag.room == rag.mid.saving
    assert breakeven.busy_hours(middle(VALUES), 1) == D(100_000) * D("0.2") / 3600


def test_month_zero_where_training_is_the_cheaper_start_too() -> None:
    made = breakeven.compare(given_values(api__people_start=100, own__utilisation_percent=50), 6)
    assert made.verdicts[0].mid.month == 0


def test_later_than_the_horizon() -> None:
    made = breakeven.compare(given_values(own__utilisation_percent=100, own__training=1000), 12)
    # busy 5.556 h x 0.10 = 0.556 a month against 70: 1000 / 69.44 = 14.4
    assert made.verdicts[0].mid.month is None and made.verdicts[0].later == 15


def test_retraining_can_lose_what_was_gained() -> None:
    values = given_values(own__utilisation_percent=100, own__training=300, own__retrain_every=6, own__labelling_retrain=100)
    made = breakeven.compare(values, 6)
    assert made.flows["own"][6]["own.training"] == 300 and made.flows["own"][6]["own.labelling_retrain"] == 100
    answer = made.verdicts[0].mid
    assert answer.crosses == 5 and answer.month is None


def test_growth_fallback_and_falling_prices() -> None:
    v = middle(given_values(growth_percent=10, own__fallback_percent=25, api__price_change_percent=-50))
    assert breakeven.queries(v, 3) == D(121_000)
    assert abs(breakeven.query_usd(v, month=13) - D("0.00035")) < D("1e-12"), "half after a year"
    flow = breakeven.flows("own", v, 1)[1]
    assert flow["own.fallback"] == 25_000 * D("0.0007")
    assert breakeven.busy_hours(v, 1) == D(75_000) * D("0.2") / 3600


def test_whole_machines_where_no_utilisation_is_given() -> None:
    v = middle(given_values(queries=20_000_000))  # 4,000,000 s = 1,111 h
    assert breakeven.serving_hours(v, 1) == 2 * 730


def test_what_is_not_given_is_named_and_in_no_total() -> None:
    made = breakeven.to_dict(breakeven.compare(VALUES, 3))
    own = made["options"][0]
    assert own["is_lower_bound"] and "own.people_start" in own["not_given"]
    assert {x["line"] for x in own["lines"]} == {"own.training", "own.serving"}
    full = {line.key: exactly(0) for line in breakeven.LINES}
    zero = breakeven.to_dict(breakeven.compare({**VALUES, **full}, 3))
    assert not any(o["is_lower_bound"] for o in zero["options"])
    assert zero["options"][0]["total_usd"]["mid"] == own["total_usd"]["mid"], "a stated zero costs nothing and is given"


def test_a_needed_value_is_asked_for() -> None:
    with pytest.raises(KeyError, match="rag.tokens"):
        breakeven.compare({k: v for k, v in VALUES.items() if k != "rag.tokens"}, 3)


def test_intervals_make_best_and_worst() -> None:
    made = breakeven.compare(given_values(own__training=Value(D(10), D(50), D(5000)), own__utilisation_percent=50), 12)
    v = made.verdicts[0]
    assert v.best.month == 1 and v.mid.month == 1 and v.worst.month is None
    low, mid, high = made.totals["own"]
    assert round(high - low, 12) == 4990 and low < mid < high
    training = next(s for s in v.swings if s.key == "own.training")
    assert training.flips and training.stated


def test_from_queries_is_where_it_begins_to_pay() -> None:
    values = given_values(own__utilisation_percent=50)
    n = breakeven.compare(values, 12).verdicts[0].from_queries
    assert n is not None
    pays = {k: breakeven.answer({**middle(values), "queries": x}, "api", 12).month for k, x in (("at", n), ("below", n * D("0.98")))}
    assert pays["at"] is not None and pays["below"] is None


money = st.decimals(0, 10**6, allow_nan=False, places=2)
more = st.decimals("0.01", 10**6, allow_nan=False, places=2)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from([line.key for line in breakeven.LINES]), money), more, more, st.integers(1, 30), st.integers(1, 9))
def test_cash_against_an_exact_twin(lines: dict[str, Decimal], training: Decimal, rate: Decimal, months: int, every: int) -> None:
    values = {**VALUES, "own.training": exactly(training), "own.usd_per_hour": exactly(rate), "own.retrain_every": exactly(every)}
    values |= {k: exactly(x) for k, x in lines.items()}
    made = breakeven.compare(values, months)

    def total(option: str) -> Fraction:
        got = {k: Fraction(v) for k, v in lines.items() if k.startswith(option)}
        once = sum((v for k, v in got.items() if k.endswith("_start")), Fraction(0))
        monthly = sum((v for k, v in got.items() if k.endswith("_month")), Fraction(0))
        again = sum((v for k, v in got.items() if k.endswith("_retrain")), Fraction(0))
        if option != "own":
            return once + months * (monthly + Fraction(70 if option == "api" else 270))
        return once + Fraction(training) + months * (monthly + 730 * Fraction(rate)) + months // every * (again + Fraction(training))

    for option in breakeven.OPTIONS:
        assert Fraction(breakeven.running(made.flows[option])[-1]) == total(option)
        assert Fraction(made.totals[option][1]) == total(option)
    for v in made.verdicts:
        assert Fraction(v.mid.saving) == total(v.against) - total("own")
        assert (v.mid.month is None) == (v.mid.saving < 0)
        assert v.worst.saving <= v.mid.saving <= v.best.saving


def test_a_dearer_api_never_makes_training_pay_later() -> None:
    def month(price: int) -> float:
        values = {**given_values(own__utilisation_percent=50, own__training=500), "api.usd_per_mtok_out": exactly(price)}
        found = breakeven.compare(values, 24).verdicts[0].mid.month
        return float("inf") if found is None else found

    found = [month(p) for p in (1, 3, 10, 30, 100)]
    assert found == sorted(found, reverse=True) and found[0] > found[-1]


def test_values_are_ordered() -> None:
    with pytest.raises(ValueError, match="out of order"):
        replace(exactly(3), low=D(4))
