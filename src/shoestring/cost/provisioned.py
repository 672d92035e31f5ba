"""Storage and traffic as clouds bill them: a disk by the size that was ordered, for as long as it exists, used or not;
traffic to the internet by the GB, dearer or cheaper slice by slice of a month."""

from __future__ import annotations

import math

from shoestring.cost.price import GB, GB_MONTH, UnknownPrice
from shoestring.cost.prices import PriceBook
from shoestring.records import Usage, UserError

MONTH_HOURS = 730  # of a GB-month: 365 days * 24 h / 12, the month of the clouds' price lists
MONTH_SECONDS = MONTH_HOURS * 3600


def storage_usage(
    provider: str, kind: str, gb: float, seconds: float, stage: str = "", attempt: str = "", start: float = 0.0,
    book: PriceBook | None = None,
) -> Usage:  # fmt: skip
    """`gb` provisioned for `seconds`, in GB-months of 730 hours: 100 GB for 16 h are 2.19, not 100.

    Where volumes from some size on have another price (`storage:runpod/network_volume@1000gb`), the sku says so; `book`
    (else the default one) is asked which sizes there are. Raises UserError for a size or a time that is none, and
    UnknownPrice where the book has no such storage.
    """
    if not (math.isfinite(gb) and gb >= 0 and math.isfinite(seconds) and seconds >= 0):
        raise UserError(f"storage {provider}/{kind}: {gb} GB for {seconds} s is not an amount; give both at or above zero")
    sku = f"storage:{provider.lower()}/{kind}"
    book = PriceBook.default() if book is None else book
    sizes = [(_size(s), s) for s in book if s.startswith(sku + "@")]
    sku = max(((least, s) for least, s in sizes if least <= gb), default=(0, sku))[1]
    if sku not in book:
        known = sorted(s.removeprefix("storage:") for s in book if s.startswith("storage:") and "@" not in s)
        raise UnknownPrice(f"no price is known for storage {provider}/{kind}; known: {', '.join(known) or 'none'}")
    return Usage(sku, gb * seconds / MONTH_SECONDS, GB_MONTH, stage, attempt, start, start + seconds)


def egress_usages(
    provider: str, gb: float, used_gb: float = 0.0, stage: str = "", attempt: str = "", book: PriceBook | None = None,
) -> list[Usage]:  # fmt: skip
    """`gb` out to the internet, spread over the provider's tiers, one usage a tier. `used_gb` went out before in this
    month. GB below or between the priced tiers are priced as the next one: a catalogue's $0 is unknown, not free.
    Raises UserError for an amount that is none and UnknownPrice for a provider without prices."""
    if not all(math.isfinite(x) and x >= 0 for x in (gb, used_gb)):
        raise UserError(f"egress of {provider}: {gb} GB after {used_gb} GB is not an amount; give both at or above zero")
    book = PriceBook.default() if book is None else book
    tiers = sorted(_tier(s) for s in book if s.startswith(f"egress:{provider.lower()}/"))
    if not tiers:
        known = sorted({s.removeprefix("egress:").partition("/")[0] for s in book if s.startswith("egress:")})
        raise UnknownPrice(f"no price is known for egress of {provider}; known: {', '.join(known) or 'none'}")
    made, at = [], used_gb
    for _, high, sku in tiers:
        part = min(used_gb + gb, high) - at
        if part > 0:
            made.append(Usage(sku, part, GB, stage, attempt))
            at += part
    if used_gb + gb > tiers[-1][1]:
        raise UnknownPrice(f"no price is known for egress of {provider} above {tiers[-1][1]:g} GB a month")
    return made


def _size(sku: str) -> int:
    return int(sku.rpartition("@")[2].removesuffix("gb"))


def _tier(sku: str) -> tuple[float, float, str]:
    low, _, high = sku.rpartition("/")[2].partition("-")
    return float(low), float(high) if high else math.inf, sku
