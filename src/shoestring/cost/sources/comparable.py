"""What `machine = "this"` is priced at when the recipe gives no rate: a rented machine of two virtual cores."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from shoestring.cost.prices import SECOND, Price, known_amount, machine_id, per_second
from shoestring.cost.sources import DATA
from shoestring.records import LEASE, PriceRef


def load() -> Iterator[tuple[str, Price]]:
    """data/comparable.csv; the first row is the one that prices this machine."""
    with (DATA / "comparable.csv").open(encoding="utf-8", newline="") as f:
        for row in csv.DictReader(f):
            hourly = known_amount(row["usd_per_hour"])
            if hourly is None:
                continue
            place = machine_id(row["provider"], row["instance_type"], row["region"], "", row["market"])
            ref = PriceRef(
                source=f"{row['source_repo']}@{row['source_commit'][:10]} {row['source_path']}",
                date=f"{row['price_not_before']}..{row['price_not_after']}",
                note=f"comparable, not an invoice: {row['provider']} {row['instance_type']} {row['region']}"
                f" {row['market']}, {row['vcpus']} vCPU, {row['memory_gib']} GiB, ${row['usd_per_hour']}/h; {row['note']}",
            )
            yield f"this:{place}/{LEASE}", Price(per_second(hourly), SECOND, ref)
