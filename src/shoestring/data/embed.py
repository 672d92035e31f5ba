"""Vectors of questions without a model: weighed words, projected at random. Good enough to tell geometry from sums.

A text is its words (numbers left out), each weighed 1 + log(how often it stands here) times log(texts / texts that have
it) (Salton and Buckley 1988), and each word is a fixed random direction with four entries of ±1/2 (a sparse
Johnson-Lindenstrauss transform; Kane and Nelson 2014). Anything with the same two methods can stand in for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from shoestring import answers
from shoestring.data.marks import hash64, mixed

DIMENSIONS = 128
BUCKETS = 1 << 18  # of words, for counting the texts that have them
ENTRIES = 4  # of a word's direction

_STEP = 0x9E3779B97F4A7C15  # each entry is drawn from another hash of the word

Embed = Callable[[Sequence[str]], np.ndarray]  # texts → [N, D] float32 of length 1 (0 for a text without words)


def _words(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(row, hash) of every word that is no number, the rows in order."""
    rows, hashes = [], []
    for row, text in enumerate(texts):
        said = [hash64(w) for w in answers.words(text) if not w.isdigit()]
        hashes.extend(said)
        rows.append(np.full(len(said), row, np.int64))
    return np.concatenate(rows or [np.zeros(0, np.int64)]), np.array(hashes, np.uint64)


class HashedTfIdf:
    """Fitted to the texts whose words it weighs; a word that none of them has weighs as one that a single text has."""

    def __init__(self, texts: Sequence[str], dimensions: int = DIMENSIONS) -> None:
        if dimensions < ENTRIES:
            raise ValueError(f"{dimensions} dimensions: at least {ENTRIES}")
        self.dimensions = dimensions
        counts = np.zeros(BUCKETS)
        for at in range(0, len(texts), 4096):
            rows, hashes = _words(texts[at : at + 4096])
            once = np.unique(np.stack([rows, (hashes % np.uint64(BUCKETS)).astype(np.int64)]), axis=1)[1]
            counts += np.bincount(once, minlength=BUCKETS)
        self._weight = np.log((1 + len(texts)) / (1 + np.maximum(counts, 1))) + 1e-3

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[N, dimensions] float32, rows of length 1; zeros for a text without words."""
        made = np.zeros((len(texts), self.dimensions), np.float32)
        for at in range(0, len(texts), 4096):
            made[at : at + 4096] = self._few(texts[at : at + 4096])
        return made

    def _few(self, texts: Sequence[str]) -> np.ndarray:
        rows, hashes = _words(texts)
        pairs, often = np.unique(np.stack([rows.astype(np.uint64), hashes]), axis=1, return_counts=True)
        row, word = pairs[0].astype(np.int64), pairs[1]
        weight = (1 + np.log(often)) * self._weight[(word % np.uint64(BUCKETS)).astype(np.int64)]
        made = np.zeros(len(texts) * self.dimensions)
        part = self.dimensions // ENTRIES
        for i in range(ENTRIES):
            drawn = mixed(word + np.uint64(_STEP * (i + 1) % 2**64))
            column = i * part + (drawn >> np.uint64(1)).astype(np.int64) % part
            sign = np.where(drawn & np.uint64(1), 0.5, -0.5)
            made += np.bincount(row * self.dimensions + column, weights=weight * sign, minlength=len(made))
        made = made.reshape(len(texts), self.dimensions)
        size = np.linalg.norm(made, axis=1, keepdims=True)
        return np.divide(made, size, out=np.zeros_like(made), where=size > 0).astype(np.float32)
