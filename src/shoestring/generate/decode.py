"""One token for every row: the decoder's blocks over a cache in blocks.

Scores are products of whole slices of the storage: a row's query is repeated for each of its cache blocks (that copies
queries, never keys), and a shared prompt's block meets the queries of all its rows in one product. Scores are then put
in the order of the rows for one softmax. The slow twin in the tests runs the whole sequence anew for every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from shoestring.generate.cache import BLOCK, BlockPool, Span
from shoestring.generate.linear import Linear

FAR = 1 << 40  # a key position that no row has reached


class StepPlan(Protocol):
    """What a step must know of the cache: `Plan` here, `static.Buffers` on a GPU."""

    write: torch.Tensor
    written_from: torch.Tensor

    def mask(self, positions: torch.Tensor, window: int) -> torch.Tensor: ...
    def attend(self, q: torch.Tensor, pool: BlockPool, layer: int, mask: torch.Tensor, scale: float) -> torch.Tensor: ...


class HasSpans(Protocol):
    """A row: its own span, and the prompt's span if that is shared."""

    own: Span
    prefix: Span | None


@dataclass
class Layer:
    """One block's weights as the step reads them; `which` is the rope's index (-1: none), window 0 is everything."""

    norms: tuple[torch.Tensor, torch.Tensor]
    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear
    post_norms: tuple[torch.Tensor, torch.Tensor] | None
    head_norms: tuple[torch.Tensor, torch.Tensor] | None
    which: int
    window: int


def prepare(model: Any, rows: int) -> list[Layer]:
    """Read the parameters of a `models.decoder.Decoder` for steps of about `rows` rows."""
    c = model.config
    layers = []
    for i, b in enumerate(model.blocks):

        def linear(name: str, b: Any = b) -> Linear:
            return Linear(model.weight(b, name), rows, getattr(b, name + "_bias", None))

        post = (b.attention_post_norm.detach(), b.mlp_post_norm.detach()) if c.post_norms else None
        heads = (b.query_norm.detach(), b.key_norm.detach()) if c.qk_norm else None
        fact = c.layer(i)
        layers.append(
            Layer(
                (b.attention_norm.detach(), b.mlp_norm.detach()), linear("qkv"), linear("out"), linear("gate_up"),
                linear("down"), post, heads, fact.rope, fact.window,
            )
        )  # fmt: skip
    return layers


class Plan:
    """Which block belongs to which row, as index tensors. Valid until the pool's version changes.

    owner [n]: row of each single block; shared_owner [m * G]: rows of each shared block (padded with row 0);
    table [b * T]: each row's blocks among (single, shared x G); back, shared_back: the inverse, as places in [b, T].
    """

    def __init__(self, rows: Sequence[HasSpans], pool: BlockPool, device: torch.device) -> None:
        self.version = pool.version
        b = len(rows)
        users: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            for block in row.prefix.blocks if row.prefix else ():
                users.setdefault(block, []).append(i)
        n, m = pool.left, pool.capacity - pool.right
        self.singles, self.shared = n, m
        self.group = g = max((len(u) for u in users.values()), default=0)
        self.width = t = max(len(r.own.blocks) + (len(r.prefix.blocks) if r.prefix else 0) for r in rows)
        owner, back = [0] * n, [0] * n
        shared_owner, shared_back = [0] * (m * g), [0] * (m * g)
        self.nothing = n + m * g  # an all-zero partial answer, for rows with fewer blocks than the widest
        table = [self.nothing] * (b * t)
        first = [FAR] * (b * t)
        limit = [0] * (b * t)
        for i, row in enumerate(rows):
            at = i * t
            if row.prefix:
                for k, block in enumerate(row.prefix.blocks):
                    place = (block - pool.right) * g + users[block].index(i)
                    shared_owner[place], shared_back[place], table[at] = i, at, n + place
                    first[at] = k * BLOCK
                    limit[at] = min(BLOCK, row.prefix.length - k * BLOCK)
                    at += 1
            for k, block in enumerate(row.own.blocks):
                owner[block], back[block], table[at] = i, at, block
                first[at], limit[at] = row.own.start + k * BLOCK, BLOCK
                at += 1

        def ids(x: list[int]) -> torch.Tensor:
            return torch.tensor(x, dtype=torch.long, device=device)

        self.owner, self.back, self.table = ids(owner), ids(back), ids(table)
        self.scores_table = ids([0 if x == self.nothing else x for x in table])
        self.shared_owner, self.shared_back = ids(shared_owner), ids(shared_back)
        inside = torch.arange(BLOCK, device=device)
        at = ids(first).view(b, t, 1) + inside
        self.key_position = at.masked_fill_(inside >= ids(limit).view(b, t, 1), FAR)
        self.gaps = self.nothing in table
        last = ids([r.own.blocks[-1] for r in rows])
        self.write = pool.slots(last, torch.zeros_like(last))  # of the last block's first token
        self.written_from = ids([r.own.start + (len(r.own.blocks) - 1) * BLOCK for r in rows])

    def mask(self, positions: torch.Tensor, window: int) -> torch.Tensor:
        """[b, 1, 1, T, BLOCK] fp32: 0 where the row may look, -inf elsewhere."""
        at = positions[:, None, None]
        hidden = self.key_position > at
        if window:
            hidden |= self.key_position <= at - window
        mask = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, float("-inf"))
        return mask[:, None, None]

    def attend(self, q: torch.Tensor, pool: BlockPool, layer: int, mask: torch.Tensor, scale: float) -> torch.Tensor:
        """q [b, kv_heads, group, d] over one layer of the cache → [b, kv_heads * group * d]."""
        return attend(q, *pool.pairs[layer], self, pool.right, mask, scale)


def attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, plan: Plan, right: int, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """q [b, kv_heads, group, d], one layer's keys and values [blocks, kv_heads, BLOCK, d] → [b, kv_heads * group * d]."""
    b, heads, group, d = q.shape
    n, m, g, t = plan.singles, plan.shared, plan.group, plan.width
    m = m if g else 0  # shared prompts whose rows have not begun
    s = torch.bmm(q.index_select(0, plan.owner).view(-1, group, d), keys[:n].view(-1, BLOCK, d).transpose(1, 2))
    s = s.view(n, heads, group, BLOCK)
    if m:
        many = q.index_select(0, plan.shared_owner).view(m, g, heads, group, d).transpose(1, 2).reshape(-1, g * group, d)
        both = torch.bmm(many, keys[right:].view(-1, BLOCK, d).transpose(1, 2)).view(m, heads, g, group, BLOCK)
        s = torch.cat((s, both.transpose(1, 2).reshape(m * g, heads, group, BLOCK)))
    s = s.index_select(0, plan.scores_table).view(b, t, heads, group, BLOCK).permute(0, 2, 3, 1, 4)
    scores = torch.empty(b, heads, group, t, BLOCK, device=q.device)
    torch.add(mask, s, alpha=scale, out=scores)
    p = torch.softmax(scores.view(b, heads, group, -1), -1).view(scores.shape)
    parts = torch.empty(b, t, heads, group, BLOCK, dtype=q.dtype, device=q.device)
    parts.copy_(p.permute(0, 3, 1, 2, 4))
    parts = parts.view(b * t, heads, group, BLOCK)
    o = torch.bmm(parts.index_select(0, plan.back).view(-1, group, BLOCK), values[:n].view(-1, BLOCK, d))
    pieces = [o.view(n, heads, group, d)]
    if m:
        many = parts.index_select(0, plan.shared_back).view(m, g, heads, group, BLOCK).transpose(1, 2)
        both = torch.bmm(many.reshape(-1, g * group, BLOCK), values[right:].view(-1, BLOCK, d))
        pieces.append(both.view(m, heads, g, group, d).transpose(1, 2).reshape(m * g, heads, group, d))
    if plan.gaps:
        pieces.append(torch.zeros(1, heads, group, d, dtype=q.dtype, device=q.device))
    o = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    o = o.index_select(0, plan.table).view(b, t, -1)
    return o[:, 0] if t == 1 else o.sum(1, dtype=torch.float32).to(q.dtype)


def rope_tables(
    model: Any, layers: Sequence[Layer], positions: torch.Tensor
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:  # fmt: skip
    """cos and sin of every rope in use, each [b, head_dim] in the weights' type, the first half of sin negative."""
    out: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for which in {layer.which for layer in layers if layer.which >= 0}:
        cos, sin = model.rope(positions, which)
        out[which] = (torch.cat((cos, cos), -1).to(model.embedding.dtype), torch.cat((-sin, sin), -1).to(model.embedding.dtype))
    return out


@torch.inference_mode()
def step(
    model: Any, layers: Sequence[Layer], pool: BlockPool, plan: StepPlan, tokens: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Run `tokens` [b] at `positions` [b] through the blocks, adding their keys and values to the cache.

    Returns the final normed hidden states [b, hidden].
    """
    c = model.config
    b, half = len(tokens), c.head_dim // 2
    turned = c.heads + c.kv_heads
    ropes = rope_tables(model, layers, positions)
    masks = {w: plan.mask(positions, w) for w in {layer.window for layer in layers}}
    write = (plan.write + (positions - plan.written_from)[:, None]).view(-1)
    act = _gelu if c.activation == "gelu_tanh" else F.silu
    x = F.embedding(tokens, model.embedding)
    if c.embedding_scale != 1.0:
        x = x * x.new_full((), c.embedding_scale)
    for i, layer in enumerate(layers):
        qkv = layer.qkv(norm(x, layer.norms[0], c.norm_eps)).view(b, turned + c.kv_heads, c.head_dim)
        qk = qkv[:, :turned]
        if layer.head_norms is not None:
            qk[:, : c.heads] = norm(qk[:, : c.heads], layer.head_norms[0], c.norm_eps)
            qk[:, c.heads :] = norm(qk[:, c.heads :], layer.head_norms[1], c.norm_eps)
        if layer.which >= 0:
            cos, sin = ropes[layer.which]
            other = qk.roll(half, -1)
            qk.mul_(cos[:, None]).addcmul_(other, sin[:, None])
        pool.flat[i].index_put_((write,), qkv[:, c.heads :].reshape(-1, c.head_dim))  # index_copy_ takes three times as long
        q = qkv[:, : c.heads].reshape(b, c.kv_heads, c.group, c.head_dim)
        o = plan.attend(q, pool, i, masks[layer.window], c.attention_scale)
        if layer.post_norms is None:
            x = layer.out.add(o.reshape(b, -1), x)
        else:
            x = x + norm(layer.out(o.reshape(b, -1)), layer.post_norms[0], c.norm_eps)
        gate, up = layer.gate_up(norm(x, layer.norms[1], c.norm_eps)).chunk(2, -1)
        inner = act(gate).mul_(up)
        if layer.post_norms is None:
            x = layer.down.add(inner, x)
        else:
            x = x + norm(layer.down(inner), layer.post_norms[1], c.norm_eps)
    return norm(x, model.norm, c.norm_eps)


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As `models.kernels.rms_norm` without a gradient (to its rounding), in fewer operations: at a few rows each costs its
    start. One fused operation (F.rms_norm) rounds in another order than transformers' Llama."""
    wide = x.float()
    mean = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().mul_(1.0 / x.shape[-1])
    return (wide * mean.add_(eps).rsqrt_()).to(x.dtype).mul_(weight)
