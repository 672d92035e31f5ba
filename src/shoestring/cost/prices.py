"""The price book: sku → price with source and date. Offline, `Decimal` throughout, nothing is ever free by accident.

Skus
    `<provider>/<instance>/<region>/<zone or ->/<market>/machine-second`   one machine (not one GPU) for one second
    `<provider>@<date>/…/machine-second`                                   the same at another date's price
    `this:<provider>/<instance>/<region>/<zone or ->/<market>/machine-second`  this machine, at a comparable's price
    `this/machine-second`                                                  this machine, at the user's rate
    `teacher:<catalogue>/<model>/in|out|cached|in-batch|out-batch`         one token; `@…` after it: at some hours only
    `storage:<provider>/<kind>`                                            one GB, provisioned for one month of 730 h
    `egress:<provider>/<from>-<to>`                                        one GB out, the from-th to the to-th of a month

A user's own book (cost/book.py) goes before what ships, and each price that it replaces is named in its reference.
"""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal, localcontext
from pathlib import Path

from shoestring.cost.price import (
    EXACT,
    SECOND,
    THIS,
    AmbiguousPrice,
    Conflict,
    MachineFacts,
    Offer,
    Price,
    UnknownPrice,
    covers,
    hourly,
    is_gpu,
    per_hour,
    per_second,
    shown,
)
from shoestring.cost.price import GB as GB
from shoestring.cost.price import GB_MONTH as GB_MONTH
from shoestring.cost.price import TOKEN as TOKEN
from shoestring.cost.price import known_amount as known_amount
from shoestring.recipe import MachineSpec
from shoestring.records import LEASE, PriceRef, Usage, UserError

OWN_BOOK = "SHOESTRING_PRICES"  # the environment variable that names the user's own book


