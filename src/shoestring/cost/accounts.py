"""The ledger in double entry: every line as postings whose debits equal their credits, in quantities, by sku.

A usage debits what it was for (its outcome) and credits where it came from: `lease` for a machine's seconds, else the
supplier. The end of an attempt debits `lease` with the seconds of the clock, from start to end, and credits `provider`,
who is owed them. So an attempt's lease account is zero exactly when what its usages say adds up to what the clock says:

    useful + failed + preempted + replayed + discarded (attributed) + idle = lease

A reversal posts the same amounts on the other sides. Amounts are `Decimal`; dollars are made by the bill alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal, localcontext
from itertools import pairwise

from shoestring.cost.entries import State
from shoestring.cost.prices import EXACT, SECOND, quantity
from shoestring.records import LEASE, OUTCOMES, Usage

LEASE_ACCOUNT, PROVIDER = "lease", "provider"
SUPPLIERS = ("teacher", "storage", "egress")
ACCOUNTS = (*OUTCOMES, LEASE_ACCOUNT, PROVIDER, *SUPPLIERS, "other")
TOLERANCE = Decimal("0.02")  # seconds an attempt: unix seconds are floats, and hundreds of posts round hundreds of times
OVERLAP = 0.05  # seconds that an attempt's entries may share, for the same reason


@dataclass(frozen=True)
class Posting:
    """One side of an entry. One of `debit` and `credit` is zero. `seq`: the ledger's line; 0 for the end of a lease."""

    seq: int
    account: str
    sku: str
    unit: str
    attempt: str
    debit: Decimal = Decimal(0)
    credit: Decimal = Decimal(0)


def is_lease(usage: Usage) -> bool:
    """Whether these are seconds of the lease clock."""
    return usage.unit == SECOND and usage.sku.endswith(LEASE)


def source(usage: Usage) -> str:
    """The account that a usage is credited to."""
    if is_lease(usage):
        return LEASE_ACCOUNT
    kind = usage.sku.partition(":")[0]
    return kind if kind in SUPPLIERS else "other"


def of_usage(seq: int, usage: Usage, reverse: bool = False) -> tuple[Posting, Posting]:
    amount, zero = quantity(usage), Decimal(0)
    to, by = (zero, amount) if reverse else (amount, zero)
    what = (usage.sku, usage.unit, usage.attempt)
    return Posting(seq, usage.outcome, *what, to, by), Posting(seq, source(usage), *what, by, to)


def journal(state: State) -> Iterator[Posting]:
    """Every posting: in the order of the lines, then the leases that ended."""
    lines: list[tuple[int, Iterable[Usage], bool]] = [(seq, usages, False) for seq, usages in state.lines.items()]
    for seq, (by, usages) in state.undone.items():
        lines += [(seq, usages, False), (by, usages, True)]
    for seq, usages, reverse in sorted(lines, key=lambda x: (x[0], not x[2])):
        for usage in usages:
            yield from of_usage(seq, usage, reverse)
    for attempt, (start, end) in state.leases.items():
        seconds = Decimal(repr(end)) - Decimal(repr(start))
        yield Posting(0, LEASE_ACCOUNT, LEASE, SECOND, attempt, debit=seconds)
        yield Posting(0, PROVIDER, LEASE, SECOND, attempt, credit=seconds)


def balances(postings: Iterable[Posting]) -> dict[tuple[str, str], Decimal]:
    """(account, unit) → debits less credits. All of them together are zero in every unit."""
    out: dict[tuple[str, str], Decimal] = {}
    with localcontext(EXACT):
        for p in postings:
            key = (p.account, p.unit)
            out[key] = out.get(key, Decimal(0)) + p.debit - p.credit
    return out


def lease_of(state: State, attempt: str) -> tuple[Decimal, Decimal]:
    """(seconds attributed to an outcome, idle seconds) of an attempt, by what counts in the ledger."""
    attributed = idle = Decimal(0)
    with localcontext(EXACT):
        for u in state.usages:
            if u.attempt == attempt and is_lease(u):
                if u.outcome == "idle":
                    idle += quantity(u)
                else:
                    attributed += quantity(u)
    return attributed, idle


def unbalanced(state: State) -> list[str]:
    """One line for each attempt that ended and whose seconds do not add up to its lease, or stand twice."""
    out = []
    posted: dict[str, list[Usage]] = {}
    for u in state.usages:
        if is_lease(u):
            posted.setdefault(u.attempt, []).append(u)
    for attempt, (start, end) in state.leases.items():
        lease = Decimal(repr(end)) - Decimal(repr(start))
        attributed, idle = lease_of(state, attempt)
        if abs(attributed + idle - lease) > TOLERANCE:
            out.append(
                f"attempt {attempt}: {attributed:.3f} s attributed + {idle:.3f} s idle are not the {lease:.3f} s of its lease"
            )
        spans = sorted((u.start, u.end) for u in posted.get(attempt, ()) if u.end > u.start)
        twice = sum(max(0.0, a[1] - b[0]) for a, b in pairwise(spans))
        if twice > OVERLAP:
            out.append(f"attempt {attempt}: {twice:.3f} s of its lease are posted twice")
    return out
