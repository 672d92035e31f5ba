"""GPU instances: on-demand and spot prices by zone, one machine for one second."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from shoestring.cost.prices import SECOND, Price, known_amount, machine_id, per_second
from shoestring.cost.sources import DATA
from shoestring.records import LEASE, PriceRef

# what the spot column means, row by row (data/README.md); every other status is "unknown", whatever the number says
SPOT_STATUS = {
    "quoted": "",
    "spot_only": "sold as spot only",
    "no_discount": "spot costs as much as on-demand in this zone",
    "floor_10pct": "exactly a tenth of on-demand: the provider's floor, not a market price",
}


def load() -> Iterator[tuple[str, Price]]:
    """data/instances.csv: an on-demand and a spot price a row, where they are known."""
    with (DATA / "instances.csv").open(encoding="utf-8", newline="") as f:
        for row in csv.DictReader(f):
            yield from _prices(row, "on-demand", row["ondemand_usd_per_hour"], "")
            status = row["spot_status"]
            if status in SPOT_STATUS:
                yield from _prices(row, "spot", row["spot_usd_per_hour"], SPOT_STATUS[status])


def _prices(row: dict[str, str], market: str, usd_per_hour: str, remark: str) -> Iterator[tuple[str, Price]]:
    hourly = known_amount(usd_per_hour)
    if hourly is None:
        return
    place = machine_id(row["provider"], row["instance_type"], row["region"], row["zone"], market)
    where = row["region"] + (f"/{row['zone']}" if row["zone"] else "")
    note = f"{row['provider']} {row['instance_type']} ({row['gpu_count']}x {row['gpu']}) {where} {market}, ${hourly}/h"
    ref = PriceRef(
        source=f"{row['source_repo']}@{row['source_commit'][:10]} {row['source_path']}",
        date=f"{row['price_not_before']}..{row['price_not_after']}",
        note=f"{note}; {remark}" if remark else note,
    )
    yield f"{place}/{LEASE}", Price(per_second(hourly), SECOND, ref)
