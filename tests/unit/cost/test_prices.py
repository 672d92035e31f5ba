"""The price book: what ships, what is unknown, and which machine a recipe means."""

from __future__ import annotations

import contextlib
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.cost import sources
from shoestring.cost.prices import (
    GB,
    GB_MONTH,
    SECOND,
    TOKEN,
    Price,
    PriceBook,
    UnknownPrice,
    known_amount,
    per_second,
    shipped,
)
from shoestring.recipe import MachineSpec
from shoestring.records import PriceRef, Usage, UserError

BOOK = PriceBook.default()
REF = PriceRef("a test", "2026-01-01")


def cloud(provider: str, sku: str, region: str = "", market: str = "on-demand") -> MachineSpec:
    return MachineSpec("cloud", provider, sku, 1, region, market)


def test_every_shipped_price_has_source_date_and_is_above_zero() -> None:
    seen = set()
    for sku, price in shipped():
        assert sku not in seen, sku
        seen.add(sku)
        assert price.amount > 0 and price.ref.source and price.ref.date[:2] == "20"
        units = {"teacher": TOKEN, "storage": GB_MONTH, "egress": GB}
        assert price.unit == units.get(sku.partition(":")[0], SECOND)
        assert (price.unit == SECOND) == sku.endswith("/machine-second") == (price.machine is not None)
    assert len(seen) > 1000


def test_this_machine_is_a_comparable_or_the_users_rate() -> None:
    sku = BOOK.machine_sku(MachineSpec())
    price = BOOK.price(sku)
    assert sku == "this:aws/m7i.large/us-east-1/-/on-demand/machine-second"
    assert price.amount == Decimal("0.1008") / 3600 == Decimal("0.000028")
    assert "00148f2af3" in price.ref.source and "comparable" in price.ref.note
    rated = BOOK.machine_sku(MachineSpec(), Decimal("0.10"), today="2026-11-21")
    assert BOOK.price(rated).ref.source == "user's rate" and BOOK.price(rated).ref.date == "2026-11-21"
    assert abs(BOOK.price(rated).amount * 3600 - Decimal("0.10")) < Decimal("1e-25")


def test_a_price_an_hour_keeps_its_digits() -> None:
    assert len(per_second(Decimal(1)).as_tuple().digits) == 60


def test_one_price_in_a_region_needs_no_zone() -> None:
    sku = BOOK.machine_sku(cloud("aws", "p3.2xlarge", "us-east-1"))
    assert sku.startswith("aws/p3.2xlarge/us-east-1/") and sku.endswith("/on-demand/machine-second")
    assert round(BOOK.price(sku).amount * 3600, 6) == Decimal("3.06")


def test_zones_with_different_prices_are_listed_never_averaged() -> None:
    with pytest.raises(UserError, match=r'more than one price; choose with region = "…": .*us-east-1/az\d \$'):
        BOOK.machine_sku(cloud("aws", "p3.2xlarge", "us-east-1", "spot"))
    sku = BOOK.machine_sku(cloud("aws", "p3.2xlarge", "ap-northeast-1/az4", "spot"))
    assert round(BOOK.price(sku).amount * 3600, 6) == Decimal("1.4")


def test_zero_blank_and_repeated_spot_prices_are_unknown() -> None:
    for provider, sku in (("vast", "1x-H200-32-65536"), ("runpod", "1x_A100-80GB_SECURE"), ("lambda", "gpu_1x_a6000")):
        with pytest.raises(UnknownPrice, match="no spot price is known .* on-demand at"):
            BOOK.machine_sku(cloud(provider, sku, market="spot"))
    spot_only = [s for s in BOOK if s.startswith("verda/") and "/spot/" in s and s.replace("/spot/", "/on-demand/") not in BOOK]
    assert len(spot_only) == 3  # a blank on-demand price is not a free one
    _, sku, region, *_ = spot_only[0].split("/")
    with pytest.raises(UnknownPrice, match="no on-demand price is known .* known: spot at"):
        BOOK.machine_sku(cloud("verda", sku, region))
    assert known_amount("0.00") is None and known_amount("") is None and known_amount(" 1.5 ") == Decimal("1.5")
    with pytest.raises(ValueError, match="above zero"):
        Price(Decimal(0), SECOND, REF)


