"""The decoder: embeddings, pre-norm blocks of grouped-query attention and a gated MLP, a final norm, a head.

It knows no cluster, no optimiser and no sampler: `hidden` runs a pack of documents for training and prefill, and
`generate.engine` walks `blocks` one token at a time through the same parameters. Weights that are read together are
stored together: `qkv` [(heads + 2 kv_heads) * head_dim, hidden] and `gate_up` [2 * intermediate, hidden]. What a family
adds to that (biases, norms of heads, norms after a sublayer) is a parameter where the config has it and None elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from shoestring import native
from shoestring.models.attention import AttentionPlan
from shoestring.models.config import DecoderConfig
from shoestring.models.kernels import gate, norm_heads, rms_norm, rotate
from shoestring.models.rope import angles, frequencies
from shoestring.models.varlen import VarlenPlan, attend_any, plan_for
from shoestring.records import Document


class FastLinear(Protocol):
    """What may stand for a layer's product: x [N, in] → [N, out], and the same added to a residual [N, out]."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...
    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor: ...


KVSink = Callable[[int, torch.Tensor, torch.Tensor], None]
Turn = tuple[torch.Tensor, torch.Tensor]


class Block(nn.Module):
    """The parameters of one layer. `adapters` maps a matrix's name to what stands in for its product (models.lora)."""

    adapters: dict[str, Any] | None = None

    def __init__(self, c: DecoderConfig) -> None:
        super().__init__()

        def optional(name: str, size: int, wanted: bool) -> None:
            filled = torch.ones(size) if name.endswith("norm") else torch.zeros(size)
            self.register_parameter(name, nn.Parameter(filled) if wanted else None)

        self.attention_norm = nn.Parameter(torch.ones(c.hidden))
        self.qkv = nn.Parameter(torch.empty(c.qkv_rows, c.hidden))
        optional("qkv_bias", c.qkv_rows, c.qkv_bias)
        optional("query_norm", c.head_dim, c.qk_norm)
        optional("key_norm", c.head_dim, c.qk_norm)
        self.out = nn.Parameter(torch.empty(c.hidden, c.heads * c.head_dim))
        optional("out_bias", c.hidden, c.out_bias)
        optional("attention_post_norm", c.hidden, c.post_norms)
        self.mlp_norm = nn.Parameter(torch.ones(c.hidden))
        self.gate_up = nn.Parameter(torch.empty(2 * c.intermediate, c.hidden))
        optional("gate_up_bias", 2 * c.intermediate, c.mlp_bias)
        self.down = nn.Parameter(torch.empty(c.hidden, c.intermediate))
        optional("down_bias", c.hidden, c.mlp_bias)
        optional("mlp_post_norm", c.hidden, c.post_norms)


