"""What `machine = "this"` is priced at when the recipe gives no rate: a rented machine of two virtual cores."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from shoestring.cost.price import SECOND, MachineFacts, Price, known_amount, per_second
from shoestring.cost.rows import machine_id
from shoestring.cost.sources import DATA
from shoestring.records import LEASE, PriceRef


def load() -> Iterator[tuple[str, Price]]:
    """data/comparable.csv; the first row is the one that prices this machine."""
    with (DATA / "comparable.csv").open(encoding="utf-8", newline="") as f:
        for row in csv.DictReader(f):
            usd = known_amount(row["usd_per_hour"])
            if usd is None:
                continue
            place = machine_id(row["provider"], row["instance_type"], row["region"], "", row["market"])
            ref = PriceRef(
                source=f"{row['source_repo']}@{row['source_commit'][:10]} {row['source_path']}",
                date=f"{row['price_not_before']}..{row['price_not_after']}",
                note=f"comparable, not an invoice: {row['provider']} {row['instance_type']} {row['region']}"
                f" {row['market']}, {row['vcpus']} vCPU, {row['memory_gib']} GiB, ${row['usd_per_hour']}/h; {row['note']}",
            )
            facts = MachineFacts(f"this:{row['provider']}", row["instance_type"], row["region"], "", row["market"],
                                 vcpus=int(row["vcpus"]), memory_gib=float(row["memory_gib"]),
                                 ondemand_usd_per_hour=usd)  # fmt: skip
            yield f"this:{place}/{LEASE}", Price(per_second(usd), SECOND, ref, facts)
