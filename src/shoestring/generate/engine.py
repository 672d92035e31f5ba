"""The decode engine: many requests at once over one cache of keys and values.

* a prompt is computed once, however many requests share it, and prompts with a common beginning share that too;
* finished requests leave at once and waiting ones take their rows (continuous batching);
* the noise is the request's own (`sampling`), log-probabilities come with every token.

The engine reads parameters of a decoder by name and keeps no gradient. `refresh` after the weights have moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F

from shoestring.generate.linear import Linear, prepack
from shoestring.generate.sampling import choose, uniform
from shoestring.records import Document, UserError
from shoestring.trees import share_beginnings, tree_rows

PREFILL_ROWS = 2048  # rows of one prefill pack: bounds its activations


@dataclass(frozen=True)
class Request:
    prompt: tuple[int, ...]
    max_new: int
    temperature: float = 0.0
    seed: int = 0
    stop: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Completion:
    """tokens includes the stop token, if one was sampled. logprobs: natural log, one a token."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    reason: Literal["stop", "length"]


@dataclass
class Counters:
    """What the engine did; prompt_rows against prompt_tokens proves that sharing engaged."""

    prompt_tokens: int = 0
    prompt_rows: int = 0
    new_tokens: int = 0
    steps: int = 0


@dataclass
class _Row:
    index: int
    request: Request
    length: int  # tokens in the cache
    last: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Engine:
    """Decode with `model` (a `models.decoder.Decoder` or anything with its parameters and `hidden`).

    slots: rows decoded together. The cache holds slots x the longest request of a call, bf16 or the model's own type:
    2 * layers * kv_heads * head_dim * bytes a token.
    """

    def __init__(self, model: Any, slots: int = 64) -> None:
        self.model, self.slots = model, slots
        self.counters = Counters()
        self.refresh()

    def refresh(self) -> None:
        """Re-read the parameters. Call after an optimiser step."""
        m = self.model
        self._layers: list[tuple[torch.Tensor, Linear, Linear, torch.Tensor, Linear, Linear]] = [
            (
                b.attention_norm.detach(),
                prepack(b.qkv, self.slots),
                prepack(b.out, self.slots),
                b.mlp_norm.detach(),
                prepack(b.gate_up, self.slots),
                prepack(b.down, self.slots),
            )
            for b in m.blocks
        ]
        self._head = prepack(m.output_weight, self.slots)

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], on_finish: Callable[[int, Completion], None] | None = None
    ) -> list[Completion]:
        """Completions in the order of the requests. A request that cannot fit the model's window is a UserError."""
        out: list[Completion | None] = [None] * len(requests)
        for i, done in self.stream(requests):
            out[i] = done
            if on_finish:
                on_finish(i, done)
        return [c for c in out if c is not None]

    @torch.inference_mode()
    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Yield (index, completion) as requests finish."""
        if not requests:
            return
        window = max(len(r.prompt) + r.max_new for r in requests)
        limit = self.model.config.max_positions
        for i, r in enumerate(requests):
            if not r.prompt or len(r.prompt) + r.max_new > limit or r.max_new < 1:
                raise UserError(f"request {i}: {len(r.prompt)} prompt + {r.max_new} new tokens; the window is {limit}")
        c = self.model.config
        weight = self.model.embedding
        slots = min(self.slots, len(requests))
        cache = torch.zeros(c.layers, 2, slots, c.kv_heads, window, c.head_dim, dtype=weight.dtype)
        # neighbours share beginnings: sorting puts equal prompts side by side
        queue = sorted(range(len(requests)), key=lambda i: (requests[i].prompt, i), reverse=True)
        rows: list[_Row] = []
        while queue or rows:
            free = slots - len(rows)
            if queue and (not rows or free >= max(1, slots // 8)):
                taken = [queue.pop() for _ in range(min(free, len(queue)))]
                fresh = [_Row(i, requests[i], len(requests[i].prompt)) for i in taken]
                first = self._prefill(fresh, cache, len(rows))
                rows.extend(fresh)
                yield from self._take(rows, len(rows) - len(fresh), first, cache)
                continue
            yield from self._take(rows, 0, self._step(rows, cache), cache)

    def _take(
        self, rows: list[_Row], start: int, logits: torch.Tensor, cache: torch.Tensor
    ) -> Iterator[tuple[int, Completion]]:
        """Sample for rows[start:], retire the finished and close the gaps they leave."""
        some = rows[start:]
        tokens, logprobs = choose(
            logits, [r.request.temperature for r in some], [uniform(r.request.seed, len(r.tokens)) for r in some]
        )
        finished = []
        for k, (row, token, lp) in enumerate(zip(some, tokens.tolist(), logprobs.tolist(), strict=True)):
            row.last = token
            row.tokens.append(token)
            row.logprobs.append(lp)
            if token in row.request.stop or len(row.tokens) >= row.request.max_new:
                finished.append(start + k)
        self.counters.new_tokens += len(some)
        for at in reversed(finished):
            row = rows[at]
            reason: Literal["stop", "length"] = "stop" if row.last in row.request.stop else "length"
            yield row.index, Completion(tuple(row.tokens), tuple(row.logprobs), reason)
            tail = rows.pop()
            if tail is not row:
                n = tail.length
                cache[:, :, at, :, :n] = cache[:, :, len(rows), :, :n]
                rows[at] = tail

    def _prefill(self, fresh: list[_Row], cache: torch.Tensor, base: int) -> torch.Tensor:
        """Fill the cache for rows base..; returns the next-token logits [len(fresh), V]."""
        logits: list[torch.Tensor] = []
        unique: list[tuple[int, ...]] = []
        users: list[list[int]] = []
        for k, row in enumerate(fresh):
            if unique and unique[-1] == row.request.prompt:
                users[-1].append(k)
            else:
                unique.append(row.request.prompt)
                users.append([k])
        for trees in pack_prompts(unique):
            logits.append(self._prefill_pack(trees, unique, users, cache, base))
        return torch.cat(logits)

    def _prefill_pack(
        self,
        trees: list[tuple[int, list[int]]],
        unique: list[tuple[int, ...]],
        users: list[list[int]],
        cache: torch.Tensor,
        base: int,
    ) -> torch.Tensor:
        tokens: list[int] = []
        positions: list[int] = []
        documents: list[Document] = []
        source: list[int] = []  # row of the pack → (slot, position) of the cache
        slot: list[int] = []
        place: list[int] = []
        last: list[int] = []
        for trunk, members in trees:
            start = len(tokens)
            tokens += unique[members[0]][:trunk]
            positions += range(trunk)
            branches = []
            for u in members:
                prompt = unique[u]
                begin = len(tokens)
                tokens += prompt[trunk:]
                positions += range(trunk, len(prompt))
                branches.append((begin, len(tokens)))
                own = [*range(start, start + trunk), *range(begin, len(tokens))]
                for k in users[u]:
                    source += own
                    slot += [base + k] * len(own)
                    place += range(len(own))
                    last.append(own[-1])
                    self.counters.prompt_tokens += len(own)
            documents.append(Document(start, len(tokens), trunk, tuple(branches) if len(members) > 1 else ()))
        self.counters.prompt_rows += len(tokens)
        src, s, p = torch.tensor(source), torch.tensor(slot), torch.tensor(place)

        def sink(layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
            cache[layer, 0][s, :, p] = k.index_select(0, src)
            cache[layer, 1][s, :, p] = v.index_select(0, src)

        h = self.model.hidden(torch.tensor(tokens), torch.tensor(positions), documents, kv_sink=sink)
        return self._head(h.index_select(0, torch.tensor(last)))

    def _step(self, rows: list[_Row], cache: torch.Tensor) -> torch.Tensor:
        """One token for every row; returns logits [len(rows), V]."""
        m, c = self.model, self.model.config
        b = len(rows)
        lengths = torch.tensor([r.length for r in rows])
        width = int(lengths.max()) + 1
        cos, sin = m.rope(lengths)
        cos, sin = cos.to(cache.dtype)[:, None, :], sin.to(cache.dtype)[:, None, :]
        mask = torch.zeros(b, 1, 1, width)
        scale = c.head_dim**-0.5
        mask.masked_fill_((torch.arange(width)[None, :] > lengths[:, None])[:, None, None, :], float("-inf"))
        index = torch.arange(b)
        turned = c.heads + c.kv_heads
        half = c.head_dim // 2
        x = F.embedding(torch.tensor([r.last for r in rows]), m.embedding)
        for layer, (norm1, qkv_of, out_of, norm2, gate_up_of, down_of) in enumerate(self._layers):
            qkv = qkv_of(_norm(x, norm1, c.norm_eps)).view(b, turned + c.kv_heads, c.head_dim)
            left, right = qkv[:, :turned, :half], qkv[:, :turned, half:]
            qk = torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
            cache[layer, 0][index, :, lengths] = qk[:, c.heads :]
            cache[layer, 1][index, :, lengths] = qkv[:, turned:]
            # the query heads of one key head stand as rows of one attention: no repeated keys
            q = qk[:, : c.heads].reshape(b, c.kv_heads, c.group, c.head_dim)
            k, v = cache[layer, 0, :b, :, :width], cache[layer, 1, :b, :, :width]
            s = torch.matmul(q, k.transpose(2, 3)).float().mul_(scale).add_(mask)
            o = torch.matmul(torch.softmax(s, -1).to(v.dtype), v)
            x = x + out_of(o.reshape(b, -1))
            gate, up = gate_up_of(_norm(x, norm2, c.norm_eps)).chunk(2, -1)
            x = x + down_of(F.silu(gate) * up)
        for row in rows:
            row.length += 1
        self.counters.steps += 1
        return self._head(_norm(x, m.norm, c.norm_eps))


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


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
