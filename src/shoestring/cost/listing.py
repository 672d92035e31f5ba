"""The price book as plain data: the rows that `shoestring prices` shows and prints as JSON. Amounts are decimal strings."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

from shoestring.cost.price import SECOND, TOKEN, Price, per_hour
from shoestring.cost.prices import PriceBook
from shoestring.records import PriceRef

WIDE_DAYS = 92  # a price known only to an interval longer than a quarter is of low confidence


def low_confidence(ref: PriceRef) -> bool:
    first, _, last = ref.date.partition("..")
    try:
        return bool(last) and (date.fromisoformat(last) - date.fromisoformat(first)).days > WIDE_DAYS
    except ValueError:
        return True


def machine_rows(book: PriceBook, gpu: str, market: str, provider: str, region: str) -> list[dict[str, Any]]:
    return [
        {
            "sku": o.sku,
            "provider": o.facts.provider,
            "instance": o.facts.instance,
            "region": o.facts.region,
            "zone": o.facts.zone,
            "market": o.facts.market,
            "gpu": o.facts.gpu,
            "gpus": o.facts.gpus,
            "gpu_memory_gib": o.facts.gpu_memory_gib,
            "vcpus": o.facts.vcpus,
            "memory_gib": o.facts.memory_gib,
            "usd_per_hour": _text(o.usd_per_hour),
            "usd_per_gpu_hour": None if o.usd_per_gpu_hour is None else _text(o.usd_per_gpu_hour, 6),
            **_ref(o.ref),
        }
        for o in book.offers(gpu, market, provider, region)
    ]


def this_row(book: PriceBook, sku: str) -> dict[str, Any]:
    price = book.price(sku)
    return {"sku": sku, "usd_per_hour": _text(per_hour(price)), **_ref(price.ref)}


def unit_rows(book: PriceBook, head: str, provider: str = "") -> list[dict[str, Any]]:
    """Teachers (dollars a million tokens), storage (a GB-month) and egress (a GB), by sku."""
    made = []
    for sku in sorted(s for s in book if s.startswith(head)):
        for price in book.clashes.get(sku) or (book.price(sku),):
            row = _unit(sku, price)
            owner = price.ref.note.partition(";")[0].removeprefix("provider ") if head == "teacher:" else _owner(sku)
            if provider.lower() in ("", owner.lower()):
                made.append({"sku": sku, "provider": owner, **row})
    return made


def conflict_rows(book: PriceBook) -> list[dict[str, Any]]:
    return [
        {"kind": c.kind, "what": c.what, "prices": [{"sku": sku, **_unit(sku, price)} for sku, price in c.prices]}
        for c in book.conflicts()
    ]


def _unit(sku: str, price: Price) -> dict[str, Any]:
    if price.unit == SECOND:
        usd, per = per_hour(price), "machine-hour"
    elif price.unit == TOKEN:
        usd, per = price.amount * 1_000_000, "1M tokens"
    else:
        usd, per = price.amount, price.unit
    return {"usd": _text(usd), "per": per, **_ref(price.ref)}


def _owner(sku: str) -> str:
    return sku.partition(":")[2].partition("/")[0]


def _ref(ref: PriceRef) -> dict[str, Any]:
    return {"source": ref.source, "date": ref.date, "low_confidence": low_confidence(ref), "note": ref.note}


def _text(usd: Decimal, places: int = 12) -> str:
    text = f"{usd:.{places}f}"
    return text.rstrip("0").rstrip(".")
