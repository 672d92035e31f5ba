"""Prices of teachers behind an API: one token in, out, or read from the provider's cache.

The catalogues disagree about the same model, so the catalogue is part of the sku: `teacher:litellm/o3/in`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from shoestring.cost.prices import EXACT, TOKEN, Price, known_amount
from shoestring.cost.sources import DATA
from shoestring.records import PriceRef

_MILLION = Decimal(1_000_000)
_COLUMNS = {"in": "usd_per_mtok_input", "out": "usd_per_mtok_output", "cached": "usd_per_mtok_cache_read"}


def load() -> Iterator[tuple[str, Price]]:
    """data/teacher_prices.json: up to three prices a model; a class without a price is left out, never free."""
    with (DATA / "teacher_prices.json").open(encoding="utf-8") as f:
        data = json.load(f)
    sources = {s["catalogue"]: s for s in data["meta"]["sources"]}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in data["prices"]:
        key = (row["catalogue"], row["model"])
        rows[key] = _prefer(rows[key], row) if key in rows else row
    for (catalogue, model), row in rows.items():
        source = sources[catalogue]
        where = source.get("package") or f"{source['repo']}@{source['commit'][:10]}"
        ref = PriceRef(where, row["price_checked"] or source.get("commit_date") or data["meta"]["built"], _note(row))
        for kind, column in _COLUMNS.items():
            amount = known_amount(row[column])
            if amount is not None:
                yield f"teacher:{catalogue}/{model}/{kind}", Price(EXACT.divide(amount, _MILLION), TOKEN, ref)


def _prefer(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Of two rows of a model: the one that took effect later, else the dearer. A price by the hour of the day must
    not let a run spend past its budget because it ran at another hour."""
    starts = [(r["window"] or {}).get("start_date", "") for r in (one, other)]
    if starts[0] != starts[1]:
        return one if starts[0] > starts[1] else other
    dear = [Decimal(r["usd_per_mtok_output"] or 0) for r in (one, other)]
    return one if dear[0] >= dear[1] else other


def _note(row: dict[str, Any]) -> str:
    parts = [f"provider {row['provider']}"]
    if row["upstream"]:
        parts.append(row["upstream"])
    if window := row["window"]:
        parts.append("window " + ", ".join(f"{k} {v}" for k, v in window.items()))
    if not row["price_checked"]:
        parts.append("date of the catalogue; the price itself carries none")
    return "; ".join(parts)
