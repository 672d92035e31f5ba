"""One price, what it is for, and the arithmetic around it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal, localcontext

from shoestring.records import LEASE, PriceRef, UserError

SECOND, TOKEN, GB_MONTH, GB = "second", "token", "gb-month", "gb"  # the units that usages of these skus carry
EXACT = Context(prec=60)  # a price an hour over 3600 repeats for ever: 60 digits put the error far below any sum
THIS = "this/" + LEASE


class UnknownPrice(UserError):
    """A sku without a price. It is never taken as zero."""


class AmbiguousPrice(UnknownPrice):
    """A sku with more than one price. None is picked: the message names them all."""


@dataclass(frozen=True)
class MachineFacts:
    """What a machine's sku stands for. Memory is GiB: of one GPU, and of the host. 0 and "" where a source does not say;
    a machine without GPUs has gpu "" and gpus 0. The two prices are dollars an hour of the whole machine in this
    zone, None where unknown."""

    provider: str
    instance: str
    region: str
    zone: str
    market: str
    gpu: str = ""
    gpus: int = 0
    gpu_memory_gib: float = 0.0
    vcpus: int = 0
    memory_gib: float = 0.0
    ondemand_usd_per_hour: Decimal | None = None
    spot_usd_per_hour: Decimal | None = None


@dataclass(frozen=True)
class Price:
    """US dollars for one `unit` of something. `machine`: for a machine's second, which machine that is."""

    amount: Decimal
    unit: str
    ref: PriceRef
    machine: MachineFacts | None = None

    def __post_init__(self) -> None:
        if not self.amount.is_finite() or self.amount <= 0:
            raise ValueError(f"a price must be above zero, not {self.amount}: leave an unknown one out")


def per_second(usd_per_hour: Decimal) -> Decimal:
    """Dollars an hour → dollars a second, to 60 digits."""
    return EXACT.divide(usd_per_hour, Decimal(3600))


def known_amount(text: str | None) -> Decimal | None:
    """A catalogue's number, or None where it is blank or $0: catalogues write both for "we do not know"."""
    if text is None or not (text := str(text).strip()):
        return None
    amount = Decimal(text)
    return amount if amount > 0 else None


@dataclass(frozen=True)
class Offer:
    """A machine for rent. `usd_per_hour` is the whole machine's; `usd_per_gpu_hour` is None for one without GPUs."""

    sku: str
    facts: MachineFacts
    usd_per_hour: Decimal
    usd_per_gpu_hour: Decimal | None
    ref: PriceRef


@dataclass(frozen=True)
class Conflict:
    """One thing with two or more prices, none of them picked. `kind`: "sources" (two sources or catalogues disagree
    about the same sku or model), "hours" (the price depends on the hour of the day), "date" (it changed), "own" (the
    user's book replaces what ships)."""

    kind: str
    what: str
    prices: tuple[tuple[str, Price], ...]


def is_gpu(wanted: str, gpu: str) -> bool:
    """Whether `wanted` names this GPU or its family; "" is any."""
    a, b = wanted.lower().replace(" ", "-"), gpu.lower()
    return not a or a == b or b.startswith(a + "-")


def covers(sku: str, price: Price, other: str, shipped: Price) -> bool:
    """Whether a user's price takes the place of a shipped one: the same sku; a machine in all zones of a region, or in
    all regions, where the user names none; all egress tiers of a provider, which make sense only together."""
    if sku == other:
        return True
    if sku.startswith("egress:"):
        return other.startswith(sku.rpartition("/")[0] + "/")
    mine, theirs = price.machine, shipped.machine
    if mine is None or theirs is None or mine.zone or not mine.instance:
        return False
    return (mine.provider, mine.instance.lower(), mine.market) == (
        theirs.provider,
        theirs.instance.lower(),
        theirs.market,
    ) and (mine.region in ("", theirs.region))


def shown(price: Price) -> str:
    """A price as people quote it: "$31.92/h", "$2/1M tokens", "$0.08/GB-month"."""
    if price.unit == SECOND:
        return hourly(price)
    each, per = (price.amount * 1_000_000, "1M tokens") if price.unit == TOKEN else (price.amount, price.unit)
    return f"${each.normalize():f}/{per.replace('gb', 'GB')}"


def per_hour(price: Price) -> Decimal:
    """Dollars an hour of a price a second, as its source wrote it: what 60 digits of a division lost is put back."""
    with localcontext(EXACT):
        exact = price.amount * 3600
        return Decimal(f"{exact.quantize(Decimal('1e-40')).normalize():f}")


def hourly(price: Price) -> str:
    return f"${per_hour(price).quantize(Decimal('0.0001')).normalize():f}/h"
