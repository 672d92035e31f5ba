"""What catalogues get wrong, each a test, and the same thing at two prices."""

from __future__ import annotations

import csv
import hashlib
from decimal import Decimal
from pathlib import Path

import pytest

from shoestring.cost.listing import low_confidence, machine_rows
from shoestring.cost.price import AmbiguousPrice, UnknownPrice, per_hour
from shoestring.cost.prices import SECOND, Price, PriceBook, per_second
from shoestring.cost.provisioned import egress_usages, storage_usage
from shoestring.cost.sources import DATA
from shoestring.recipe import MachineSpec
from shoestring.records import PriceRef, UserError

BOOK = PriceBook.default()
ROWS = list(csv.DictReader((DATA / "instances.csv").open(encoding="utf-8")))
SHARED = Path(__file__).parents[4] / "shared" / "data" / "prices"


def test_all_244_rows_are_there_with_their_prices() -> None:
    """The slow twin: row by row from the file, by its columns."""
    want: dict[tuple[str, ...], Decimal] = {}
    for r in ROWS:
        place = (r["provider"], r["instance_type"], r["region"], r["zone"])
        if r["ondemand_usd_per_hour"]:
            want[(*place, "on-demand")] = Decimal(r["ondemand_usd_per_hour"])
        if r["spot_status"] in ("quoted", "spot_only", "no_discount", "floor_10pct"):
            want[(*place, "spot")] = Decimal(r["spot_usd_per_hour"])
    offers = BOOK.offers()
    assert len(ROWS) == 244 and len(offers) == len(want)
    for o in offers:
        f = o.facts
        assert o.usd_per_hour == want[(f.provider, f.instance, f.region, f.zone, f.market)]
        assert o.usd_per_gpu_hour is not None and abs(o.usd_per_gpu_hour * f.gpus - o.usd_per_hour) < Decimal("1e-50")
        assert per_hour(BOOK.price(o.sku)) == o.usd_per_hour
        assert "@" in o.ref.source and ".." in o.ref.date
    each = [o.usd_per_gpu_hour for o in offers]
    assert each == sorted(each)  # type: ignore[type-var]


def test_the_shipped_rows_are_the_reference_rows() -> None:
    if not SHARED.exists():
        pytest.skip("the reference prices are not in ../shared/data/prices; the copy that ships is tested")
    theirs = list(csv.DictReader((SHARED / "instances.csv").open(encoding="utf-8")))
    assert [{k: r[k] for k in ROWS[0]} for r in theirs] == ROWS


def test_zero_spot_is_unknown_and_never_free() -> None:
    assert {r["spot_status"] for r in ROWS if r["provider"] == "vast"} == {"unknown_zero"}
    assert not BOOK.offers(provider="vast", market="spot") and len(BOOK.offers(provider="vast")) == 24
    assert all(o.facts.spot_usd_per_hour is None for o in BOOK.offers(provider="vast"))


def test_spot_at_the_price_of_on_demand() -> None:
    """AWS: no discount in that zone, and it says so; RunPod repeats the number: unknown."""
    marked = [o for o in BOOK.offers(market="spot") if "as much as on-demand" in o.ref.note]
    same = [o for o in BOOK.offers(provider="aws", market="spot") if o.facts.ondemand_usd_per_hour == o.usd_per_hour]
    assert len(marked) == 27 and same and set(o.sku for o in same) <= set(o.sku for o in marked)
    assert not BOOK.offers(provider="runpod", market="spot") and BOOK.offers(provider="runpod")


def test_blank_prices_are_no_offers() -> None:
    blank = [r for r in ROWS if r["provider"] == "aws" and not r["spot_usd_per_hour"]]
    assert blank and len(BOOK.offers(provider="aws", market="spot")) == sum(r["provider"] == "aws" for r in ROWS) - len(blank)
    only = [o for o in BOOK.offers(provider="verda", market="spot") if o.facts.ondemand_usd_per_hour is None]
    assert len(only) == 3 and all("spot only" in o.ref.note for o in only)


def test_zones_are_never_averaged() -> None:
    spot = [o.usd_per_hour for o in BOOK.offers("H100", "spot", "aws", "us-east-1") if o.facts.instance == "p5.48xlarge"]
    assert (round(min(spot), 2), max(spot)) == (Decimal("10.24"), Decimal("55.04"))
    with pytest.raises(UserError, match=r"more than one price.*\$10\.2397/h.*\$55\.04/h"):
        BOOK.machine_sku(MachineSpec("cloud", "aws", "p5.48xlarge", 1, "us-east-1", "spot"))


def test_memory_is_one_gpus_in_gib() -> None:
    assert {o.facts.gpu_memory_gib for o in BOOK.offers("A100-80GB", provider="runpod")} == {80.0}
    assert {o.facts.gpu_memory_gib for o in BOOK.offers("H100", provider="lambda")} == {80.0}
    assert {o.facts.gpus for o in BOOK.offers(provider="yotta")} == {1, 2, 4, 8}
    assert all(8 <= o.facts.gpu_memory_gib <= 300 for o in BOOK.offers())


def test_three_sizes_of_one_gpu_cost_the_same_a_gpu_hour() -> None:
    here = [o for o in BOOK.offers("V100", "on-demand", "aws", "us-east-1") if o.facts.instance.startswith("p3.")]
    assert {o.facts.instance for o in here} >= {"p3.2xlarge", "p3.8xlarge", "p3.16xlarge"}
    assert {o.usd_per_gpu_hour for o in here if o.facts.gpu == "V100"} == {Decimal("3.06")}


