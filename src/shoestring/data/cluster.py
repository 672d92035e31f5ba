"""Spherical k-means in small batches (Dhillon and Modha 2001; Sculley 2010), begun as k-means++. Same seed, same result."""

from __future__ import annotations

import numpy as np

CHUNK = 65_536  # vectors compared at once


def assign(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The centre [N] that each vector [N, D] is most like; the first of equals."""
    made = np.zeros(len(vectors), np.int32)
    for at in range(0, len(vectors), CHUNK):
        made[at : at + CHUNK] = np.argmax(vectors[at : at + CHUNK] @ centres.T, axis=1)
    return made


def kmeans(vectors: np.ndarray, k: int, seed: int = 0, steps: int = 100, batch: int = 2048) -> np.ndarray:
    """Centres [k, D] float32 of length 1 of vectors [N, D] of length 1; fewer where there are fewer distinct vectors.

    Raises ValueError for k < 1 or no vectors. A centre that no vector of a batch is nearest to stays where it is.
    """
    if k < 1 or not len(vectors):
        raise ValueError(f"cannot make {k} clusters of {len(vectors)} vectors")
    rng = np.random.default_rng(seed)
    centres = _begin(vectors[rng.permutation(len(vectors))[: max(batch, 20 * k)]], k, rng)
    counts = np.zeros(len(centres))
    for _ in range(steps):
        few = vectors[rng.integers(0, len(vectors), batch)] if len(vectors) > batch else vectors
        of = assign(few, centres)
        sums = np.zeros((len(centres), vectors.shape[1]))
        np.add.at(sums, of, few)
        now = np.bincount(of, minlength=len(centres))
        counts += now
        rate = np.divide(1.0, counts, out=np.zeros(len(centres)), where=counts > 0)[:, None]
        moved = centres * (1 - rate * now[:, None]) + rate * sums
        size = np.linalg.norm(moved, axis=1, keepdims=True)
        centres = np.where(size > 1e-9, moved / np.maximum(size, 1e-9), centres).astype(np.float32)
    return centres


def _begin(vectors: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ (Arthur and Vassilvitskii 2007) with the distance 1 - cosine."""
    chosen = [int(rng.integers(len(vectors)))]
    far = 1 - vectors @ vectors[chosen[0]]
    while len(chosen) < k:
        weight = np.maximum(far, 0).astype(np.float64)
        weight[weight < 1e-6] = 0
        if not weight.sum():
            break
        chosen.append(int(rng.choice(len(vectors), p=weight / weight.sum())))
        far = np.minimum(far, 1 - vectors @ vectors[chosen[-1]])
    return vectors[chosen].astype(np.float32)