class Decoder(nn.Module):
    """Parameters and the packed forward pass. Build with `folder.load` or give a config for random weights.

    wrap: if set, `hidden` runs `wrap(self._block)` in place of `self._block` (activation recomputation, compilation).
    """

    wrap: Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]] | None = None

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.vocab, config.hidden))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.Parameter(torch.ones(config.hidden))
        self.head = None if config.tied else nn.Parameter(torch.empty(config.vocab, config.hidden))
        self.register_buffer("inverse_frequency", self._frequencies(), persistent=False)

    def _frequencies(self) -> torch.Tensor:
        """[ropes, head_dim / 2] fp32 on the embedding's device."""
        c = self.config
        return torch.stack([frequencies(r, c.head_dim) for r in c.ropes]).to(self.embedding.device)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Decoder:
        super()._apply(fn, recurse)
        # a cast would narrow the angles to bf16, and a move off the meta device would leave them empty
        self.inverse_frequency = self._frequencies()
        return self

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

    def rope(self, positions: torch.Tensor, which: int = 0, lengths: torch.Tensor | None = None) -> Turn:
        """cos, sin of table `which`, each [N, head_dim / 2] fp32, attention factor included.

        lengths [N] matters to dynamic NTK alone: how long each row's sequence is; by default it ends at the row.
        """
        return angles(self.config.ropes[which], self.get_buffer("inverse_frequency")[which], positions, lengths)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [N] → [N, hidden], times the embedding scale where the family has one."""
        x = F.embedding(tokens, self.embedding)
        scale = self.config.embedding_scale
        return x if scale == 1.0 else x * x.new_full((), scale)  # the scale is rounded too, as Gemma's is

    def project(self, block: nn.Module, name: str, x: torch.Tensor) -> torch.Tensor:
        """x [N, in] → x @ weight.T + bias [N, out] for the block's matrix `name`: qkv, out, gate_up or down."""
        weight, bias = getattr(block, name), getattr(block, name + "_bias", None)
        adapters = getattr(block, "adapters", None)
        if adapters and name in adapters:
            return adapters[name].forward(x, weight, bias)
        return F.linear(x, weight, bias)

    def weight(self, block: nn.Module, name: str) -> torch.Tensor:
        """The dense matrix [out, in] that `project` multiplies by, detached: dequantised, its adapter merged."""
        weight = getattr(block, name)
        adapters = getattr(block, "adapters", None)
        if adapters and name in adapters:
            return adapters[name].merged(weight).detach()
        return weight.detach()

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        documents: Sequence[Document],
        kv_sink: KVSink | None = None,
        linears: Sequence[Mapping[str, FastLinear]] | None = None,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """tokens [N], positions [N] → final normed hidden states [N, hidden], or [len(wanted), hidden].

        kv_sink(layer, keys [N, kv_heads, head_dim] rotated, values) receives every layer's cache entries. linears: what
        stands for `project` in each layer, by the matrix's name, such as an engine's prepacked weights. wanted [M]: rows
        whose hidden states are needed; the last layer computes no more than their attention for the others.
        """
        c = self.config
        count = tokens.shape[0]
        plan = plan_for(documents, count, c.windows, self.embedding, c.head_dim)
        if torch.is_grad_enabled() and kv_sink is None and linears is None and wanted is None:
            tokens, positions = native.filled(tokens), native.filled(positions)
        facts = [c.layer(i) for i in range(c.layers)]
        lengths = _lengths(positions, documents) if any(r.kind == "dynamic" for r in c.ropes) else None
        turns: dict[int, Turn | None] = {k: self.rope(positions, k, lengths) for k in {f.rope for f in facts} if k >= 0}
        turns[-1] = None
        run = self._block if self.wrap is None else self.wrap(self._block)
        x = self.embed(tokens)
        for i, (block, fact) in enumerate(zip(self.blocks, facts, strict=True)):
            sink = None if kv_sink is None else partial(kv_sink, i)
            fast = None if linears is None else linears[i]
            x = run(block, x, turns[fact.rope], plan, fact.window, sink, fast, wanted if i == c.layers - 1 else None)
        return rms_norm(x, self.norm, c.norm_eps)[:count]

    def _block(
        self,
        block: Any,
        x: torch.Tensor,
        turn: Turn | None,
        plan: AttentionPlan | VarlenPlan,
        window: int,
        sink: Callable[[torch.Tensor, torch.Tensor], None] | None,
        linears: Mapping[str, FastLinear] | None = None,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One layer on x [N, hidden] → [N, hidden], or its rows `wanted`. turn: cos and sin, None without positions."""
        c = self.config

        def project(name: str, x: torch.Tensor) -> torch.Tensor:
            return self.project(block, name, x) if linears is None else linears[name](x)

        def onto(x: torch.Tensor, name: str, y: torch.Tensor, norm: str) -> torch.Tensor:
            """x plus the sublayer's last product of y."""
            if c.post_norms:
                return x + rms_norm(project(name, y), getattr(block, norm), c.norm_eps)
            return x + project(name, y) if linears is None else linears[name].add(y, x)

        qkv = project("qkv", rms_norm(x, block.attention_norm, c.norm_eps))
        if c.qk_norm:
            qkv = norm_heads(qkv, block.query_norm, block.key_norm, c.norm_eps, c.heads, c.kv_heads)
        if turn is not None:
            qkv = rotate(qkv, *turn, c.heads + c.kv_heads, c.kv_heads)
        if sink is not None:
            parts = qkv.view(-1, c.heads + 2 * c.kv_heads, c.head_dim)
            sink(parts[:, c.heads : c.heads + c.kv_heads], parts[:, c.heads + c.kv_heads :])
        seen = attend_any(qkv, plan, c.heads, c.kv_heads, c.head_dim, c.attention_scale, window)
        if wanted is not None:
            x, seen = x.index_select(0, wanted), seen.index_select(0, wanted)
        x = onto(x, "out", seen, "attention_post_norm")
        h = project("gate_up", rms_norm(x, block.mlp_norm, c.norm_eps))
        return onto(x, "down", gate(h, c.activation), "mlp_post_norm")

    def logits(self, tokens: torch.Tensor, positions: torch.Tensor, documents: Sequence[Document]) -> torch.Tensor:
        """Full logits [N, vocab]. For tests and small inputs: training never holds them."""
        return F.linear(self.hidden(tokens, positions, documents), self.output_weight)


def _lengths(positions: torch.Tensor, documents: Sequence[Document]) -> torch.Tensor:
    """[N]: the length of each row's document. A shared trunk takes its longest branch's."""
    lengths = positions + 1
    for d in documents:
        if d.end > d.start:
            lengths[d.start : d.end] = positions[d.start : d.end].max() + 1
    return lengths
