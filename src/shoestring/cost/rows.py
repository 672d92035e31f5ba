"""What catalogues and users state, one row a thing, and the prices that a row gives.

Every source, importer and book makes these rows; the spelling of skus is decided here and nowhere else. Amounts are
dollars as the source writes them: an hour, a million tokens, a GB-month, a GB. An unknown one is None, never zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from shoestring.cost.price import EXACT, GB, GB_MONTH, SECOND, THIS, TOKEN, MachineFacts, Price, per_second
from shoestring.records import LEASE, PriceRef

TOKEN_KINDS = ("in", "out", "cached", "in-batch", "out-batch")
_MILLION = Decimal(1_000_000)


@dataclass(frozen=True)
class MachineRow:
    """A machine in one zone. `gpu_memory_gib` is one GPU's. `spot_remark` says what a spot price that is one really is."""

    provider: str
    instance: str
    source: str
    date: str  # a day, or "from..to" where only an interval is known
    region: str = ""
    zone: str = ""
    gpu: str = ""
    gpus: int = 0
    gpu_memory_gib: float = 0.0
    vcpus: int = 0
    memory_gib: float = 0.0
    ondemand: Decimal | None = None
    spot: Decimal | None = None
    note: str = ""
    spot_remark: str = ""

    def prices(self) -> Iterator[tuple[str, Price]]:
        for market, usd, remark in (("on-demand", self.ondemand, ""), ("spot", self.spot, self.spot_remark)):
            if usd is None:
                continue
            what = f" ({self.gpus}x {self.gpu})" if self.gpus else ""
            where = " ".join(p for p in ("/".join(p for p in (self.region, self.zone) if p), market) if p)
            note = "; ".join(p for p in (f"{self.provider} {self.instance}{what} {where}, ${usd:f}/h", self.note, remark) if p)
            facts = MachineFacts(
                self.provider.lower(), self.instance, self.region, self.zone, market, self.gpu, self.gpus,
                self.gpu_memory_gib, self.vcpus, self.memory_gib, self.ondemand, self.spot,
            )  # fmt: skip
            place = machine_id(self.provider.lower(), self.instance, self.region, self.zone, market)
            yield f"{place}/{LEASE}", Price(per_second(usd), SECOND, PriceRef(self.source, self.date, note), facts)


@dataclass(frozen=True)
class TeacherRow:
    """A model behind an API: dollars a million tokens by kind (TOKEN_KINDS). `hours` ("00:30Z-16:30Z") is where the price
    depends on the hour of the day, `since` the day from which it holds."""

    catalogue: str
    model: str
    source: str
    date: str
    usd: Mapping[str, Decimal | None] = field(default_factory=dict)
    provider: str = ""
    hours: str = ""
    since: str = ""
    before: str = ""  # the price held until that day
    note: str = ""

    def prices(self) -> Iterator[tuple[str, Price]]:
        when = self.hours or (f"before-{self.before}" if self.before else "")
        told = (
            f"provider {self.provider}" if self.provider else "",
            f"at the hours {self.hours} UTC" if self.hours else "",
            f"since {self.since}" if self.since else "",
            f"until {self.before}" if self.before else "",
            self.note,
        )
        ref = PriceRef(self.source, self.date, "; ".join(t for t in told if t))
        for kind in TOKEN_KINDS:
            usd = self.usd.get(kind)
            if usd is not None:
                sku = f"teacher:{self.catalogue}/{self.model}/{kind}" + (f"@{when}" if when else "")
                yield sku, Price(EXACT.divide(usd, _MILLION), TOKEN, ref)


@dataclass(frozen=True)
class StorageRow:
    """A kind of disk: dollars for a GB provisioned over a month. `at_least_gb`: for volumes of that size and larger."""

    provider: str
    kind: str
    usd: Decimal
    source: str
    date: str
    at_least_gb: int = 0
    note: str = ""

    def prices(self) -> Iterator[tuple[str, Price]]:
        size = f"@{self.at_least_gb}gb" if self.at_least_gb else ""
        yield (
            f"storage:{self.provider.lower()}/{self.kind}{size}",
            Price(self.usd, GB_MONTH, PriceRef(self.source, self.date, self.note)),
        )


@dataclass(frozen=True)
class EgressRow:
    """Traffic to the internet: (up to this many GB of a month, dollars a GB), ascending, the last one without end.

    A slice at $0 is a free allowance or an unknown price. It is not taken as free: an allowance belongs to the whole
    account and may be used up, so its GB are priced as the next slice's, the most that they can cost. Where nothing
    follows, the price is unknown and there is none.
    """

    provider: str
    tiers: Sequence[tuple[int | None, Decimal | None]]
    source: str
    date: str
    note: str = ""

    def prices(self) -> Iterator[tuple[str, Price]]:
        start, free = 0, 0
        for end, usd in self.tiers:
            if usd is None:
                free = end or 0
                continue
            said = f"the GB up to {free} may be free of charge and are priced as what follows" if free > start else ""
            ref = PriceRef(self.source, self.date, "; ".join(p for p in (said, self.note) if p))
            yield f"egress:{self.provider.lower()}/{start}-{'' if end is None else end}", Price(usd, GB, ref)
            start = end or 0


@dataclass(frozen=True)
class ThisRow:
    """What an hour of the user's own machine costs them."""

    usd: Decimal
    source: str
    date: str
    note: str = ""

    def prices(self) -> Iterator[tuple[str, Price]]:
        facts = MachineFacts("this", "", "", "", "", ondemand_usd_per_hour=self.usd)
        note = "; ".join(p for p in (f"this machine, ${self.usd:f}/h", self.note) if p)
        yield THIS, Price(per_second(self.usd), SECOND, PriceRef(self.source, self.date, note), facts)


Row = MachineRow | TeacherRow | StorageRow | EgressRow | ThisRow


def machine_id(provider: str, instance: str, region: str, zone: str, market: str) -> str:
    """The part of a machine's sku before "/machine-second". Blank fields become "-"."""
    return "/".join(part.strip().replace("/", "_") or "-" for part in (provider, instance, region, zone, market))


def told_apart(rows: Iterable[TeacherRow], today: str) -> Iterator[TeacherRow]:
    """Rows of one model of one catalogue get skus of their own.

    By date: the one in effect on `today` keeps the plain sku, an older one ends where the next begins, a later one is
    left out. By the hour: a row without hours beside one with hours holds for the rest of the day.
    """
    groups: dict[tuple[str, str], list[TeacherRow]] = {}
    for row in rows:
        groups.setdefault((row.catalogue, row.model), []).append(row)
    for group in groups.values():
        windows = [r.hours for r in group if r.hours]
        rest = "-".join(reversed(windows[0].split("-"))) if len(windows) == 1 else "other hours" if windows else ""
        dated = sorted((r for r in group if not r.hours and r.since <= today), key=lambda r: r.since)
        for now, after in zip(dated, [*dated[1:], None], strict=True):
            yield replace(now, hours=rest) if after is None else replace(now, before=after.since)
        yield from (r for r in group if r.hours)
