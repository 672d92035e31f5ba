"""Q4_K and Q6_K: llama.cpp's k-quants, written; the gguf package reads them only.

The layout is ggml's (ggml-common.h, block_q4_K and block_q6_K): super-blocks of 256 values along a row.

* Q4_K, 144 bytes: eight sub-blocks of 32, w = d·s·q − D·m with q in 0..15, s and m of six bits, d and D in fp16.
* Q6_K, 210 bytes: sixteen sub-blocks of 16, w = d·s·q with q in −32..31, s an int8, d in fp16.

The sub-blocks' scales minimise the squared error over a grid of candidates, each refined by least squares. llama.cpp's own
search weighs the errors by the values' size and walks another grid, so the bytes differ from its files; the layout does not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]
SUPER = 256
CHUNK = 4096  # super-blocks worked on together: a few arrays of 4 MiB
SHRINKS = np.linspace(0.70, 1.05, 8, dtype=np.float32)  # parts of the span that the sixteen levels may cover
TOPS = np.linspace(28.0, 34.0, 13, dtype=np.float32)  # where the value of largest size may land on the 6-bit scale


def q4_k(w: Array) -> Bytes:
    """Rows [r, c] fp32, c a multiple of 256 → bytes [r, 144 c / 256]."""
    return _rows(w, _q4_k)


def q6_k(w: Array) -> Bytes:
    """Rows [r, c] fp32, c a multiple of 256 → bytes [r, 210 c / 256]."""
    return _rows(w, _q6_k)


def _rows(w: Array, pack: Callable[[Array], Bytes]) -> Bytes:
    if w.ndim != 2 or w.shape[1] % SUPER:
        raise ValueError(f"a k-quant needs rows of whole {SUPER}s, got {w.shape}")
    blocks = np.ascontiguousarray(w, dtype=np.float32).reshape(-1, SUPER)
    done = [pack(blocks[i : i + CHUNK]) for i in range(0, len(blocks), CHUNK)]
    return np.concatenate(done).reshape(w.shape[0], -1)


def fit_affine(x: Array) -> tuple[Array, Array]:
    """(s, m) [n], both 0 or more, for x [n, k] ≈ s·q − m with q in 0..15: the candidate of least squared error."""
    low, high = np.minimum(x.min(-1), 0), np.maximum(x.max(-1), 0)
    best_s, best_m = (high - low) / 15, -low
    best = np.full(len(x), np.inf, dtype=np.float32)
    for shrink in SHRINKS:
        # the levels are laid from either end and from the middle, so that an outlier on one side may be given up
        for anchor in (0.0, 0.5, 1.0):
            step = (high - low) * shrink / 15
            shift = -low - anchor * (1 - shrink) * (high - low)
            q = _levels(x, step, np.maximum(shift, 0))
            s, m = _least_squares(x, q)
            error = np.square(s[:, None] * q - m[:, None] - x).sum(-1)
            better = error < best
            best[better], best_s[better], best_m[better] = error[better], s[better], m[better]
    return best_s, best_m


def _levels(x: Array, s: Array, m: Array) -> Array:
    safe = np.where(s > 0, s, 1)
    return np.where(s[:, None] > 0, np.clip(np.rint((x + m[:, None]) / safe[:, None]), 0, 15), 0).astype(np.float32)


def _least_squares(x: Array, q: Array) -> tuple[Array, Array]:
    """The s and m that fit x ≈ s·q − m best for these q; m is held at 0 or more, s as well."""
    k = x.shape[-1]
    sq, sqq, sx, sxq = q.sum(-1), np.square(q).sum(-1), x.sum(-1), (x * q).sum(-1)
    spread = k * sqq - sq * sq
    s = np.where(spread > 0, (k * sxq - sq * sx) / np.where(spread > 0, spread, 1), 0)
    m = (s * sq - sx) / k
    through_zero = np.where(sqq > 0, sxq / np.where(sqq > 0, sqq, 1), 0)
    s, m = np.where(m < 0, through_zero, s), np.maximum(m, 0)
    return np.maximum(s, 0).astype(np.float32), m.astype(np.float32)


def fit_scale(x: Array) -> Array:
    """s [n], of either sign, for x [n, k] ≈ s·q with q in −32..31: the candidate of least squared error."""
    at = np.abs(x).argmax(-1)
    top = np.take_along_axis(x, at[:, None], -1)[:, 0]
    best_s, best = np.zeros(len(x), dtype=np.float32), np.square(x).sum(-1)
    for level in TOPS:
        s = -top / level  # the largest lands on the negative side, which has one level more
        q = _signed(x, s)
        down = np.square(q).sum(-1)
        s = np.where(down > 0, (x * q).sum(-1) / np.where(down > 0, down, 1), 0).astype(np.float32)
        error = np.square(s[:, None] * q - x).sum(-1)
        better = error < best
        best[better], best_s[better] = error[better], s[better]
    return best_s


def _signed(x: Array, s: Array) -> Array:
    safe = np.where(s != 0, s, 1)
    return np.where(s[:, None] != 0, np.clip(np.rint(x / safe[:, None]), -32, 31), 0).astype(np.float32)


def _half(x: Array) -> tuple[NDArray[np.float16], Array]:
    """fp16 as it is stored, and the fp32 that readers get back."""
    stored = x.astype(np.float16)
    return stored, stored.astype(np.float32)


def _raw(x: NDArray[np.float16]) -> Bytes:
    return x.astype("<f2")[:, None].view(np.uint8)


def _quotient(x: Array, unit: Array, low: int, high: int) -> Array:
    """x [n, k] in units of `unit` [n], rounded and clipped; 0 where the unit is 0."""
    safe = np.where(unit != 0, unit, 1)
    return np.where(unit[:, None] != 0, np.clip(np.rint(x / safe[:, None]), low, high), 0).astype(np.float32)


def _q4_k(blocks: Array) -> Bytes:
    n = len(blocks)
    parts = blocks.reshape(n * 8, 32)
    s, m = (v.reshape(n, 8) for v in fit_affine(parts))
    (d16, d), (m16, dm) = _half(s.max(-1) / 63), _half(m.max(-1) / 63)
    s6, m6 = _quotient(s, d, 0, 63), _quotient(m, dm, 0, 63)
    q = _levels(parts, (d[:, None] * s6).reshape(-1), (dm[:, None] * m6).reshape(-1)).astype(np.uint8).reshape(n, 8, 32)
    sb, mb = s6.astype(np.uint8), m6.astype(np.uint8)
    scales = np.concatenate(
        [sb[:, :4] | (sb[:, 4:] >> 4) << 6, mb[:, :4] | (mb[:, 4:] >> 4) << 6, (sb[:, 4:] & 15) | (mb[:, 4:] & 15) << 4], axis=1
    )
    nibbles = (q[:, 0::2] | q[:, 1::2] << 4).reshape(n, 128)
    return np.concatenate([_raw(d16), _raw(m16), scales, nibbles], axis=1, dtype=np.uint8)


def _q6_k(blocks: Array) -> Bytes:
    n = len(blocks)
    parts = blocks.reshape(n * 16, 16)
    s = fit_scale(parts).reshape(n, 16)
    d16, d = _half(np.abs(s).max(-1) / 127)
    s8 = _quotient(s, d, -127, 127)
    q = (_signed(parts, (d[:, None] * s8).reshape(-1)) + 32).astype(np.uint8)
    quarter = q.reshape(n, 2, 4, 32)
    low = np.concatenate([quarter[:, :, :2] & 15 | (quarter[:, :, 2:] & 15) << 4], axis=2).reshape(n, 128)
    high = np.bitwise_or.reduce([(quarter[:, :, i] >> 4) << 2 * i for i in range(4)]).reshape(n, 64)
    return np.concatenate([low, high, s8.astype(np.int8).view(np.uint8), _raw(d16)], axis=1, dtype=np.uint8)
