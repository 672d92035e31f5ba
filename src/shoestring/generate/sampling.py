"""Exact sampling from a full softmax with one uniform number a token.

The uniform belongs to the request: u = hash(seed, index of the token). So the noise that a request sees does not depend
on the batch that it happens to share. The inverse of the cumulative distribution is found in two levels (blocks, then
inside one block), which needs one pass over the vocabulary instead of a sort or a noise tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shoestring.generate.request import Top

BLOCK = 256
ROWS = 8  # rows at a time: their fp32 weights stay in the processor's cache (8 x 49,152 are 1.6 MB)
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


@dataclass(frozen=True)
class Filter:
    """What may be sampled: the top_k likeliest (0: all), of those the smallest set of at least top_p (Holtzman et al.
    2020), of those the ones at least min_p times as likely as the likeliest (Nguyen et al. 2024)."""

    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    @property
    def all(self) -> bool:
        return self.top_p >= 1.0 and self.top_k == 0 and self.min_p == 0.0


def filtered(p: torch.Tensor, f: Filter, u: float) -> int:
    """One token of the weights p [V] (not normalised) under a filter. The likeliest is always kept."""
    ranked, ids = torch.sort(p.double(), descending=True, stable=True)
    keep = ranked > 0
    if f.top_k:
        keep[f.top_k :] = False
    if f.top_p < 1.0:
        ranked = ranked * keep
        before = ranked.cumsum(0) - ranked
        keep &= before < f.top_p * ranked.sum()
    if f.min_p:
        keep &= ranked >= f.min_p * ranked[0]
    keep[0] = True
    edges = (ranked * keep).cumsum(0)
    at = int((edges <= u * edges[-1]).sum())
    return int(ids[min(at, int(keep.nonzero()[-1]))])


def choose(
    logits: torch.Tensor,
    temperatures: Sequence[float],
    uniforms: Sequence[float],
    filters: Sequence[Filter] | None = None,
    wanted: Sequence[bool] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [B, V] (any float type) → tokens [B] int64, log-probabilities [B] fp32.

    Temperature 0 is greedy, and its log-probability is under temperature 1. Ties go to the lowest id. The
    log-probability is that of the whole softmax, whatever was filtered. wanted: rows whose log-probability is; where all
    of a group are greedy and none is wanted, theirs are not a number.
    """
    parts = []
    step = ROWS if logits.device.type == "cpu" else logits.shape[0]
    for i in range(0, logits.shape[0], step):
        part = slice(i, i + step)
        if wanted is not None and not any(wanted[part]) and not any(temperatures[part]):
            best, _ = _largest(_in_blocks(logits[part]))
            parts.append((best, torch.full((len(best),), float("nan"), device=best.device)))
            continue
        parts.append(_choose(logits[part], temperatures[part], uniforms[part], filters and filters[part]))
    return torch.cat([t for t, _ in parts]), torch.cat([lp for _, lp in parts])


def likeliest(logits: torch.Tensor, k: int, token: int, logprob: float, temperature: float) -> Top:
    """The k likeliest of logits [V] under the softmax that gave `token` its `logprob` (`choose`, with its temperature).

    Ties go to the lowest id, so that a greedy token comes first. Fewer than k where others have no probability. The
    normaliser is what `token` tells of it, so this costs a search of the k largest and no second softmax.
    """
    wide = logits.float()
    bound = wide.topk(min(k, len(wide))).values[-1]
    ids = (wide >= bound).nonzero()[:, 0]  # by id, everything as large as the last of the k
    ids = ids[wide[ids].sort(descending=True, stable=True).indices[:k]]
    values = logprob + (wide[ids] - wide[token]) / (temperature or 1.0)
    return tuple((i, v) for i, v in zip(ids.tolist(), values.tolist(), strict=True) if v > float("-inf"))


def _in_blocks(x: torch.Tensor) -> torch.Tensor:
    """[B, V] → [B, V / BLOCK, BLOCK], filled up with minus infinity."""
    pad = -x.shape[1] % BLOCK
    return (torch.nn.functional.pad(x, (0, pad), value=float("-inf")) if pad else x).view(x.shape[0], -1, BLOCK)


def _largest(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(its place in the row, the largest) [B], in two levels: one pass without indices, then one block's."""
    top, where = blocks.amax(-1).max(-1)
    each = torch.arange(blocks.shape[0], device=blocks.device)
    return where * BLOCK + blocks[each, where].argmax(-1), top


def _choose(
    logits: torch.Tensor, temperatures: Sequence[float], uniforms: Sequence[float], filters: Sequence[Filter] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = logits.float()
    if any(x not in (0.0, 1.0) for x in temperatures):
        wide = wide / torch.tensor([x if x > 0 else 1.0 for x in temperatures], device=wide.device)[:, None]
    v = wide.shape[1]
    blocks = _in_blocks(wide)
    best, top = _largest(blocks)
    p = (blocks - top[:, None, None]).exp_()
    sums = p.sum(-1).double()  # 256 weights in fp32 (their own precision), 192 sums of them in fp64
    edges = sums.cumsum(-1)
    total = edges[:, -1]
    tokens = best.clone()
    sampled = [i for i, x in enumerate(temperatures) if x > 0]
    narrow = [i for i in sampled if filters is not None and not filters[i].all]
    for i in narrow:
        tokens[i] = filtered(p[i].view(-1)[:v], filters[i], uniforms[i])  # pyright: ignore[reportOptionalSubscript]
    rows = [i for i in sampled if i not in set(narrow)] if narrow else sampled
    if rows:
        r = torch.tensor(rows, device=wide.device)
        want = torch.tensor([uniforms[i] for i in rows], dtype=torch.float64, device=wide.device) * total[r]
        block = (edges[r] <= want[:, None]).sum(-1).clamp_(max=sums.shape[1] - 1)
        inside = p[r, block].double()
        rest = want - (edges[r, block] - sums[r, block])
        at = (inside.cumsum(-1) <= rest[:, None]).sum(-1)
        # rounding can point beyond the block's end: its last entry that has a probability is meant
        at = torch.minimum(at, (inside > 0).cumsum(-1).argmax(-1))
        tokens[r] = block * BLOCK + at
    logprob = wide.gather(-1, tokens[:, None])[:, 0] - top - total.log().float()
    return tokens, logprob