def test_unknown_machines_name_the_nearest() -> None:
    with pytest.raises(UserError, match=r'unknown provider "awz"; did you mean "aws"\?'):
        BOOK.machine_sku(cloud("awz", "p3.2xlarge"))
    with pytest.raises(UserError, match=r"nearest: .*p3\.2xlarge"):
        BOOK.machine_sku(cloud("aws", "p3.3xlarge"))
    with pytest.raises(UserError, match=r"nearest: .*p5"):
        BOOK.machine_sku(cloud("aws", "H100"))
    with pytest.raises(UserError, match="no price is known for aws p3.2xlarge in mars-1; there are: .*us-east-1"):
        BOOK.machine_sku(cloud("aws", "p3.2xlarge", "mars-1"))


def test_teachers() -> None:
    fresh, cached = BOOK.price("teacher:litellm/deepseek-chat/in"), BOOK.price("teacher:litellm/deepseek-chat/cached")
    assert (fresh.amount, cached.amount) == (Decimal("0.00000028"), Decimal("0.000000028"))
    assert BOOK.price("teacher:litellm/o3/in-batch").amount * 1_000_000 == 1
    # a price with a date from which it holds is the one, and the older one stays under its own sku
    assert BOOK.price("teacher:genai-prices/o3/in").amount * 1_000_000 == 2
    assert BOOK.price("teacher:genai-prices/o3/in@before-2025-06-10").amount * 1_000_000 == 10
    with pytest.raises(UnknownPrice, match=r'no price is known for "teacher:litellm/deepseek-chta/in"; did you mean'):
        BOOK.price("teacher:litellm/deepseek-chta/in")


def test_cost_refuses_a_wrong_unit_and_bad_quantities() -> None:
    book = PriceBook([("x/machine-second", Price(Decimal("0.5"), SECOND, REF))])
    assert book.cost([Usage("x/machine-second", 3, SECOND, "sft")] * 2) == 3
    with pytest.raises(ValueError, match="'hour', but its price is for one 'second'"):
        book.cost([Usage("x/machine-second", 3, "hour", "sft")])
    for bad in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match="quantity"):
            book.cost([Usage("x/machine-second", bad, SECOND, "sft")])
    with pytest.raises(UnknownPrice):
        book.cost([Usage("y", 0, SECOND, "sft")])


@given(st.text(max_size=40))
def test_any_unknown_sku_is_a_user_error_of_one_line(sku: str) -> None:
    book = PriceBook([("x/machine-second", Price(Decimal(1), SECOND, REF))])
    if sku != "x/machine-second":
        with pytest.raises(UnknownPrice):
            book.price(sku)


@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12), st.sampled_from(["on-demand", "spot"]))
def test_any_machine_is_resolved_or_a_user_error(provider: str, sku: str, region: str, market: str) -> None:
    for p, s in ((provider, sku), ("aws", sku), ("aws", "p3.2xlarge")):
        with contextlib.suppress(UserError):
            assert BOOK.machine_sku(cloud(p, s, region, market)) in BOOK


def test_a_new_source_file_is_picked_up(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoestring.cost import prices

    here = tmp_path / "sources"
    here.mkdir()
    (here / "extra.py").write_text(
        "from decimal import Decimal\nfrom shoestring.cost.prices import SECOND, Price\n"
        "from shoestring.records import PriceRef\n"
        "def load():\n    yield 'mine/box/home/-/on-demand/machine-second', Price(Decimal('0.001'), SECOND, PriceRef('me', '2026-01-01'))\n"
    )
    monkeypatch.setattr(prices, "__file__", str(tmp_path / "prices.py"))
    monkeypatch.setattr(sources, "__path__", [str(here)])
    book = PriceBook.default()
    assert book.machine_sku(cloud("mine", "box")) == "mine/box/home/-/on-demand/machine-second"
