"""The price book: sku → price with source and date. Offline, `Decimal` throughout, nothing is ever free by accident.

Skus
    `<provider>/<instance>/<region>/<zone or ->/<market>/machine-second`   one machine (not one GPU) for one second
    `this:<provider>/<instance>/<region>/<zone or ->/<market>/machine-second`  this machine, at a comparable's price
    `this/machine-second`                                                  this machine, at the user's rate
    `teacher:<catalogue>/<model>/in|out|cached`                            one token
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Context, Decimal, localcontext
from pathlib import Path

from shoestring.recipe import MachineSpec
from shoestring.records import LEASE, PriceRef, Usage, UserError

SECOND, TOKEN = "second", "token"  # the units that usages of these skus carry
EXACT = Context(prec=60)  # a price an hour over 3600 repeats for ever: 60 digits put the error far below any sum
THIS = "this/" + LEASE


class UnknownPrice(UserError):
    """A sku without a price. It is never taken as zero."""


@dataclass(frozen=True)
class Price:
    """US dollars for one `unit` of something."""

    amount: Decimal
    unit: str
    ref: PriceRef

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


class PriceBook:
    """Prices by sku. `PriceBook.default()` holds what ships; `add` puts in more."""

    def __init__(self, prices: Iterable[tuple[str, Price]] = ()) -> None:
        self._prices: dict[str, Price] = dict(prices)
        self._lazy = False

    @classmethod
    def default(cls) -> PriceBook:
        """The shipped prices: every module in cost/sources, read when the first price is asked for."""
        book = cls()
        book._lazy = True
        return book

    def _all(self) -> dict[str, Price]:
        if self._lazy:
            self._lazy = False
            own = self._prices
            self._prices = dict(shipped()) | own
        return self._prices

    def add(self, sku: str, price: Price) -> None:
        """Put a price in; it replaces one that is there."""
        self._prices[sku] = price

    def price(self, sku: str) -> Price:
        """Raises UnknownPrice, naming the nearest sku that has one."""
        found = self._prices.get(sku) or self._all().get(sku)
        if found is None:
            raise UnknownPrice(f'no price is known for "{sku}"{_nearest(sku, self._all())}')
        return found

    def __contains__(self, sku: str) -> bool:
        return sku in self._prices or sku in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def cost(self, usages: Iterable[Usage]) -> Decimal:
        """Dollars of these usages, exact. Raises UnknownPrice, and ValueError where a usage's unit is not its price's."""
        with localcontext(EXACT):
            return sum((quantity(u) * self.unit_price(u) for u in usages), Decimal(0))

    def unit_price(self, usage: Usage) -> Decimal:
        """Dollars for one unit of this usage (see `cost` for the errors)."""
        price = self.price(usage.sku)
        if price.unit != usage.unit:
            raise ValueError(f'usage of "{usage.sku}" in {usage.unit!r}, but its price is for one {price.unit!r}')
        return price.amount

    def machine_sku(self, spec: MachineSpec, rate: Decimal | None = None, today: str | None = None) -> str:
        """The sku that prices one second of one machine of `spec` (for `spec.count` machines post count × seconds).

        "this" is priced by `rate` (dollars an hour), else by the shipped comparable. A rented machine needs exactly one
        price: rows of several zones with different prices are an error that lists them. Raises UserError.
        """
        if spec.kind == "this":
            return self._this(rate, today)
        offers = self._offers(spec.provider.lower())
        if not offers:
            raise UserError(f'unknown provider "{spec.provider}"{_nearest(spec.provider, self._providers())}'
                            f" (known: {', '.join(self._providers())})")  # fmt: skip
        rows = [o for o in offers if o.instance.lower() == spec.sku.lower()]
        if not rows:
            raise UserError(_unknown_machine(spec, offers))
        region, _, zone = spec.region.partition("/")
        here = [o for o in rows if region in ("", o.region) and zone in ("", o.zone)]
        if not here:
            places = ", ".join(sorted({o.region for o in rows} if not zone else {o.place for o in rows}))
            raise UserError(f"no price is known for {spec.provider} {spec.sku} in {spec.region}; there are: {places}")
        priced = [o for o in here if o.market == spec.market]
        if not priced:
            others = ", ".join(sorted({f"{o.market} at {_hourly(o.price)}" for o in here}))
            raise UnknownPrice(f"no {spec.market} price is known for {spec.provider} {spec.sku}"
                               f"{' in ' + spec.region if spec.region else ''}; known: {others}")  # fmt: skip
        if len({o.price.amount for o in priced}) > 1:
            listed = ", ".join(f"{o.place} {_hourly(o.price)}" for o in sorted(priced, key=lambda o: o.price.amount))
            raise UserError(f"{spec.provider} {spec.sku} ({spec.market}) has more than one price; "
                            f'choose with region = "…": {listed}')  # fmt: skip
        return min(priced, key=lambda o: o.sku).sku

    def _this(self, rate: Decimal | None, today: str | None) -> str:
        if rate is not None:
            ref = PriceRef("user's rate", today or date.today().isoformat(), f"{rate} USD an hour, from the recipe")
            self.add(THIS, Price(per_second(rate), SECOND, ref))
            return THIS
        for sku in self._all():
            if sku.startswith("this:"):
                return sku
        raise UnknownPrice('no comparable machine ships; give rate = "0.10 USD/hour"')

    def _offers(self, provider: str) -> list[_Offer]:
        made = []
        for sku, price in self._all().items():
            parts = sku.split("/")
            if len(parts) == 6 and parts[5] == LEASE and parts[0] == provider:
                made.append(_Offer(sku, parts[1], parts[2], parts[3], parts[4], price))
        return made

    def _providers(self) -> list[str]:
        heads = (sku.split("/") for sku in self._all())
        return sorted({p[0] for p in heads if len(p) == 6 and p[5] == LEASE and ":" not in p[0]})


@dataclass(frozen=True)
class _Offer:
    sku: str
    instance: str
    region: str
    zone: str
    market: str
    price: Price

    @property
    def place(self) -> str:
        return self.region if self.zone == "-" else f"{self.region}/{self.zone}"


def machine_id(provider: str, instance: str, region: str, zone: str, market: str) -> str:
    """The part of a machine's sku before "/machine-second". Blank fields become "-"."""
    return "/".join(part.strip().replace("/", "_") or "-" for part in (provider, instance, region, zone, market))


