"""Prompts into the cache: distinct prompts packed together, common beginnings computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from shoestring.generate.cache import BLOCK, BlockPool, Span
from shoestring.generate.decode import Layer
from shoestring.generate.linear import Linear
from shoestring.records import Document
from shoestring.trees import share_beginnings, tree_rows

PREFILL_ROWS = 2048  # rows of one pack: bounds its activations


def run(
    model: Any, layers: Sequence[Layer], spans: Mapping[tuple[int, ...], Sequence[Span]], pool: BlockPool
) -> tuple[dict[tuple[int, ...], torch.Tensor], int]:
    """Compute each prompt once and write its keys and values into all of its spans (which have their blocks).

    layers: the steps' own weights, prepacked where that pays; prompts are multiplied by them too.

    Returns the final hidden state [hidden] of every prompt's last token, and the number of rows computed.
    """
    prompts = sorted(spans)
    out: dict[tuple[int, ...], torch.Tensor] = {}
    rows = 0
    linears = [{"qkv": w.qkv, "out": w.out, "gate_up": w.gate_up, "down": w.down} for w in layers]
    for trees in pack_prompts(prompts):
        rows += _pack(model, linears, trees, prompts, spans, pool, out)
    return out, rows


def _pack(
    model: Any,
    linears: Sequence[Mapping[str, Linear]],
    trees: list[tuple[int, list[int]]],
    prompts: Sequence[tuple[int, ...]],
    spans: Mapping[tuple[int, ...], Sequence[Span]],
    pool: BlockPool,
    out: dict[tuple[int, ...], torch.Tensor],
) -> int:
    device = model.embedding.device
    tokens: list[int] = []
    positions: list[int] = []
    documents: list[Document] = []
    source: list[int] = []  # row of the pack → block and offset of the cache
    block: list[int] = []
    offset: list[int] = []
    last: dict[tuple[int, ...], int] = {}
    for trunk, members in trees:
        start = len(tokens)
        tokens += prompts[members[0]][:trunk]
        positions += range(trunk)
        branches = []
        for u in members:
            prompt = prompts[u]
            begin = len(tokens)
            tokens += prompt[trunk:]
            positions += range(trunk, len(prompt))
            branches.append((begin, len(tokens)))
            own = [*range(start, start + trunk), *range(begin, len(tokens))]
            last[prompt] = own[-1]
            for span in spans[prompt]:
                source += own
                block += [span.blocks[i // BLOCK] for i in range(len(own))]
                offset += [i % BLOCK for i in range(len(own))]
        documents.append(Document(start, len(tokens), trunk, tuple(branches) if len(members) > 1 else ()))

    def ids(x: list[int]) -> torch.Tensor:
        return torch.tensor(x, device=device)

    rows_of, slots = ids(source), pool.slots(ids(block), ids(offset)).view(-1)
    width = pool.storage.shape[-1]

    def sink(layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        both = torch.cat((k, v), dim=1).index_select(0, rows_of)  # [N, 2 * kv_heads, d]
        pool.flat[layer].index_put_((slots,), both.reshape(-1, width))

    h = model.hidden(ids(tokens), ids(positions), documents, sink, linears, ids(list(last.values())))
    for prompt, hidden in zip(last, h, strict=True):
        out[prompt] = hidden
    return len(tokens)


def pack_prompts(unique: Sequence[tuple[int, ...]]) -> list[list[tuple[int, list[int]]]]:
    """Packs of trees (shared beginning, members) over sorted distinct prompts, in order.

    The last token of a prompt is never shared, because its hidden state is the one that predicts.
    """
    trees = share_beginnings(unique, [len(p) - 1 for p in unique], range(len(unique)), PREFILL_ROWS)
    packs: list[list[tuple[int, list[int]]]] = []
    size = 0
    for tree in trees:
        rows = tree_rows(unique, tree)
        if not packs or size + rows > PREFILL_ROWS:
            packs.append([])
            size = 0
        packs[-1].append(tree)
        size += rows
    return packs
