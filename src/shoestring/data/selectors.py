"""The ways of choosing N problems by name, and how far their choices agree."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shoestring.data import select
from shoestring.records import Problem

CHUNK = 65_536  # vectors compared at once


@dataclass
class Pool:
    """What a selector may look at. rates, lengths: by problem id, as far as measured; band: of pass rates, ends included;
    vectors: [N, D] float32 of length 1, asked for by k-centre alone."""

    problems: Sequence[Problem]
    rates: Mapping[str, float] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)
    band: tuple[float, float] = (0.1, 0.9)
    vectors: Callable[[], np.ndarray] | None = None


def s1(pool: Pool, n: int, seed: int) -> list[Problem]:
    """A domain uniformly, then by length rank with weight 2^-rank (s1, section 2.2); uniformly where no length is known."""
    return select.select(pool.problems, pool.rates, pool.lengths, n, seed, "length" if pool.lengths else "uniform")


def at_random(pool: Pool, n: int, seed: int) -> list[Problem]:
    """Every problem as likely. Drawn by id, so the order of the pool does not matter."""
    ordered = sorted(pool.problems, key=lambda p: p.id)
    return random.Random(seed).sample(ordered, min(n, len(ordered)))


def longest(pool: Pool, n: int, seed: int) -> list[Problem]:
    """The longest traces or solutions, the harder first among equals. Raises ValueError where no length is known."""
    if not pool.lengths:
        raise ValueError("'longest' needs lengths: rows with `tokens` or a `solution`")
    return sorted(pool.problems, key=lambda p: (-pool.lengths.get(p.id, 0), pool.rates.get(p.id, 1.0), p.id))[:n]


def in_band(pool: Pool, n: int, seed: int) -> list[Problem]:
    """At random among those whose pass rate lies in the band. Raises ValueError where no pass rate is known."""
    if not pool.rates:
        raise ValueError("'band' needs pass rates: rows with `pass_rate` or `rates`")
    inside = set(select.band(pool.rates, *pool.band))
    return at_random(Pool([p for p in pool.problems if p.id in inside]), n, seed)


def k_centre(pool: Pool, n: int, seed: int) -> list[Problem]:
    """Each next problem is the one farthest from those chosen (Gonzalez 1985): no problem is left far from the choice."""
    if pool.vectors is None:
        raise ValueError("'k-centre' needs vectors of the questions")
    if not pool.problems:
        return []
    first = min(range(len(pool.problems)), key=lambda i: pool.problems[i].id)
    return [pool.problems[i] for i in farthest(pool.vectors(), n, first)]


SELECTORS: dict[str, Callable[[Pool, int, int], list[Problem]]] = {
    "s1": s1, "random": at_random, "longest": longest, "band": in_band, "k-centre": k_centre,
}  # fmt: skip


def choose(name: str, pool: Pool, n: int, seed: int = 0) -> list[Problem]:
    """Up to n problems. Raises ValueError for n < 0, an unknown selector, or what the selector lacks."""
    if n < 0:
        raise ValueError(f"cannot select {n} problems")
    if name not in SELECTORS:
        raise ValueError(f"unknown selector {name!r}: there are {', '.join(SELECTORS)}")
    return SELECTORS[name](pool, n, seed)


def farthest(vectors: np.ndarray, n: int, first: int = 0) -> list[int]:
    """Rows of vectors [N, D] of length 1, each the least like (by cosine) all before it."""
    likeness = np.full(len(vectors), -np.inf, np.float32)
    chosen: list[int] = []
    at = first
    while len(chosen) < min(n, len(vectors)):
        chosen.append(at)
        for i in range(0, len(vectors), CHUNK):
            part = slice(i, i + CHUNK)
            np.maximum(likeness[part], vectors[part] @ vectors[at], out=likeness[part])
        likeness[at] = np.inf
        at = int(np.argmin(likeness))
    return chosen


def compare(selections: Mapping[str, Sequence[Problem]]) -> dict[str, Any]:
    """overlap: the Jaccard overlap of each two choices, by name; coverage: domains that each has any of, as a share of the
    domains that any of them has; domains: problems of each domain a choice."""
    ids = {name: {p.id for p in chosen} for name, chosen in selections.items()}
    counts = {name: Counter(p.domain for p in chosen) for name, chosen in selections.items()}
    known = sorted(set().union(*counts.values()) if counts else set())
    overlap = {
        a: {b: round(len(ids[a] & ids[b]) / max(1, len(ids[a] | ids[b])), 4) if a != b else 1.0 for b in ids} for a in ids
    }
    coverage = {name: round(len(c) / max(1, len(known)), 4) for name, c in counts.items()}
    return {"overlap": overlap, "coverage": coverage, "domains": {d: {n: counts[n][d] for n in counts} for d in known}}
