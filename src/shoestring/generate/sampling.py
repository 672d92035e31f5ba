"""Exact sampling from a full softmax with one uniform number a token.

The uniform belongs to the request: u = hash(seed, index of the token). So the noise that a request sees does not depend
on the batch that it happens to share. The inverse of the cumulative distribution is found in two levels (blocks, then
inside one block), which needs one pass over the vocabulary instead of a sort or a noise tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

BLOCK = 256
_MASK = (1 << 64) - 1


def uniform(seed: int, index: int) -> float:
    """SplitMix64 of (seed, index) → [0, 1) with 53 random bits. Steele, Lea & Flood 2014."""
    z = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xD1B54A32D192ED03) & _MASK
    for _ in range(2):
        z = (z + 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        z ^= z >> 31
    return (z >> 11) * (1.0 / (1 << 53))


def request_seed(*parts: int) -> int:
    """One 64-bit seed from several integers (run seed, step, prompt index, sample index)."""
    z = 0
    for p in parts:
        z = int(uniform(z ^ (p & _MASK), 0) * (1 << 53)) ^ (z << 7 & _MASK)
    return z & _MASK


def choose(
    logits: torch.Tensor, temperatures: Sequence[float], uniforms: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [B, V] (any float type) → tokens [B] int64, log-probabilities [B] fp32.

    Temperature 0 is greedy, and its log-probability is under temperature 1. Ties go to the lowest id.
    """
    wide = logits.float()
    t = torch.tensor([x if x > 0 else 1.0 for x in temperatures])
    if any(x not in (0.0, 1.0) for x in temperatures):
        wide = wide / t[:, None]
    top, best = wide.max(dim=-1)
    p = (wide - top[:, None]).exp_()
    b, v = p.shape
    pad = -v % BLOCK
    blocks = (torch.nn.functional.pad(p, (0, pad)) if pad else p).view(b, -1, BLOCK)
    sums = blocks.sum(-1, dtype=torch.float64)
    edges = sums.cumsum(-1)
    total = edges[:, -1]
    tokens = best.clone()
    rows = [i for i, x in enumerate(temperatures) if x > 0]
    if rows:
        r = torch.tensor(rows)
        want = torch.tensor([uniforms[i] for i in rows], dtype=torch.float64) * total[r]
        block = (edges[r] <= want[:, None]).sum(-1).clamp_(max=sums.shape[1] - 1)
        inside = blocks[r, block].double()
        rest = want - (edges[r, block] - sums[r, block])
        at = (inside.cumsum(-1) <= rest[:, None]).sum(-1).clamp_(max=BLOCK - 1)
        # rounding can point at an entry of probability 0: take the block's likeliest instead
        at = torch.where(inside.gather(-1, at[:, None])[:, 0] > 0, at, inside.argmax(-1))
        tokens[r] = block * BLOCK + at
    logprob = wide.gather(-1, tokens[:, None])[:, 0] - top - total.log().float()
    return tokens, logprob
