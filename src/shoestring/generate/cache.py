"""The cache of keys and values, in blocks of a few tokens (Kwon et al. 2023, section 4), bounded by a stated size.

One storage serves two regions: the blocks of single rows grow from the left, the blocks of prompts that several rows
share grow from the right. Each region is kept dense, so that a decode step multiplies whole slices of the storage and
copies no key. A block that leaves a hole is filled by the region's last one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

BLOCK = 64  # tokens: 16, 32 and 64 decode alike fast here; fewer mean more products, more mean more padding


def blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK)


@dataclass(eq=False)
class Span:
    """Consecutive positions of one sequence: `length` tokens from position `start`, in `blocks` of the pool."""

    start: int = 0
    length: int = 0
    shared: bool = False
    blocks: list[int] = field(default_factory=list)


class BlockPool:
    """storage [layers, 2, blocks, kv_heads, BLOCK, head_dim]: index 0 of the second axis holds keys, 1 values.

    Views of it, a layer each: flat, keys then values as rows [2 * blocks * kv_heads * BLOCK, head_dim]; pairs, the two.

    Memory is layers * 2 * blocks * kv_heads * BLOCK * head_dim * bytes, all of it asked for here and touched as used.
    """

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, blocks: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:  # fmt: skip
        # zeros, because an unused value is multiplied by a probability of 0 and must not be NaN
        self.storage = torch.zeros(layers, 2, blocks, kv_heads, BLOCK, head_dim, dtype=dtype, device=device)
        self.flat = [layer.view(-1, head_dim) for layer in self.storage]
        self.pairs = [(layer[0], layer[1]) for layer in self.storage]
        self.capacity = blocks
        self.left = 0  # blocks of single rows are 0 .. left
        self.right = blocks  # shared blocks are right .. capacity
        self.owner: dict[int, Span] = {}
        self.version = 0  # changes whenever a block is given, taken or moved

    @property
    def used(self) -> int:
        return self.left + self.capacity - self.right

    @property
    def bytes(self) -> int:
        return self.storage.numel() * self.storage.element_size()

    def grow(self, span: Span, tokens: int) -> None:
        """Give `span` blocks for its first `tokens` tokens. MemoryError when there are none: admission prevents it."""
        while len(span.blocks) < blocks_for(tokens):
            if self.left == self.right:
                raise MemoryError("the cache of keys and values is full")
            if span.shared:
                self.right -= 1
                block = self.right
            else:
                block = self.left
                self.left += 1
            span.blocks.append(block)
            self.owner[block] = span
            self.version += 1

    def release(self, span: Span) -> None:
        """Take back every block of `span`."""
        self.shrink(span, 0)

    def shrink(self, span: Span, tokens: int) -> None:
        """Keep the first `tokens` tokens of `span`; the region's last blocks fill the holes of those taken back."""
        while len(span.blocks) > blocks_for(tokens):
            hole = span.blocks.pop()
            del self.owner[hole]
            last = self.right if span.shared else self.left - 1
            if hole != last:
                self.storage[:, :, hole] = self.storage[:, :, last]
                moved = self.owner.pop(last)
                moved.blocks[moved.blocks.index(last)] = hole
                self.owner[hole] = moved
            if span.shared:
                self.right += 1
            else:
                self.left -= 1
            self.version += 1
        span.length = tokens

    def slots(self, blocks: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Row numbers in `flat` of some tokens: [N] blocks and offsets → [N, 2 * kv_heads], keys then values."""
        heads = self.storage.shape[3]
        row = (blocks[:, None] * heads + torch.arange(heads, device=blocks.device)) * BLOCK + offsets[:, None]
        return torch.cat((row, row + self.capacity * heads * BLOCK), dim=1)
