"""Decode steps of fixed shapes for a GPU, so that a step can be captured once as a CUDA graph and replayed.

The CPU's plan (`decode.Plan`) follows the cache from step to step: its products change their sizes whenever a block is
given. Here a step has a number of rows and of blocks a row, both rounded up, and everything that changes stands in one
buffer of fixed place. A row's blocks are gathered (one copy of its keys and values) and two batched products
attend to them. Rows beyond the real ones repeat the first: they write what it writes, to the same place.

Plain torch, so it runs on every device: the tests compare it with `decode.Plan` on a CPU, without graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from shoestring.generate import decode
from shoestring.generate.cache import BLOCK, BlockPool, Span
from shoestring.generate.linear import Linear

EAGER = 3  # steps of a shape before it is captured: the warm-up that a capture needs, and shapes seen so seldom need none


class StepRow(Protocol):
    """A row of the batch: its spans in the cache, its last token and that token's position."""

    own: Span
    prefix: Span | None
    last: int

    @property
    def position(self) -> int: ...


def rounded(n: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24 ...: few shapes, and at most a third of one is waste."""
    power = 1 << (n - 1).bit_length()
    return power * 3 // 4 if power >= 4 and n <= power * 3 // 4 else power


class Buffers:
    """The inputs of a step of `rows` rows with `width` blocks each, and attention over them (`decode.StepPlan`).

    One int64 array [rows, 4 + 3 * width]: token, position, last own block, its first position; each block's number, the
    position of its first token (FAR: unused), and how many of its tokens are the row's.
    """

    def __init__(self, rows: int, width: int, pool: BlockPool, device: torch.device) -> None:
        self.rows, self.width, self.pool = rows, width, pool
        self.host = torch.zeros(rows, 4 + 3 * width, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.held = torch.zeros(rows, 4 + 3 * width, dtype=torch.int64, device=device)
        self.version = -1

    def fill(self, rows: Sequence[StepRow]) -> None:
        """Read the rows' state and copy it to the device. The step before must have ended: its sampling waits for it."""
        extra = self.rows - len(rows)
        now = [(r.last, r.position) for r in rows]
        self.host[:, :2] = torch.tensor(now + now[:1] * extra, device="cpu")
        if self.version != self.pool.version:
            table = [self._places(r) for r in rows]
            self.host[:, 2:] = torch.tensor(table + table[:1] * extra, device="cpu")
            self.version = self.pool.version
        self.held.copy_(self.host, non_blocking=True)

    def _places(self, row: StepRow) -> list[int]:
        prefix = row.prefix.blocks if row.prefix else []
        own, empty = row.own.blocks, self.width - len(prefix) - len(row.own.blocks)
        starts = [k * BLOCK for k in range(len(prefix))] + [row.own.start + k * BLOCK for k in range(len(own))]
        counts = [BLOCK] * (len(prefix) + len(own))
        if row.prefix:
            counts[len(prefix) - 1] = row.prefix.length - (len(prefix) - 1) * BLOCK
        last = [own[-1], row.own.start + (len(own) - 1) * BLOCK]
        return [*last, *prefix, *own, *[own[-1]] * empty, *starts, *[decode.FAR] * empty, *counts, *[0] * empty]

    def begin(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens, positions) [rows], after what all layers share has been made of the buffer."""
        heads, device = self.pool.storage.shape[3], self.held.device
        tokens, positions, block, self.written_from = self.held[:, :4].unbind(1)
        self.write = self.pool.slots(block, torch.zeros_like(block))
        table, first, count = self.held[:, 4:].view(self.rows, 3, self.width).unbind(1)
        one = table[:, None] * heads + torch.arange(heads, device=device)[:, None]  # [rows, heads, width]
        self.places = torch.stack((one, one + self.pool.capacity * heads)).view(-1)
        inside = torch.arange(BLOCK, device=device)
        at = first[:, :, None] + inside
        self.key_position = at.masked_fill_(inside >= count[:, :, None], decode.FAR).view(self.rows, 1, 1, -1)
        return tokens, positions

    def mask(self, positions: torch.Tensor, window: int) -> torch.Tensor:
        """[rows, 1, 1, width * BLOCK] fp32: 0 where the row may look, -inf elsewhere."""
        at = positions[:, None, None, None]
        hidden = self.key_position > at
        if window:
            hidden |= self.key_position <= at - window
        return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, float("-inf"))

    def attend(self, q: torch.Tensor, pool: BlockPool, layer: int, mask: torch.Tensor, scale: float) -> torch.Tensor:
        """q [rows, kv_heads, group, d] over one layer of the cache → [rows, kv_heads * group * d]."""
        b, heads, _, d = q.shape
        both = pool.flat[layer].view(-1, BLOCK * d).index_select(0, self.places)
        keys, values = both.view(2, b, heads, self.width * BLOCK, d).unbind(0)
        scores = torch.add(mask, torch.matmul(q, keys.transpose(2, 3)), alpha=scale)
        return torch.matmul(torch.softmax(scores, -1).to(q.dtype), values).view(b, -1)


class Steps:
    """The decode steps of one session. graphs: capture a shape after `EAGER` steps of it (on CUDA alone).

    captured and replays count what was done, as proof that graphs engaged.
    """

    def __init__(self, model: Any, pool: BlockPool, graphs: bool = True) -> None:
        self.model, self.pool = model, pool
        self.device = model.embedding.device
        # dynamic NTK looks at the positions to choose its table, which a replay cannot
        self.graphs = graphs and self.device.type == "cuda" and all(r.kind != "dynamic" for r in model.config.ropes)
        self.captured = self.replays = 0
        self._layers: Sequence[decode.Layer] = ()
        self._shapes: dict[tuple[int, int], Buffers] = {}
        self._seen: dict[tuple[int, int], int] = {}
        self._graphs: dict[tuple[int, int], tuple[Any, torch.Tensor]] = {}
        self._memory: Any = None  # the graphs' one pool: they never run at once

    def run(self, layers: Sequence[decode.Layer], head: Linear, rows: Sequence[StepRow]) -> torch.Tensor:
        """One step: every row's last token into the cache; logits [len(rows), V], valid until the next step."""
        if layers is not self._layers:  # the engine has read the weights anew: the graphs read the old ones
            self._layers = layers
            self._graphs.clear()
            self._seen.clear()
        widest = max(len(r.own.blocks) + (len(r.prefix.blocks) if r.prefix else 0) for r in rows)
        shape = rounded(len(rows)), rounded(widest)
        if shape not in self._shapes:
            self._shapes[shape] = Buffers(*shape, self.pool, self.device)
        buffers = self._shapes[shape]
        buffers.fill(rows)
        if shape in self._graphs:
            graph, logits = self._graphs[shape]
            graph.replay()
            self.replays += 1
            return logits[: len(rows)]
        seen = self._seen[shape] = self._seen.get(shape, 0) + 1
        logits = self._step(buffers, head)
        if self.graphs and seen == EAGER:
            self._capture(shape, buffers, head)
        return logits[: len(rows)]

    def _step(self, buffers: Buffers, head: Linear) -> torch.Tensor:
        tokens, positions = buffers.begin()
        return head(decode.step(self.model, self._layers, self.pool, buffers, tokens, positions))

    def _capture(self, shape: tuple[int, int], buffers: Buffers, head: Linear) -> None:
        """Record the step that has just run; recording computes nothing, so the cache stays as it is."""
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, pool=self._memory):
            logits = self._step(buffers, head)
        self._graphs[shape] = graph, logits
        self.captured += 1
