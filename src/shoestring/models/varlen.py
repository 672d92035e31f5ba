"""Attention over packed documents on a GPU: one call of torch's variable-length flash kernel a layer.

Items are those of `models.attention`: queries stand in the order of the pack, and each item's keys are its trunk and
itself. The kernel aligns causal masks and windows at the end of the keys, which is where an item's own rows stand. It
takes bf16 and fp16 only; anything else goes the way of the CPU, whose operations run on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shoestring.models.attention import AttentionPlan, attend, items_of, plan_attention
from shoestring.records import Document

try:  # torch 2.11 has it; a build without flash attention may not
    from torch.nn.attention.varlen import varlen_attn as _kernel
except ImportError:
    _kernel: Callable[..., Any] | None = None


@dataclass
class VarlenPlan:
    """How one pack is attended by the kernel.

    keys [K]: rows of the pack, item by item; None where every row is a key once, in order. query_ends, key_ends [items + 1]
    int32: where the items begin and end. longest_query, longest_keys: rows.
    """

    keys: torch.Tensor | None
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    longest_query: int
    longest_keys: int


def usable(like: torch.Tensor, head_dim: int) -> bool:
    """Whether the kernel takes heads of this width in tensors such as this one."""
    narrow = like.dtype in (torch.bfloat16, torch.float16)
    return _kernel is not None and like.is_cuda and narrow and head_dim % 8 == 0 and head_dim <= 256


def plan_varlen(documents: Sequence[Document], device: torch.device) -> VarlenPlan:
    items = items_of(documents)
    queries, keys = [0], [0]
    for (a, b), (s, e) in items:
        queries.append(queries[-1] + b - a)
        keys.append(keys[-1] + b - a + e - s)
    shared = keys[-1] != queries[-1]
    rows = [row for (a, b), (s, e) in items for row in (*range(s, e), *range(a, b))] if shared else []

    def ends(x: list[int]) -> torch.Tensor:
        return torch.tensor(x, dtype=torch.int32, device=device)

    return VarlenPlan(
        torch.tensor(rows, device=device) if shared else None, ends(queries), ends(keys),
        max((b - a for a, b in zip(queries, queries[1:], strict=False)), default=0),
        max((b - a for a, b in zip(keys, keys[1:], strict=False)), default=0),
    )  # fmt: skip


def plan_for(
    documents: Sequence[Document], rows: int, windows: Sequence[int], like: torch.Tensor, head_dim: int
) -> AttentionPlan | VarlenPlan:
    """The plan that suits the device and type of `like`, for a pack of `rows` rows."""
    if usable(like, head_dim):
        return plan_varlen(documents, like.device)
    return plan_attention(documents, rows, windows).to(like.device)


class _Gather(torch.autograd.Function):
    """x[rows]; the backward pass sums what a shared row gets in fp32."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows)
        ctx.count = x.shape[0]
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (rows,) = ctx.saved_tensors
        out = torch.zeros(ctx.count, grad.shape[1], dtype=torch.float32, device=grad.device)
        return out.index_add_(0, rows, grad.float()).to(grad.dtype), None


def attend_any(
    qkv: torch.Tensor,
    plan: AttentionPlan | VarlenPlan,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float | None = None,
    window: int = 0,
) -> torch.Tensor:
    """qkv [N, (heads + 2 kv_heads) * head_dim], rotated → [N, heads * head_dim], by whichever way the plan was made for.

    scale multiplies q·k (head_dim ** -0.5 unless given). window: keys that a row sees, itself included, 0 for all.
    """
    if isinstance(plan, AttentionPlan):
        return attend(qkv, plan, heads, kv_heads, head_dim, scale, window)
    assert _kernel is not None
    queries, rest = qkv.split([heads * head_dim, 2 * kv_heads * head_dim], dim=1)
    if plan.keys is not None:
        rest = _Gather.apply(rest, plan.keys)
    keys, values = rest.view(-1, 2, kv_heads, head_dim).unbind(1)  # pyright: ignore[reportAttributeAccessIssue]
    out: Any = _kernel(
        queries.view(-1, heads, head_dim), keys, values, plan.query_ends, plan.key_ends, plan.longest_query, plan.longest_keys,
        scale=scale, window_size=(window - 1 if window else -1, 0), enable_gqa=heads != kv_heads,
    )  # fmt: skip
    return out.reshape(-1, heads * head_dim)
