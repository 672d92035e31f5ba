"""Q4_K and Q6_K against the gguf package's own reading of them, and against loops that do the obvious."""

from __future__ import annotations

from typing import Any

import pytest

np = pytest.importorskip("numpy", reason="needs numpy: pip install 'shoestring[train]'")
package = pytest.importorskip("gguf", reason="needs the gguf package: pip install 'shoestring[train]'")

from gguf import GGMLQuantizationType as Type  # noqa: E402
from gguf.quants import dequantize  # noqa: E402

from shoestring.models import kquants  # noqa: E402

KINDS = [(kquants.q4_k, Type.Q4_K, 144), (kquants.q6_k, Type.Q6_K, 210)]


def rows(kind: str, n: int = 6, columns: int = 512) -> Any:
    r = np.random.default_rng(3)
    w = {"normal": r.normal(size=(n, columns)), "outliers": r.standard_t(2, size=(n, columns)),
         "positive": r.random((n, columns)) + 3, "tiny": r.normal(size=(n, columns)) * 1e-9,
         "sparse": r.normal(size=(n, columns)) * (r.random((n, columns)) < 0.05)}[kind]  # fmt: skip
    return w.astype(np.float32)


@pytest.mark.parametrize("quantise", KINDS, ids=["Q4_K", "Q6_K"])
@pytest.mark.parametrize(("kind", "q4", "q6"), [("normal", 0.080, 0.020), ("outliers", 0.100, 0.030), ("positive", 0.021, 0.010), ("sparse", 0.045, 0.007)])
def test_the_error_is_that_of_the_bits(quantise: Any, kind: str, q4: float, q6: float) -> None:
    """Root mean square error over the values' own. Positive values far from zero waste levels: Q4_K's offset is only ever
    taken away, so that its lowest level is 0 or less."""
    pack, type, size = quantise
    w = rows(kind)
    raw = pack(w)
    assert raw.dtype == np.uint8 and raw.shape == (6, 2 * size)
    back = dequantize(raw, type)
    error = float(np.sqrt(np.square(back - w).mean() / np.square(w).mean()))
    assert error <= (q4 if type == Type.Q4_K else q6)


@pytest.mark.parametrize("quantise", KINDS, ids=["Q4_K", "Q6_K"])
def test_zeros_and_what_fp16_cannot_scale_stay_finite(quantise: Any) -> None:
    pack, type, _ = quantise
    assert not dequantize(pack(np.zeros((2, 256), np.float32)), type).any()
    tiny = rows("tiny")
    back = dequantize(pack(tiny), type)
    assert np.isfinite(back).all() and np.abs(back).max() <= 2 * np.abs(tiny).max() + 1e-7
    with pytest.raises(ValueError, match="whole 256s"):
        pack(np.zeros((2, 128), np.float32))


def test_rows_are_quantised_alone() -> None:
    w = rows("normal", n=5)
    for pack, _, _ in KINDS:
        assert np.array_equal(pack(w), np.concatenate([pack(w[i : i + 1]) for i in range(5)]))


def slow_affine(x: list[float]) -> float:
    """The least squared error of s·q − m over the same candidates, in loops and double precision, where ties round otherwise."""
    low, high = min(*x, 0.0), max(*x, 0.0)
    best = float("inf")
    for shrink in kquants.SHRINKS:
        for anchor in (0.0, 0.5, 1.0):
            step, shift = (high - low) * float(shrink) / 15, max(0.0, -low - anchor * (1 - float(shrink)) * (high - low))
            q = [min(15, max(0, round((v + shift) / step))) for v in x]
            n, sq, sqq = len(x), sum(q), sum(i * i for i in q)
            sx, sxq = sum(x), sum(v * i for v, i in zip(x, q, strict=True))
            s = (n * sxq - sq * sx) / (n * sqq - sq * sq) if n * sqq > sq * sq else 0.0
            m = (s * sq - sx) / n
            if m < 0:
                s, m = sxq / sqq, 0.0
            best = min(best, sum((s * i - m - v) ** 2 for v, i in zip(x, q, strict=True)))
    return best


def slow_scale(x: list[float]) -> float:
    top = max(x, key=abs)
    best = sum(v * v for v in x)
    for level in kquants.TOPS:
        s = -top / float(level)
        q = [min(31, max(-32, round(v / s))) for v in x]
        s = sum(v * i for v, i in zip(x, q, strict=True)) / sum(i * i for i in q)
        best = min(best, sum((s * i - v) ** 2 for v, i in zip(x, q, strict=True)))
    return best


@pytest.mark.parametrize("kind", ["normal", "outliers", "positive"])
def test_the_fits_find_what_the_loops_find(kind: str) -> None:
    x = rows(kind, n=4, columns=256)
    parts = x.reshape(-1, 32)
    s, m = kquants.fit_affine(parts)
    q = np.clip(np.rint((parts + m[:, None]) / s[:, None]), 0, 15)
    error = np.square(s[:, None] * q - m[:, None] - parts).sum(-1)
    slow = np.array([slow_affine(part) for part in parts.tolist()])
    assert (error <= slow * 1.05).all() and error.sum() <= slow.sum() * 1.005
    parts = x.reshape(-1, 16)
    s = kquants.fit_scale(parts)
    q = np.clip(np.rint(parts / s[:, None]), -32, 31)
    error = np.square(s[:, None] * q - parts).sum(-1)
    slow = np.array([slow_scale(part) for part in parts.tolist()])
    assert (error <= slow * 1.05).all() and error.sum() <= slow.sum() * 1.005
