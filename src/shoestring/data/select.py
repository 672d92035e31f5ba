"""Choosing a few hundred problems: difficulty by measured pass rate, diversity by domain, length inside a domain."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from shoestring.records import Problem


def band(pass_rates: Mapping[str, float], low: float, high: float) -> list[str]:
    """The ids whose pass rate lies in [low, high], in the mapping's order.

    Rates outside [0, 1], and low above high, raise ValueError.
    """
    if not 0 <= low <= high <= 1:
        raise ValueError(f"a band of pass rates needs 0 <= low <= high <= 1, not {low} to {high}")
    wrong = next((i for i, rate in pass_rates.items() if not 0 <= rate <= 1), None)
    if wrong is not None:
        raise ValueError(f"pass rate {pass_rates[wrong]} of problem {wrong} is not between 0 and 1")
    return [i for i, rate in pass_rates.items() if low <= rate <= high]


def select(
    problems: Sequence[Problem],
    pass_rates: Mapping[str, float],
    lengths: Mapping[str, int],
    n: int,
    seed: int = 0,
    within: Literal["length", "uniform"] = "length",
) -> list[Problem]:
    """Up to n problems, as s1 chose its thousand: draw a domain uniformly, then a problem inside it.

    within="length": the problem of length rank r (0 is the longest) has weight 2^-r; problems of the same length rank
    by pass rate, hardest first. within="uniform": every problem of the domain is as likely, for pools whose length
    says nothing of difficulty. `pass_rates` and `lengths` (tokens of the solution or trace) go by problem id; a missing
    rate counts as 1, a missing length as 0. A domain that is used up leaves the draw. Same seed, same choice, in the
    order drawn; the order of `problems` does not matter. Raises ValueError for n < 0 or an unknown `within`.
    """
    if n < 0:
        raise ValueError(f"cannot select {n} problems")
    if within not in ("length", "uniform"):
        raise ValueError(f"within = {within!r} must be 'length' or 'uniform'")
    rng = random.Random(seed)
    pools: dict[str, list[Problem]] = defaultdict(list)
    for p in problems:
        pools[p.domain].append(p)
    for pool in pools.values():
        pool.sort(key=lambda p: (-lengths.get(p.id, 0), pass_rates.get(p.id, 1.0), p.id))
    chosen: list[Problem] = []
    domains = sorted(pools)
    while len(chosen) < n and domains:
        domain = rng.choice(domains)
        pool = pools[domain]
        chosen.append(pool.pop(_rank(rng, len(pool)) if within == "length" else rng.randrange(len(pool))))
        if not pool:
            domains.remove(domain)
    return chosen


def _rank(rng: random.Random, size: int) -> int:
    """A rank below `size` with weight 2^-rank."""
    while True:
        rank = 0
        while rng.random() < 0.5 and rank < size:
            rank += 1
        if rank < size:
            return rank
