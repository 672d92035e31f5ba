"""GPU instances: on-demand and spot prices by zone, one machine for one second."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from shoestring.cost.price import Price, known_amount
from shoestring.cost.rows import MachineRow
from shoestring.cost.sources import DATA

# what the spot column means, row by row (data/README.md); every other status is "unknown", whatever the number says
SPOT_STATUS = {
    "quoted": "",
    "spot_only": "sold as spot only",
    "no_discount": "spot costs as much as on-demand in this zone",
    "floor_10pct": "exactly a tenth of on-demand: the provider's floor, not a market price",
}


def load() -> Iterator[tuple[str, Price]]:
    """data/instances.csv: an on-demand and a spot price a row, where they are known."""
    for row in rows(DATA / "instances.csv"):
        yield from row.prices()


def rows(path: Path) -> Iterator[MachineRow]:
    """A file of the columns of data/instances.csv. Raises KeyError and ValueError (decimal.InvalidOperation is one of
    ArithmeticError) for other columns and for what is no number."""
    with path.open(encoding="utf-8", newline="") as f:
        for row in csv.DictReader(f):
            yield machine(row)


def machine(row: dict[str, str]) -> MachineRow:
    spot, commit = row["spot_status"], row["source_commit"]
    return MachineRow(
        provider=row["provider"],
        instance=row["instance_type"],
        source=row["source_repo"] + (commit and f"@{commit[:10]}") + (row["source_path"] and f" {row['source_path']}"),
        date=f"{row['price_not_before']}..{row['price_not_after']}",
        region=row["region"],
        zone=row["zone"],
        gpu=row["gpu"],
        gpus=int(row["gpu_count"]),
        gpu_memory_gib=float(row["gpu_mem_gib"]),
        vcpus=int(row["vcpus"]),
        memory_gib=float(row["host_mem_gib"]),
        ondemand=known_amount(row["ondemand_usd_per_hour"]),
        spot=known_amount(row["spot_usd_per_hour"]) if spot in SPOT_STATUS else None,
        spot_remark=SPOT_STATUS.get(spot, ""),
    )
