"""Rent or buy against sums done by hand, and what must hold for any machine."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.cost import own
from shoestring.cost.assumptions import Value, exactly, middle

D = Decimal
VALUES = {
    "gpus": exactly(8), "purchase": exactly(240_000), "years": exactly(4), "utilisation_percent": exactly(50), "watts": exactly(8000),
    "pue": exactly("1.25"), "usd_per_kwh": exactly("0.10"), "rent.usd_per_gpu_hour": exactly("2.50"),
}  # fmt: skip


def test_by_hand() -> None:
    made = own.compare(VALUES)
    # 240,000 / 48 = 5,000; 8 kW x 1.25 x 730 h x 0.10 = 730; 8 x 730 x 0.5 = 2,920 useful hours
    assert made.lines == {"depreciation": D(5000), "power": D(730)}
    assert made.hours == 2920 and made.mid.usd_per_gpu_hour == D(5730) / 2920
    # rent 7,300 a month; 240,000 + 730 m <= 7,300 m from m = 36.5
    assert made.mid.month == 37 and made.mid.saving == (7300 - 5730) * 48
    assert made.least_utilisation == D(5730) / (D("2.5") * 5840)
    assert made.is_lower_bound, "nobody gave people, hosting, maintenance"


def test_idle_power_interest_resale_and_people() -> None:
    more = {"idle_watts": exactly(2000), "interest_percent": exactly(6), "resale": exactly(24_000), "people_month": exactly(800),
            "hosting_month": exactly(600), "maintenance_month": exactly(100), "installation": exactly(4800)}  # fmt: skip
    made = own.compare({**VALUES, **more})
    assert made.lines == {
        "depreciation": D(4500), "installation": D(100), "interest": D(132_000) * 6 / 100 / 12, "power": D("456.25"),
        "hosting": D(600), "maintenance": D(100), "people": D(800),
    }  # fmt: skip
    assert not made.is_lower_bound
    owned, rented = made.owned_cash, made.rented_cash
    assert owned[0] == 244_800 and rented[0] == 0 and len(owned) == 49
    assert owned[-1] == 244_800 - 24_000 + 48 * (sum(made.lines.values()) - 4500 - 100)
    assert rented[-1] - owned[-1] == made.mid.saving, "cash and total cost agree over the whole life"


def test_never() -> None:
    made = own.compare({**VALUES, "utilisation_percent": exactly(10), "rent.usd_per_gpu_hour": exactly("0.50")})
    assert made.mid.month is None and made.least_utilisation is None and made.mid.saving < 0
    assert own.to_dict(made)["break_even"] == {
        "month": None, "best": None, "worst": None, "utilisation": None, "gpu_hours_a_month": None,
    }  # fmt: skip


def test_a_rented_hour_has_an_idle_share_too() -> None:
    v = middle({**VALUES, "rent.utilisation_percent": exactly(80)})
    assert own.rented_usd(v) == D("3.125")


@pytest.mark.parametrize(
    ("key", "value", "said"), [("resale", 300_000, "resale"), ("idle_watts", 9000, "idle_watts"), ("pue", "0.9", "pue")]
)
def test_contradictions(key: str, value, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        own.compare({**VALUES, key: exactly(value)})


some = st.decimals(1, 10**5, allow_nan=False, places=2)


@settings(max_examples=40, deadline=None)
@given(some, some, st.integers(1, 8), st.integers(1, 100), st.decimals("0.01", 50, places=2))
def test_the_least_utilisation_is_where_both_cost_the_same(buy: Decimal, people: Decimal, years: int, used: int, rent: Decimal) -> None:
    values = {**VALUES, "purchase": exactly(buy), "people_month": exactly(people), "years": exactly(years),
              "utilisation_percent": exactly(used), "rent.usd_per_gpu_hour": exactly(rent), "idle_watts": exactly(1000)}  # fmt: skip
    v, made = middle(values), own.compare(values)
    u = made.least_utilisation
    if u is None:
        assert sum(own.monthly(v, D(1)).values()) > own.rented_usd(v) * own.useful_hours(v, D(1)) * (1 - D("1e-20"))
    else:
        total, rented = sum(own.monthly(v, u).values()), own.rented_usd(v) * own.useful_hours(v, u)
        assert abs(total - rented) < rented * D("1e-18")
    cheaper = made.mid.usd_per_gpu_hour <= made.rented
    assert cheaper == (made.mid.saving >= 0) == (u is not None and u <= D(used) / 100)


def test_intervals() -> None:
    made = own.compare({**VALUES, "purchase": Value(D(200_000), D(240_000), D(400_000))})
    assert made.best.month == 31 and made.mid.month == 37 and made.worst.month is None
    assert made.swings[0].key in ("utilisation_percent", "rent.usd_per_gpu_hour") and any(s.flips for s in made.swings)
