"""The small operations between matrix products, with backward passes that store little.

Each has its plain twin in the tests. All compute in fp32 and return the input's type, in the order of operations of
transformers' Llama (norm in fp32, cast, then scale by the weight), so that logits agree. Where `shoestring.native` has
compiled them, a forward pass is the same to the bit or nearly so, and a backward pass rounds once in place of several times.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from shoestring import native


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        if native.usable(x, weight):
            out, scale = native.norm(x, weight, eps)
            ctx.save_for_backward(x, weight, scale)
            return out
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype) * weight

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, scale = ctx.saved_tensors
        if native.usable(x, weight, grad):
            of_x, of_weight = native.norm_backward(x, weight, scale, grad)
            return of_x, of_weight.to(weight.dtype), None
        normed = x.float() * scale
        g = grad.float()
        grad_weight = (g * normed).sum(0).to(weight.dtype)
        g = g * weight.float()
        grad_x = scale * (g - normed * (g * normed).mean(-1, keepdim=True))
        return grad_x.to(x.dtype), grad_weight, None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [N, D], weight [D]. Zhang & Sennrich 2019."""
    if not torch.is_grad_enabled():
        if native.usable(x, weight):
            return native.norm(x, weight, eps)[0]
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight
    return _RmsNorm.apply(x, weight, eps)  # pyright: ignore[reportReturnType]


class _NormHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        normed_heads, d = weight.shape
        heads = x.view(x.shape[0], -1, d)
        wide = heads[:, :normed_heads].float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        out = torch.empty_like(heads)
        torch.mul((wide * scale).to(x.dtype), weight, out=out[:, :normed_heads])
        out[:, normed_heads:] = heads[:, normed_heads:]
        return out.view(x.shape)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, scale = ctx.saved_tensors
        normed_heads, d = weight.shape
        grad = grad.reshape(x.shape[0], -1, d)
        normed = x.view(grad.shape)[:, :normed_heads].float() * scale
        g = grad[:, :normed_heads].float()
        grad_weight = (g * normed).sum(0).to(weight.dtype)
        g = g * weight.float()
        out = torch.empty_like(grad)
        out[:, :normed_heads] = scale * (g - normed * (g * normed).mean(-1, keepdim=True))
        out[:, normed_heads:] = grad[:, normed_heads:]
        return out.view(x.shape), grad_weight, None


def norm_heads(x: torch.Tensor, query: torch.Tensor, key: torch.Tensor, eps: float, heads: int, kv_heads: int) -> torch.Tensor:
    """RMS norm of every query and key head of x [N, (heads + 2 kv_heads) * d], weights [d] each; values pass."""
    weight = torch.cat((query.expand(heads, -1), key.expand(kv_heads, -1)))
    return _NormHeads.apply(x, weight, eps)  # pyright: ignore[reportReturnType]


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, turned: int, straight: int) -> torch.Tensor:
    n = x.shape[0]
    half = cos.shape[-1]
    parts = x.view(n, turned + straight, 2, half)
    out = torch.empty_like(parts)
    a, b = parts[:, :turned, 0], parts[:, :turned, 1]
    c, s = cos[:, None, :], sin[:, None, :]
    out[:, :turned, 0] = a * c - b * s
    out[:, :turned, 1] = b * c + a * s
    out[:, turned:] = parts[:, turned:]
    return out.view(n, -1)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, turned: int, straight: int):
        ctx.save_for_backward(cos, sin)
        ctx.counts = (turned, straight)
        if native.usable(x, cos, sin):
            return native.rotate(x, cos, sin, turned, straight)
        return _turn(x, cos, sin, turned, straight)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        grad = grad.contiguous()
        if native.usable(grad, cos, sin):
            return native.rotate(grad, cos, sin, *ctx.counts, back=True), None, None, None, None
        return _turn(grad, cos, -sin, *ctx.counts), None, None, None, None


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, turned: int, straight: int) -> torch.Tensor:
    """Rotary embedding (Su et al. 2021, halves convention) of the first `turned` heads of x [N, heads * head_dim]."""
    return _Rotate.apply(x, cos.to(x.dtype), sin.to(x.dtype), turned, straight)  # pyright: ignore[reportReturnType]


class _Gated(torch.autograd.Function):
    """act(gate) * up; only x is kept, and the backward pass computes the activation again."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, activation: str) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.activation = activation
        return gated(x, activation)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        if ctx.activation == "silu" and native.usable(x, grad):
            return native.gate_backward(x, grad), None
        gate, up = x.chunk(2, dim=-1)
        out = torch.empty_like(x)
        of_gate, of_up = out.chunk(2, dim=-1)
        if ctx.activation == "silu":
            sigmoid = torch.sigmoid(gate)
            silu = gate * sigmoid
            torch.mul(grad, silu, out=of_up)
            of_gate.copy_(grad * up * (sigmoid + silu * (1 - sigmoid)))
        else:
            torch.mul(grad, F.gelu(gate, approximate="tanh"), out=of_up)
            of_gate.copy_(torch.ops.aten.gelu_backward(grad * up, gate, approximate="tanh"))
        return out, None


def gated(x: torch.Tensor, activation: str) -> torch.Tensor:
    """What `gate` computes, without its sparing backward pass."""
    if native.usable(x) and not (x.requires_grad and torch.is_grad_enabled()):
        return native.gate(x, activation)
    gate, up = x.chunk(2, dim=-1)
    return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up


def gate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """The gated MLP's middle: x [N, 2 * intermediate] (gate, up) → act(gate) * up [N, intermediate]. Shazeer 2020.

    "silu" makes it SwiGLU; "gelu_tanh", gelu by its tanh formula, GeGLU.
    """
    return _Gated.apply(x, activation) if torch.is_grad_enabled() else gated(x, activation)  # pyright: ignore[reportReturnType]
