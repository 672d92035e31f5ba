"""The decoder: embeddings, pre-norm blocks of grouped-query attention and a gated MLP, a final norm, a head.

It knows no cluster, no optimiser and no sampler: `hidden` runs a pack of documents for training and prefill, and
`generate.engine` walks `blocks` one token at a time through the same parameters. Weights that are read together are
stored together: `qkv` [(heads + 2 kv_heads) * head_dim, hidden] and `gate_up` [2 * intermediate, hidden].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from shoestring.models.attention import AttentionPlan, attend, plan_attention
from shoestring.models.config import DecoderConfig
from shoestring.models.kernels import rms_norm, rotate, swiglu
from shoestring.records import Document

KVSink = Callable[[int, torch.Tensor, torch.Tensor], None]


class Block(nn.Module):
    def __init__(self, c: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.Parameter(torch.ones(c.hidden))
        self.qkv = nn.Parameter(torch.empty(c.qkv_rows, c.hidden))
        self.out = nn.Parameter(torch.empty(c.hidden, c.heads * c.head_dim))
        self.mlp_norm = nn.Parameter(torch.ones(c.hidden))
        self.gate_up = nn.Parameter(torch.empty(2 * c.intermediate, c.hidden))
        self.down = nn.Parameter(torch.empty(c.hidden, c.intermediate))


class Decoder(nn.Module):
    """Parameters and the packed forward pass. Build with `families.load` or give a config for random weights."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.vocab, config.hidden))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.Parameter(torch.ones(config.hidden))
        self.head = None if config.tied else nn.Parameter(torch.empty(config.vocab, config.hidden))
        inv = config.rope_theta ** -(torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
        self.register_buffer("inverse_frequency", inv.to(torch.float32), persistent=False)

    def randomise(self, seed: int, std: float = 0.02) -> Decoder:
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, p in self.named_parameters():
                if not name.endswith("norm"):
                    p.copy_(torch.randn(p.shape, generator=g) * std)
        return self

    @property
    def output_weight(self) -> torch.Tensor:
        """[vocab, hidden]"""
        return self.embedding if self.head is None else self.head

    def rope(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos, sin, each [N, head_dim / 2] fp32."""
        angle = positions.to(torch.float32)[:, None] * self.get_buffer("inverse_frequency")[None, :]
        return angle.cos(), angle.sin()

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        documents: Sequence[Document],
        kv_sink: KVSink | None = None,
    ) -> torch.Tensor:
        """tokens [N], positions [N] → final normed hidden states [N, hidden].

        kv_sink(layer, keys [N, kv_heads, head_dim] rotated, values) receives every layer's cache entries.
        """
        plan = plan_attention(documents, tokens.shape[0])
        cos, sin = self.rope(positions)
        x = F.embedding(tokens, self.embedding)
        for i, block in enumerate(self.blocks):
            x = self._block(block, x, cos, sin, plan, i, kv_sink)  # pyright: ignore[reportArgumentType]
        return rms_norm(x, self.norm, self.config.norm_eps)

    def _block(
        self,
        block: Block,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        plan: AttentionPlan,
        layer: int,
        kv_sink: KVSink | None,
    ) -> torch.Tensor:
        c = self.config
        h = rms_norm(x, block.attention_norm, c.norm_eps)
        qkv = rotate(F.linear(h, block.qkv), cos, sin, c.heads + c.kv_heads, c.kv_heads)
        if kv_sink is not None:
            parts = qkv.view(-1, c.heads + 2 * c.kv_heads, c.head_dim)
            kv_sink(layer, parts[:, c.heads : c.heads + c.kv_heads], parts[:, c.heads + c.kv_heads :])
        x = x + F.linear(attend(qkv, plan, c.heads, c.kv_heads, c.head_dim), block.out)
        h = rms_norm(x, block.mlp_norm, c.norm_eps)
        return x + F.linear(swiglu(F.linear(h, block.gate_up)), block.down)

    def logits(self, tokens: torch.Tensor, positions: torch.Tensor, documents: Sequence[Document]) -> torch.Tensor:
        """Full logits [N, vocab]. For tests and small inputs: training never holds them."""
        return F.linear(self.hidden(tokens, positions, documents), self.output_weight)