class PriceBook:
    """Prices by sku. `PriceBook.default()` holds what ships; `add` puts in more."""

    def __init__(self, prices: Iterable[tuple[str, Price]] = ()) -> None:
        self._prices: dict[str, Price] = dict(prices)
        self._lazy = False
        self._own: dict[str, Price] = {}  # the user's book, waiting for the shipped prices that it replaces
        self.clashes: dict[str, tuple[Price, ...]] = {}  # sku → its prices, where two sources gave it different ones
        self.replaced: dict[str, tuple[Price, ...]] = {}  # sku → what shipped, where the user's book took its place
        self.rate: Decimal | None = None

    @classmethod
    def default(cls, user: Path | None = None, rate: Decimal | None = None) -> PriceBook:
        """The shipped prices: every module in cost/sources, read when the first price is asked for.

        `user` is the user's own book, else the file that SHOESTRING_PRICES names: it is read at once, so that its
        mistakes are told first. `rate` prices `machine = "this"`, in dollars an hour. Raises UserError.
        """
        book = cls()
        book._lazy = True
        book.rate = rate
        if user is None and (named := os.environ.get(OWN_BOOK)):
            user = Path(named)
        if user is not None:
            from shoestring.cost import book as own  # tomllib and the tables are needed only here

            book._own = own.read(user)
        return book

    def _all(self) -> dict[str, Price]:
        if self._lazy:
            self._lazy = False
            added, self._prices = self._prices, {}
            for sku, price in shipped():
                self._ship(sku, price)
            for sku, price in self._own.items():
                self._replace(sku, price)
            self._prices |= added
        return self._prices

    def _ship(self, sku: str, price: Price) -> None:
        """Two sources may agree about a sku; where they do not, both prices are kept and a look-up names both."""
        known = self._prices.setdefault(sku, price)
        if known.amount != price.amount or known.unit != price.unit:
            before = self.clashes.get(sku, (known,))
            if all(p.amount != price.amount for p in before):
                self.clashes[sku] = (*before, price)

    def _replace(self, sku: str, price: Price) -> None:
        """The user's price of a sku in place of what ships of it, which its note names."""
        covered = [s for s in self._prices if (s == sku or s not in self._own) and covers(sku, price, s, self._prices[s])]
        old = [p for s in covered for p in self.clashes.pop(s, None) or (self._prices[s],)]
        for shipped_sku in covered:
            del self._prices[shipped_sku]
        if old:
            said = list(dict.fromkeys(f"{shown(p)} ({p.ref.source}, {p.ref.date})" for p in old))
            more = f" and {len(said) - 3} more" if len(said) > 3 else ""
            words = f"in place of the shipped {', '.join(said[:3])}{more}"
            note = "; ".join(part for part in (price.ref.note, words) if part)
            price = replace(price, ref=replace(price.ref, note=note))
            self.replaced[sku] = tuple(old)
        self._prices[sku] = price

    def add(self, sku: str, price: Price) -> None:
        """Put a price in; it replaces one that is there."""
        self._prices[sku] = price
        self.clashes.pop(sku, None)

    def price(self, sku: str) -> Price:
        """Raises UnknownPrice, naming the nearest sku that has one, and AmbiguousPrice, naming the prices."""
        found = self._prices.get(sku) or self._all().get(sku)
        if sku in self.clashes:
            said = " and ".join(f"{shown(p)} ({p.ref.source}, {p.ref.date})" for p in self.clashes[sku])
            raise AmbiguousPrice(f'"{sku}" has more than one price: {said}; put the right one into your own book (--prices)')
        if found is None:
            if near := self._same_thing(sku):
                listed = ", ".join(f'"{s}" {shown(self._prices[s])}' for s in near)
                raise AmbiguousPrice(f'"{sku}" does not say which price: {listed}')
            raise UnknownPrice(f'no price is known for "{sku}"{_nearest(sku, self._all())}')
        return found

    def _same_thing(self, sku: str) -> list[str]:
        """Skus that a shorter one may mean: a teacher without its catalogue, or without the hours of its price."""
        if not sku.startswith("teacher:"):
            return []
        hours = [s for s in self._prices if s.startswith(sku + "@")]
        model = sku.removeprefix("teacher:")
        return sorted(hours) or sorted(
            s for s in self._prices if s.startswith("teacher:") and s.partition("/")[2].partition("@")[0] == model
        )

    def machine_facts(self, sku: str) -> MachineFacts:
        """What machine a machine-second is of. Raises UnknownPrice, and UserError where the sku is no machine's."""
        facts = _facts(sku, self.price(sku))
        if facts is None:
            raise UserError(f'"{sku}" is not a machine; `shoestring prices` lists the machines')
        return facts

    def offers(self, gpu: str = "", market: str = "", provider: str = "", region: str = "") -> list[Offer]:
        """Machines for rent at today's prices, the cheapest GPU-hour first, machines without GPUs last.

        `gpu`: a name ("H100") or a family's ("A100" finds both memories); `region` may carry a zone ("us-east-1/az4").
        Words are compared without regard to case. Rows of other dates and "this" are left out.
        """
        found = []
        place, _, zone = region.lower().partition("/")
        for sku, price in self._all().items():
            facts = _facts(sku, price)
            if facts is None or sku in self.clashes or facts.provider.partition(":")[0] == "this" or "@" in facts.provider:
                continue
            if (
                is_gpu(gpu, facts.gpu)
                and market.lower() in ("", facts.market.lower())
                and provider.lower() in ("", facts.provider.lower())
                and place in ("", facts.region.lower())
                and zone in ("", facts.zone.lower())
            ):
                usd = per_hour(price)
                each = EXACT.divide(usd, Decimal(facts.gpus)) if facts.gpus else None
                found.append(Offer(sku, facts, usd, each, price.ref))
        far = Decimal("Infinity")
        return sorted(found, key=lambda o: (far if o.usd_per_gpu_hour is None else o.usd_per_gpu_hour, o.usd_per_hour, o.sku))

    def conflicts(self) -> list[Conflict]:
        """The same thing at two prices, each shown with its source: see `Conflict`."""
        from shoestring.cost import conflicts

        return conflicts.find(self._all(), self.clashes, self.replaced)

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

        "this" is priced by `rate` (dollars an hour; the recipe's, else the book's), else by the user's own book, else by
        the shipped comparable. A rented machine needs exactly one
        price: rows of several zones with different prices are an error that lists them. Raises UserError.
        """
        if spec.kind == "this":
            return self._this(self.rate if rate is None else rate, today)
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
            others = ", ".join(sorted({f"{o.market} at {hourly(o.price)}" for o in here}))
            raise UnknownPrice(f"no {spec.market} price is known for {spec.provider} {spec.sku}"
                               f"{' in ' + spec.region if spec.region else ''}; known: {others}")  # fmt: skip
        if len({o.price.amount for o in priced}) > 1:
            listed = ", ".join(f"{o.place} {hourly(o.price)}" for o in sorted(priced, key=lambda o: o.price.amount))
            raise UserError(f"{spec.provider} {spec.sku} ({spec.market}) has more than one price; "
                            f'choose with region = "…": {listed}')  # fmt: skip
        return min(priced, key=lambda o: o.sku).sku

    def _this(self, rate: Decimal | None, today: str | None) -> str:
        if rate is not None:
            ref = PriceRef("user's rate", today or date.today().isoformat(), f"{rate} USD an hour, from the recipe")
            facts = MachineFacts("this", "", "", "", "", ondemand_usd_per_hour=rate)
            self.add(THIS, Price(per_second(rate), SECOND, ref, facts))
            return THIS
        if THIS in self._all():
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
        return sorted({p[0] for p in heads if len(p) == 6 and p[5] == LEASE and ":" not in p[0] and "@" not in p[0]})


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


def _facts(sku: str, price: Price) -> MachineFacts | None:
    """The machine of a sku: as its source says, else as the sku itself does; None where it is no machine's."""
    if price.machine is not None or not sku.endswith("/" + LEASE):
        return price.machine
    parts = sku.split("/")[:-1]
    if len(parts) != 5:
        return MachineFacts(parts[0], "", "", "", "")
    region, zone = ("" if p == "-" else p for p in parts[2:4])
    usd = per_hour(price)
    spot = parts[4] == "spot"
    return MachineFacts(parts[0], parts[1], region, zone, parts[4],
                        ondemand_usd_per_hour=None if spot else usd, spot_usd_per_hour=usd if spot else None)  # fmt: skip


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


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else ""
