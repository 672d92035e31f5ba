"""Attention as batched products with a softmax between them: short items whole, long ones a piece of their queries at a time.

On a CPU the flash kernel spends most of its time outside the products: with it attention took 23% of an SFT step with AMX and
30% without, with these 18% (docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from shoestring import native


class Piece(NamedTuple):
    """Queries start to end see keys first to last, as far as bias [B, 1, end - start, last - first] (0 or -inf) lets them."""

    start: int
    end: int
    first: int
    last: int
    bias: torch.Tensor


def _weights(q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(scale q kᵀ + bias) for q [B, K, G * Lq, d], k [B, K, Lk, d], bias [B, 1, Lq, Lk] → [B, K, G * Lq, Lk]."""
    b, heads, rows, _ = q.shape
    lq, lk = bias.shape[-2:]
    if native.usable(q):
        p = torch.matmul(q, k.transpose(2, 3))
        native.weights(p.view(b, heads * (rows // lq), lq, lk), bias, scale)
        return p
    s = torch.matmul(q, k.transpose(2, 3)).view(b, heads, rows // lq, lq, lk).float()
    return torch.softmax(s.mul_(scale).add_(bias[:, :, None]), -1).to(q.dtype).view(b, heads, rows, lk)


def _gradients(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, p: torch.Tensor, o: torch.Tensor, grad: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Those of q, k and v; p the weights, o the answers [B, K, G * Lq, d], grad theirs."""
    of_v = torch.matmul(p.transpose(2, 3), grad)
    s = torch.matmul(grad, v.transpose(2, 3))
    if native.usable(p, o, grad, s):
        native.weights_backward(s, p, grad, o, scale)
    else:
        delta = (grad.float() * o.float()).sum(-1, keepdim=True)
        s = s.float().sub_(delta).mul_(p).mul_(scale).to(q.dtype)
    return torch.matmul(s, k), torch.matmul(s.transpose(2, 3), q), of_v


class Products(torch.autograd.Function):
    """softmax(scale q kᵀ + bias) v for q [B, K, G * Lq, d], k and v [B, K, Lk, d], bias [B, 1, Lq, Lk]. Weights are kept."""

    @staticmethod
    def forward(ctx, q, k, v, bias, scale):
        ctx.scale = scale
        p = _weights(q, k, bias, scale)
        o = torch.matmul(p, v)
        ctx.save_for_backward(q, k, v, p, o)
        return o

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, p, o = ctx.saved_tensors
        return *_gradients(q, k, v, p, o, grad.contiguous(), ctx.scale), None, None


class Pieces(torch.autograd.Function):
    """The same for q [B, K, G, Lq, d], piece by piece: weights are made again in the backward pass, and no key that a piece
    cannot see is multiplied."""

    @staticmethod
    def forward(ctx, q, k, v, pieces: Sequence[Piece], scale):
        ctx.scale, ctx.pieces = scale, pieces
        out = torch.empty_like(q)
        for x in pieces:
            part = q[:, :, :, x.start : x.end]
            p = _weights(part.flatten(2, 3), k[:, :, x.first : x.last], x.bias, scale)
            out[:, :, :, x.start : x.end] = torch.matmul(p, v[:, :, x.first : x.last]).view(part.shape)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out = ctx.saved_tensors
        of_q = torch.empty_like(q)
        of_k, of_v = torch.zeros(2, *k.shape, dtype=torch.float32, device=k.device)
        for x in ctx.pieces:
            part, o, g = (t[:, :, :, x.start : x.end].flatten(2, 3) for t in (q, out, grad))
            keys, values = (t[:, :, x.first : x.last] for t in (k, v))
            p = _weights(part, keys, x.bias, ctx.scale)
            by_q, by_k, by_v = _gradients(part, keys, values, p, o, g, ctx.scale)
            of_q[:, :, :, x.start : x.end] = by_q.view(q[:, :, :, x.start : x.end].shape)
            of_k[:, :, x.first : x.last] += by_k
            of_v[:, :, x.first : x.last] += by_v
        return of_q, of_k.to(k.dtype), of_v.to(v.dtype), None, None