def test_two_catalogues_disagree_and_neither_is_picked() -> None:
    found = {(c.kind, c.what): [p.amount * 1_000_000 for _, p in c.prices] for c in BOOK.conflicts()}
    assert found[("sources", "deepseek deepseek-v4-pro in")] == [Decimal("1.32"), Decimal("0.435")]
    assert found[("date", "teacher:genai-prices/o3/in")] == [2, 10]
    assert sorted(found[("hours", "teacher:genai-prices/deepseek-reasoner/out")]) == [Decimal("0.55"), Decimal("2.19")]
    with pytest.raises(AmbiguousPrice, match=r"does not say which price: .*genai-prices.*\$0.435.*litellm.*\$1.32"):
        BOOK.price("teacher:deepseek-v4-pro/in")
    with pytest.raises(AmbiguousPrice, match=r"@00:30Z-16:30Z.*\$1.1.*@16:30Z-00:30Z.*\$0.55"):
        BOOK.price("teacher:genai-prices/deepseek-chat/out")
    # an alias that changed its model: R1's price in one catalogue, V3.2's in the other
    assert ("sources", "deepseek deepseek-reasoner out") in found


def test_two_sources_of_one_sku_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def price(usd: str, source: str) -> Price:
        return Price(per_second(Decimal(usd)), SECOND, PriceRef(source, "2026-01-01"))

    sku = "a/b/c/-/spot/machine-second"
    rows = [(sku, price("1", "one")), (sku, price("2", "two")), (sku, price("1", "three"))]
    monkeypatch.setattr("shoestring.cost.prices.shipped", lambda: iter(rows))
    book = PriceBook.default()
    with pytest.raises(AmbiguousPrice, match=r"\$1/h \(one, .*\$2/h \(two"):
        book.price(sku)
    assert [(c.kind, c.what, len(c.prices)) for c in book.conflicts()] == [("sources", sku, 2)] and not book.offers()


def test_other_dates_price_old_runs() -> None:
    sku = BOOK.machine_sku(MachineSpec("cloud", "lambda@2025-10-13", "8xH100"))
    assert per_hour(BOOK.price(sku)) == 24 and BOOK.machine_facts(sku).gpus == 8
    assert not [o for o in BOOK.offers() if "@" in o.facts.provider]
    assert any(c.kind == "date" and sku in dict(c.prices) for c in BOOK.conflicts())


def test_a_wide_interval_is_low_confidence() -> None:
    assert low_confidence(PriceRef("", "2025-11-18..2026-11-21")) and not low_confidence(PriceRef("", "2026-11-21"))
    assert not low_confidence(PriceRef("", "2026-09-01..2026-11-21"))
    assert all(r["low_confidence"] for r in machine_rows(BOOK, "H100", "", "", ""))


def test_a_disk_is_billed_by_the_month_of_730_hours() -> None:
    """100 GB of gp2 for 16 h: $0.22, not $3.00 and not $10."""
    used = storage_usage("aws", "ebs_gp2", 100, 16 * 3600, book=BOOK)
    assert used.unit == "gb-month" and round(BOOK.cost([used]), 2) == Decimal("0.22")
    assert BOOK.cost([storage_usage("aws", "ebs_gp2", 100, 730 * 3600, book=BOOK)]) == 10
    assert storage_usage("runpod", "network_volume", 999, 1, book=BOOK).sku == "storage:runpod/network_volume"
    assert storage_usage("runpod", "network_volume", 1000, 1, book=BOOK).sku == "storage:runpod/network_volume@1000gb"
    with pytest.raises(UnknownPrice, match="known: aws/ebs_gp2"):
        storage_usage("aws", "tape", 1, 1, book=BOOK)
    with pytest.raises(UserError, match="at or above zero"):
        storage_usage("aws", "ebs_gp2", -1, 1, book=BOOK)


def test_traffic_is_spread_over_tiers() -> None:
    used = egress_usages("aws", 60_000, book=BOOK)
    assert [(u.sku.rpartition("/")[2], u.quantity) for u in used] == [
        ("0-10240", 10240),
        ("10240-51200", 40960),
        ("51200-153600", 8800),
    ]
    assert BOOK.cost(used) == Decimal("10240") * Decimal("0.09") + Decimal("40960") * Decimal("0.085") + 8800 * Decimal("0.07")
    assert [u.sku for u in egress_usages("aws", 5, used_gb=200_000, book=BOOK)] == ["egress:aws/153600-"]
    assert egress_usages("gcp", 0, book=BOOK) == []
    for unmodelled in ("lambda", "runpod", "nebius", "vast"):  # $0 in the source: unknown
        with pytest.raises(UnknownPrice, match="known: aws, azure, gcp, oci"):
            egress_usages(unmodelled, 1, book=BOOK)
    assert BOOK.cost(egress_usages("oci", 10, book=BOOK)) == Decimal("0.085")  # an allowance may be used up
    assert "may be free of charge" in BOOK.price("egress:oci/0-").ref.note


def test_facts_of_this_machine_and_of_no_machine() -> None:
    facts = BOOK.machine_facts(BOOK.machine_sku(MachineSpec()))
    assert (facts.gpu, facts.gpus, facts.vcpus, facts.memory_gib) == ("", 0, 2, 8.0)
    rated = PriceBook.default(rate=Decimal("0.3"))
    sku = rated.machine_sku(MachineSpec())
    assert rated.machine_facts(sku).gpu == "" and per_hour(rated.price(sku)) == Decimal("0.3")
    assert "user's rate" in rated.price(sku).ref.source
    with pytest.raises(UserError, match="is not a machine"):
        BOOK.machine_facts("teacher:litellm/o3/in")


def test_data_readme_names_every_file() -> None:
    told = (DATA / "README.md").read_text()
    assert all(f.name in told for f in DATA.iterdir() if f.name != "README.md")
    assert len({hashlib.sha256(f.read_bytes()).hexdigest() for f in DATA.iterdir()}) == len(list(DATA.iterdir()))
