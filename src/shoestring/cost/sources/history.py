"""Prices of machines at other dates, so that an old run can be priced as it was: the provider is written `aws@2025-09-17`."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from shoestring.cost.price import Price, known_amount
from shoestring.cost.rows import MachineRow
from shoestring.cost.sources import DATA


def load() -> Iterator[tuple[str, Price]]:
    """data/price_history.csv: one price a row, of one market."""
    with (DATA / "price_history.csv").open(encoding="utf-8", newline="") as f:
        for row in csv.DictReader(f):
            usd = known_amount(row["usd_per_hour"])
            yield from MachineRow(
                provider=f"{row['provider']}@{row['as_of']}",
                instance=row["sku"],
                source=row["source"],
                date=row["as_of"],
                region=row["region"],
                gpu=row["gpu"],
                gpus=int(row["gpu_count"]),
                ondemand=usd if row["market"] == "on-demand" else None,
                spot=usd if row["market"] == "spot" else None,
                note="a price of that day",
            ).prices()
