"""What a run pays for beside seconds and tokens: its storage, as long as the lease runs, and its result's way out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shoestring.cost.prices import GB, GB_MONTH, PriceBook
from shoestring.cost.provisioned import MONTH_SECONDS, egress_usages, storage_usage
from shoestring.records import Usage
from shoestring.terms import Terms


@dataclass(frozen=True)
class Beside:
    """storage: the sku and the GB that are provisioned as long as the lease runs ("" and 0: none). leaving: (sku, GB) of
    the result's way out, by slices of the provider's tiers."""

    storage: str = ""
    gb: float = 0.0
    leaving: tuple[tuple[str, float], ...] = ()

    @staticmethod
    def of(terms: Terms, book: PriceBook) -> Beside:
        """Of a recipe's keys. Raises UnknownPrice: what cannot be priced cannot be kept under a budget."""
        sku, gb = "", 0.0
        if terms.storage is not None:
            s = terms.storage
            sku, gb = storage_usage(s.provider, s.kind, s.gb, 0.0, book=book).sku, s.gb
        if terms.egress is None:
            return Beside(sku, gb)
        out = egress_usages(terms.egress.provider, terms.egress.gb, book=book)
        return Beside(sku, gb, tuple((u.sku, u.quantity) for u in out))

    def during(self, seconds: Usage) -> list[Usage]:
        """The storage that was provisioned while `seconds` of the lease ran, with their stage, attempt, span and outcome."""
        if not self.storage or seconds.quantity <= 0:
            return []
        start, end = (seconds.start, seconds.end) if seconds.end > seconds.start else (0.0, seconds.quantity)
        amount = self.gb * seconds.quantity / MONTH_SECONDS
        return [replace(seconds, sku=self.storage, quantity=amount, unit=GB_MONTH, start=start, end=end)]

    def out(self, stage: str, attempt: str, at: float) -> list[Usage]:
        """The result's egress, once."""
        return [Usage(sku, gb, GB, stage, attempt, at, at) for sku, gb in self.leaving]
