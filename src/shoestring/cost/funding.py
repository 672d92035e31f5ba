"""Who pays. Free credits and grants are a source of money, not a discount: what a run costs stays what it costs, and a
bill shows credits apart, after the total."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext

from shoestring.cost.price import EXACT
from shoestring.recipe import parse_money
from shoestring.records import UserError

CASH = "cash"


@dataclass(frozen=True)
class Credit:
    """`amount` US dollars that `source` gives, such as "cloud start-up credits"."""

    source: str
    amount: Decimal

    def __post_init__(self) -> None:
        if not self.source.strip() or self.source == CASH:
            raise UserError(f'credits need a name of their own, not "{self.source}"')
        if not self.amount.is_finite() or self.amount <= 0:
            raise UserError(f"credits of {self.source} must be above zero, not {self.amount}")


@dataclass(frozen=True)
class Funding:
    """One source's share of a total. `left`: what remains of a credit; None for cash."""

    source: str
    amount: Decimal
    left: Decimal | None = None


def funding(total: Decimal, credits: Sequence[Credit]) -> list[Funding]:
    """Spend `credits` in their order, the rest is cash; the amounts sum to `total`, which no credit lowers.

    Every credit gets a row, a cash row comes last, zeros shown. Raises UserError for a total that is below zero or no
    number.
    """
    if not total.is_finite() or total < 0:
        raise UserError(f"a total to be funded must be at or above zero, not {total}")
    rows, left = [], total
    with localcontext(EXACT):
        for credit in credits:
            part = min(left, credit.amount)
            rows.append(Funding(credit.source, part, credit.amount - part))
            left -= part
    return [*rows, Funding(CASH, left)]


def parse(text: str | Iterable[str], source: str = "credits") -> list[Credit]:
    """A recipe's `credits = "10 USD"` or `credits = ["10 USD grant", "5 USD start-up credits"]`.

    What follows the currency names the source. Raises UserError.
    """
    made = []
    for item in [text] if isinstance(text, str) else list(text):
        words = str(item).split(None, 2)
        try:
            amount = parse_money(" ".join(words[:2]), "credits")
        except ValueError as e:
            raise UserError(str(e)) from None
        made.append(Credit(words[2] if len(words) > 2 else source, amount))
    return made
