"""Prices of teachers behind an API: one token in, out, or read from the provider's cache, and the two of batches.

The catalogues disagree about the same model, so the catalogue is part of the sku: `teacher:litellm/o3/in`. Where a price
depends on the hour of the day, so are the hours, and the sku without them names both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from typing import Any

from shoestring.cost.price import Price, known_amount
from shoestring.cost.rows import TeacherRow, told_apart
from shoestring.cost.sources import DATA

_COLUMNS = {
    "in": "usd_per_mtok_input",
    "out": "usd_per_mtok_output",
    "cached": "usd_per_mtok_cache_read",
    "in-batch": "usd_per_mtok_input_batch",
    "out-batch": "usd_per_mtok_output_batch",
}


def load() -> Iterator[tuple[str, Price]]:
    """data/teacher_prices.json: up to five prices a model; a class without a price is left out, never free."""
    data = json.loads((DATA / "teacher_prices.json").read_text(encoding="utf-8"))
    sources = {s["catalogue"]: s for s in data["meta"]["sources"]}
    rows = [_row(row, sources[row["catalogue"]], data["meta"]["built"]) for row in data["prices"]]
    for row in told_apart(rows, date.today().isoformat()):
        yield from row.prices()


def _row(row: dict[str, Any], source: dict[str, str], built: str) -> TeacherRow:
    window = row["window"] or {}
    notes = [row["upstream"] or ""]
    if not row["price_checked"]:
        notes.append("date of the catalogue; the price itself carries none")
    return TeacherRow(
        catalogue=row["catalogue"],
        model=row["model"],
        source=source.get("package") or f"{source['repo']}@{source['commit'][:10]}",
        date=row["price_checked"] or source.get("commit_date") or built,
        usd={kind: known_amount(row.get(column)) for kind, column in _COLUMNS.items()},
        provider=row["provider"],
        hours=hours(window),
        since=window.get("start_date", ""),
        note="; ".join(n for n in notes if n),
    )


def hours(window: dict[str, str]) -> str:
    """{"start_time": "00:30:00Z", "end_time": "16:30:00Z"} → "00:30Z-16:30Z"; "" where a price holds all day."""
    if not {"start_time", "end_time"} <= window.keys():
        return ""
    return "-".join(f"{window[k][:5]}Z" for k in ("start_time", "end_time"))