def shipped() -> Iterator[tuple[str, Price]]:
    """Every price of every module in cost/sources. A new file there is picked up without an edit here."""
    for file in sorted((Path(__file__).parent / "sources").glob("[!_]*.py")):
        yield from importlib.import_module(f"shoestring.cost.sources.{file.stem}").load()


def quantity(usage: Usage) -> Decimal:
    """The quantity in `Decimal`, by its shortest decimal spelling. Raises ValueError for nan, inf and negatives."""
    value = Decimal(repr(float(usage.quantity)))
    if not value.is_finite() or value < 0:
        raise ValueError(f"usage of {usage.sku} with quantity {usage.quantity!r}")
    return value


def _unknown_machine(spec: MachineSpec, offers: list[_Offer]) -> str:
    # a user who writes the GPU's name instead of the instance's is helped too: names and GPUs are compared
    names = sorted({o.instance for o in offers})
    wanted = spec.sku.lower()
    gpus = sorted({o.instance for o in offers if wanted in o.price.ref.note.lower().replace("-", "")
                   or wanted in o.price.ref.note.lower()})  # fmt: skip
    near = difflib.get_close_matches(spec.sku, names, n=3, cutoff=0.4) or gpus[:4] or names[:4]
    return f'unknown machine "{spec.sku}" of {spec.provider}; nearest: {", ".join(near)}'


def _hourly(price: Price) -> str:
    return f"${(price.amount * 3600).quantize(Decimal('0.0001')).normalize():f}/h"


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else ""
