"""Near duplicates by MinHash and banding (Broder 1997; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", 3.4).

A question is the set of its runs of five words. Two questions are near copies if those sets overlap by 80% (Jaccard,
estimated from 120 minima) **and** their numbers, in order, and their normalised answers are the same: a problem with other
numbers or another answer is another problem (or one of two golds is wrong, which no rule can tell here). Runs that a tenth
of a domain's questions share are its template and do not count; a question with fewer than five runs of its own is never
a near copy. A later question is compared with the first and with the one before it in each of 20 buckets of six
minima: at an overlap of 0.8 a pair meets in one of them with probability 0.998, at 0.9 with 1 - 3e-7.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from shoestring.data.marks import Grams, Marks, among, grams, hash64, once_a_row, paired
from shoestring.data.templates import of_domains

SHINGLE = 5  # words
BANDS, ROWS = 20, 6
MINIMA = BANDS * ROWS
NEAR = 0.8
MIN_SHINGLES = 5

_DRAW = np.random.Generator(np.random.PCG64(20250131))  # fixed for ever: signatures on disk must stay comparable
_FACTOR = _DRAW.integers(0, 2**63, MINIMA, np.uint64) * np.uint64(2) + np.uint64(1)
_SHIFT = _DRAW.integers(0, 2**63, MINIMA, np.uint64)


@dataclass(frozen=True)
class Signed:
    """bands [N, BANDS] uint64: a bucket a band; sketch [N, MINIMA] uint8: the low bits of each minimum; told [N]: whether
    the question has enough of its own to be compared."""

    bands: np.ndarray
    sketch: np.ndarray
    told: np.ndarray


def _of_domain(marks: Marks, runs: np.ndarray, domain: np.ndarray) -> np.ndarray:
    """Each run's hash, told apart by domain."""
    names = np.array([hash64(name) for name in marks.names] or [0], np.uint64)
    return paired(runs, names[domain])


def templates(sample: Marks) -> np.ndarray:
    """Sorted hashes of (run, domain) for the runs of the domains' templates (data.templates.of_domains)."""
    return np.sort(_of_domain(sample, *of_domains(sample, SHINGLE)))


def shingles(marks: Marks, known: np.ndarray) -> Grams:
    """The runs of five words outside the templates, once a question, in the questions' order."""
    found = grams(marks, SHINGLE)
    keep = np.sort(once_a_row(found))
    keep = keep[~among(_of_domain(marks, found.hash[keep], marks.domain[found.row[keep]]), known)]
    return Grams(found.at[keep], found.row[keep], found.hash[keep], SHINGLE)


def sign(marks: Marks, known: np.ndarray) -> Signed:
    """The signatures of the questions. known: `templates` of the whole pool. One hash function after the other, so that
    only the runs themselves and 480 bytes a question are held."""
    found = shingles(marks, known)
    counts = np.bincount(found.row, minlength=len(marks))
    told = counts >= MIN_SHINGLES
    minima = np.zeros((MINIMA, len(marks)), np.uint32)
    present = np.flatnonzero(counts)
    if len(present):
        edges = (np.cumsum(counts) - counts)[present]
        for i in range(MINIMA):
            values = (found.hash * _FACTOR[i] + _SHIFT[i]) >> np.uint64(32)
            minima[i, present] = np.minimum.reduceat(values, edges)
    bands = np.zeros((len(marks), BANDS), np.uint64)
    same = paired(marks.numbers, marks.answer)
    for band in range(BANDS):
        made = paired(np.full(len(marks), band, np.uint64), same)
        for i in range(band * ROWS, (band + 1) * ROWS):
            made = paired(made, minima[i].astype(np.uint64))
        bands[:, band] = made
    return Signed(bands, np.ascontiguousarray((minima & np.uint32(255)).astype(np.uint8).T), told)


def overlap(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Estimated Jaccard overlap of pairs of sketches [P, MINIMA]: low bits that agree, less the chance that they do so
    for different minima (Li and König 2010, b-bit minwise hashing)."""
    agree = np.mean(left == right, axis=1)
    return (agree - 1 / 256) / (1 - 1 / 256)


def pairs(bands: Iterable[np.ndarray]) -> np.ndarray:
    """Candidates [P, 2] (earlier, later), sorted and distinct, from one column of buckets [N] a band: each question with
    the first one and with the one before it in its bucket."""
    held = np.zeros(0, np.int64)
    count = 0
    for bucket in bands:
        count = len(bucket)
        order = np.argsort(bucket, kind="stable")
        key = bucket[order]
        again = np.flatnonzero(key[1:] == key[:-1]) + 1
        if not len(again):
            continue
        first = order[np.searchsorted(key, key[again])]
        later = order[again]
        held = np.unique(np.concatenate([held, later * count + first, later * count + order[again - 1]]))
    return np.stack([held % max(1, count), held // max(1, count)], axis=1)


def judged(candidates: np.ndarray, sketch: np.ndarray, count: int) -> np.ndarray:
    """Position of the earliest near copy of each question among the candidates, -1 where it has none. [count]

    sketch [., MINIMA] is indexed by the candidates.
    """
    of = np.full(count, count, np.int64)
    for at in range(0, len(candidates), 100_000):
        part = candidates[at : at + 100_000]
        near = overlap(sketch[part[:, 0]], sketch[part[:, 1]]) >= NEAR
        np.minimum.at(of, part[near, 1], part[near, 0])
    return np.where(of == count, -1, of)


def copies(signed: Signed) -> np.ndarray:
    """Position of the earliest near copy of each question, -1 for one that is new. [N]"""
    rows = np.flatnonzero(signed.told)
    found = judged(pairs(signed.bands[rows, b] for b in range(BANDS)), signed.sketch[rows], len(rows))
    of = np.full(len(signed.told), -1, np.int64)
    of[rows] = np.where(found < 0, -1, rows[np.maximum(found, 0)]) if len(rows) else 0
    return of
