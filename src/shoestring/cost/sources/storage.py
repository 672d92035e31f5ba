"""Disks by the GB-month provisioned, and traffic to the internet by the GB."""

from __future__ import annotations

import json
from collections.abc import Iterator

from shoestring.cost.price import Price, known_amount
from shoestring.cost.rows import EgressRow, StorageRow
from shoestring.cost.sources import DATA


def load() -> Iterator[tuple[str, Price]]:
    """data/storage_egress.json. A provider whose traffic its source did not model (blank, or $0 throughout) has no price."""
    data = json.loads((DATA / "storage_egress.json").read_text(encoding="utf-8"))
    for row in data["storage"]:
        usd = known_amount(row["usd_per_gb_month"])
        if usd is not None:
            note = "; ".join(p for p in ("provisioned GB, a month is 730 hours", row.get("extra", "")) if p)
            least = int(row.get("at_least_gb", 0))
            yield from StorageRow(row["provider"], row["kind"], usd, row["source"], row["date"], least, note).prices()
    for row in data["egress"]:
        tiers = [(t["up_to_gb"] and int(t["up_to_gb"]), known_amount(t["usd_per_gb"])) for t in row["tiers"] or ()]
        note = "; ".join(p for p in ("as coded in that package, which calls it approximate", row.get("caveat", "")) if p)
        yield from EgressRow(row["provider"], tiers, row["source"], row["date"], note).prices()
