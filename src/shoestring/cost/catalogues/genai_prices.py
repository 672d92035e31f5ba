"""pydantic's genai-prices data.json: providers, each with models and dollars a million tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from shoestring.cost.book import is_date, is_hours
from shoestring.cost.catalogues import Ask, Taken, amount, one_price_each, read_json
from shoestring.cost.rows import TeacherRow
from shoestring.cost.sources.teachers import hours
from shoestring.records import UserError

NAME = "genai-prices"
_KEYS = {"in": "input_mtok", "out": "output_mtok", "cached": "cache_read_mtok"}


def fits(path: Path, head: str) -> bool:
    return head.lstrip().startswith("[") and '"models"' in head or "input_mtok" in head


def rows(path: Path, ask: Ask) -> Taken:
    data = read_json(path)
    if isinstance(data, dict):
        data = data.get("providers")
    if not isinstance(data, list) or not all(isinstance(p, dict) for p in data):
        raise UserError(f"{path}: genai-prices is a list of providers; this is not")
    taken, found, unknown = Taken(), [], 0
    for provider in data:
        for model in map(_table, _list(provider.get("models"))):
            prices = model.get("prices")
            for entry in prices if isinstance(prices, list) else [{"prices": prices}]:
                row = _row(str(provider.get("id", "")), model, _table(entry), ask)
                if row is None:
                    unknown += 1
                else:
                    found.append(row)
    one_price_each(found, lambda r: (r.provider, r.model, r.hours, r.since), taken)
    # the same id under two providers is two prices: the provider becomes part of the model's name
    owners: dict[str, set[str]] = {}
    for row in taken.rows:
        owners.setdefault(row.model, set()).add(row.provider)  # type: ignore[union-attr]
    taken.rows = [_apart(row, owners) for row in taken.rows]
    if unknown:
        taken.said.append(f"left out, no price or $0 (unknown, not free): {unknown} prices")
    return taken


def _apart(row: Any, owners: dict[str, set[str]]) -> TeacherRow:
    return replace(row, model=f"{row.provider}/{row.model}") if len(owners[row.model]) > 1 else row


def _row(provider: str, model: dict[str, Any], entry: dict[str, Any], ask: Ask) -> TeacherRow | None:
    """None where a price is unknown, or holds under a condition that is not understood."""
    window = _table(entry.get("constraint"))
    when, since = hours({k: str(v) for k, v in window.items() if k.endswith("_time")}), str(window.get("start_date", ""))
    if window and not (is_hours(when) if when else is_date(since)):
        return None
    usd, notes = {}, []
    for kind, key in _KEYS.items():
        value = _table(entry.get("prices")).get(key)
        if isinstance(value, dict):  # a price that grows with the prompt's length
            tiers = map(_table, _list(value.get("tiers")))
            said = ", ".join(f"from {t.get('start')} tokens ${t.get('price')}" for t in tiers)
            notes.append(f"{key} grows with the prompt: {said}")
            value = value.get("base")
        usd[kind] = amount(value)
    name, checked = str(model.get("id") or ""), str(model.get("prices_checked") or "")
    if usd["in"] is None or usd["out"] is None or not name:
        return None
    day = checked if is_date(checked) else ask.date
    return TeacherRow("genai-prices", name, ask.source, day, usd, provider, when, since, note="; ".join(notes))


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
