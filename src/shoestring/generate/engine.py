"""The decode engine: many requests at once over one cache of keys and values.

* a prompt is computed once, however many requests share it, and stays in the cache once for all of them; prompts with a
  common beginning share its computation too;
* finished requests leave at once and waiting ones take their rows (continuous batching);
* the cache has a stated size: a request is admitted when the blocks that it may need are free;
* the noise is the request's own (`sampling`), log-probabilities come with every token.

The engine reads parameters of a decoder by name and keeps no gradient. `refresh` after the weights have moved.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from shoestring.generate import decode, native, prefill, static
from shoestring.generate.cache import BLOCK, BlockPool, Span, blocks_for
from shoestring.generate.forcing import Forcing
from shoestring.generate.linear import Linear
from shoestring.generate.request import Completion, Event, Request
from shoestring.generate.rows import Prefix, Row
from shoestring.generate.sampling import Filter, choose, likeliest, uniform

SHARE = 8  # a prompt of fewer tokens is copied into each of its rows
TAIL = 24  # tokens that are read back in search of a stop string, beyond the string's own length


@dataclass
class Counters:
    """What the engine did; prompt_rows against prompt_tokens proves that sharing engaged.

    most_blocks: the most blocks of the cache that were in use; waits: steps that a request waited for blocks.
    native_steps: those that ran compiled (`native`).
    """

    prompt_tokens: int = 0
    prompt_rows: int = 0
    new_tokens: int = 0
    steps: int = 0
    native_steps: int = 0
    most_blocks: int = 0
    waits: int = 0


class Engine:
    """Decode with `model` (a `models.decoder.Decoder`).

    slots: rows decoded together. cache_tokens: what the cache may hold, in tokens of `models` size, rounded up to
    blocks; by default what `slots` requests of a call's longest kind need. text: token ids → text, for stop strings.
    graphs: on CUDA, replay steps as graphs; elsewhere it changes nothing.
    """

    def __init__(
        self, model: Any, slots: int = 64, cache_tokens: int | None = None,
        text: Callable[[Sequence[int]], str] | None = None, graphs: bool = True,
    ) -> None:  # fmt: skip
        if slots < 1 or (cache_tokens is not None and cache_tokens < BLOCK):
            raise ValueError(f"{slots=} must be at least 1 and {cache_tokens=} at least {BLOCK}")
        self.model, self.slots, self.cache_tokens, self.text = model, slots, cache_tokens, text
        self.graphs = graphs
        self.counters = Counters()
        self.refresh()

    def refresh(self) -> None:
        """Re-read the parameters. Call after an optimiser step."""
        self.layers = decode.prepare(self.model, self.slots)
        self.head = Linear(self.model.output_weight, self.slots)

    def open(self, cache_tokens: int | None = None) -> Session:
        """A running batch that takes requests as they come. Its cache holds `cache_tokens`, or the engine's own size."""
        return Session(self, blocks_for(cache_tokens) if cache_tokens else self.cache_blocks)

    @property
    def cache_blocks(self) -> int:
        """Of the cache of `open`, by the engine's own size."""
        return blocks_for(self.cache_tokens or self.slots * min(1024, self.model.config.max_positions))

    def generate(
        self, requests: Sequence[Request], on_finish: Callable[[int, Completion], None] | None = None
    ) -> list[Completion]:
        """Completions in the order of the requests; one that cannot be met has reason "error"."""
        out: list[Completion | None] = [None] * len(requests)
        for i, done in self.stream(requests):
            out[i] = done
            if on_finish:
                on_finish(i, done)
        return [c for c in out if c is not None]

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Yield (index, completion) as requests finish."""
        for event in self.tokens(requests):
            if len(event) == 2:
                yield event

    def tokens(self, requests: Sequence[Request]) -> Iterator[Event]:
        """(index, token, log-probability) as they are sampled, with the likeliest where a request asks for them;
        (index, completion) ends a request."""
        if not requests:
            return
        # neighbours share beginnings: sorting puts equal prompts side by side
        order = sorted(range(len(requests)), key=lambda i: (requests[i].prompt, i))
        with self.open(self.cache_tokens or self._needed(requests)) as session:
            names = {session.add(requests[i]): i for i in order}
            while not session.idle:
                for event in session.step():
                    yield (names[event[0]], *event[1:])  # pyright: ignore[reportReturnType]

    def _needed(self, requests: Sequence[Request]) -> int:
        """Cache tokens for `slots` requests of the longest kind, and for the prompts that they share."""
        limit = self.model.config.max_positions
        fitting = [r for r in requests if len(r.prompt) + r.max_new <= limit]
        longest = max((blocks_for(len(r.prompt) + r.max_new) + 1 for r in fitting), default=1)
        return BLOCK * min(self.slots, len(requests)) * longest


class Session:
    """Requests that arrive and leave while others run. Not for several threads at once."""

    def __init__(self, engine: Engine, blocks: int) -> None:
        self.engine, self.model = engine, engine.model
        c = self.model.config
        w = self.model.embedding
        self.pool = BlockPool(c.layers, c.kv_heads, c.head_dim, blocks, w.dtype, w.device)
        self.rows: list[Row] = []
        self.waiting: deque[tuple[int, Request]] = deque()
        self.prefixes: dict[tuple[int, ...], Prefix] = {}
        self._wanted: Counter[tuple[int, ...]] = Counter()  # prompts among the waiting
        self._refused: list[Event] = []
        self._reserved = 0
        self._next = 0
        self._plan: decode.Plan | None = None
        self._steps = static.Steps(self.model, self.pool, engine.graphs) if w.device.type != "cpu" else None
        self._native = native.Steps(self.model, self.pool) if native.usable(self.model) else None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of every request and of the cache."""
        self.rows.clear()
        self.waiting.clear()
        self.prefixes.clear()
        self._steps = self._native = None
        del self.pool.storage, self.pool.flat, self.pool.pairs

    @property
    def idle(self) -> bool:
        return not (self.rows or self.waiting or self._refused)

    def add(self, request: Request) -> int:
        """Queue a request; its id. One that cannot be met ends with reason "error" at the next step."""
        self._next += 1
        fault = self._fault(request)
        if fault:
            self._refused.append((self._next, Completion((), (), "error", fault)))
        else:
            self.waiting.append((self._next, request))
            self._wanted[request.prompt] += 1
        return self._next

    def _fault(self, r: Request) -> str:
        limit = self.model.config.max_positions
        if not r.prompt or r.max_new < 1 or len(r.prompt) + r.max_new > limit:
            return f"{len(r.prompt)} prompt + {r.max_new} new tokens; the window is {limit}"
        if self._blocks(r, False) > self.pool.capacity:
            return f"{len(r.prompt)} prompt + {r.max_new} new tokens; the cache holds {self.pool.capacity * BLOCK}"
        if r.temperature < 0 or not 0 < r.top_p <= 1 or r.top_k < 0 or not 0 <= r.min_p < 1:
            return "temperature must be 0 or more, top_p in (0, 1], top_k 0 or more, min_p in [0, 1)"
        if r.top_logprobs < 0 or (r.top_logprobs and not r.logprobs):
            return "top_logprobs must be 0 or more, and needs logprobs"
        if r.stop_strings and self.engine.text is None:
            return "stop strings need an engine that can read text"
        return ""

    def cancel(self, id: int) -> bool:
        """Forget a request, freeing its blocks at once. False if it had ended."""
        for k, row in enumerate(self.rows):
            if row.id == id:
                self._retire(k)
                return True
        for entry in self.waiting:
            if entry[0] == id:
                self.waiting.remove(entry)
                self._unwant(entry[1].prompt)
                return True
        return False

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Admit waiting requests if there is room, else sample one token a row. Events in the order of the rows."""
        events, self._refused = self._refused, []
        fresh = self._admit()
        if fresh:
            events += self._take(len(self.rows) - len(fresh), self._prefill(fresh))
        elif self.rows:
            events += self._take(0, self._decode())
        self.engine.counters.most_blocks = max(self.engine.counters.most_blocks, self.pool.used)
        return events

    # admission

    @staticmethod
    def _blocks(r: Request, shared: bool) -> int:
        """Blocks of its own that a request may come to need; its last token is never written."""
        return blocks_for((0 if shared else len(r.prompt)) + r.max_new - 1)

    def _admit(self) -> list[Row]:
        free = self.engine.slots - len(self.rows)
        if not self.waiting or (self.rows and free < max(1, self.engine.slots // 8)):
            return []
        fresh: list[Row] = []
        while self.waiting and free > len(fresh):
            id, r = self.waiting[0]
            prefix = self.prefixes.get(r.prompt)
            shared = prefix is not None or (len(r.prompt) >= SHARE and self._wanted[r.prompt] > 1)
            own, more = self._blocks(r, shared), blocks_for(len(r.prompt)) if shared and prefix is None else 0
            if self._reserved + own + more > self.pool.capacity:
                if not self.rows and not fresh:  # alone it fits: prompts kept for later give way, and its own is not shared
                    self._evict()
                    self._wanted[r.prompt] = 1
                    continue
                self.engine.counters.waits += 1
                break
            self.waiting.popleft()
            if shared and prefix is None:
                prefix = self.prefixes[r.prompt] = Prefix(Span(shared=True))
            if prefix is not None:
                prefix.rows += 1
            self._unwant(r.prompt)
            self._reserved += own + more
            start = len(r.prompt) if prefix else 0
            span, narrow = prefix.span if prefix else None, Filter(r.top_p, r.top_k, r.min_p)
            forcing = Forcing(r, r.thinking) if r.thinking else None
            fresh.append(Row(id, r, Span(start), span, own, narrow, forcing=forcing))
        self.rows += fresh
        return fresh

    def _unwant(self, prompt: tuple[int, ...]) -> None:
        self._wanted[prompt] -= 1
        if self._wanted[prompt] <= 0:
            del self._wanted[prompt]
        self._drop(prompt)

    def _drop(self, prompt: tuple[int, ...]) -> None:
        """Free a shared prompt that no row reads and no waiting request wants."""
        prefix = self.prefixes.get(prompt)
        if prefix is not None and not prefix.rows and prompt not in self._wanted:
            self._free(prompt, prefix)

    def _free(self, prompt: tuple[int, ...], prefix: Prefix) -> None:
        self._reserved -= blocks_for(len(prompt))
        self.pool.release(prefix.span)
        del self.prefixes[prompt]

    def _evict(self) -> None:
        for prompt, prefix in list(self.prefixes.items()):
            if not prefix.rows:
                self._free(prompt, prefix)

    # computing

    def _prefill(self, fresh: list[Row]) -> torch.Tensor:
        """Compute the prompts of new rows into the cache; next-token logits [len(fresh), V]."""
        spans: dict[tuple[int, ...], list[Span]] = {}
        for row in fresh:
            prompt = row.request.prompt
            self.engine.counters.prompt_tokens += len(prompt)
            if row.prefix is None:
                spans.setdefault(prompt, []).append(row.own)
            elif self.prefixes[prompt].logits is None:
                spans[prompt] = [row.prefix]
        for prompt, copies in spans.items():
            for span in copies:
                self.pool.grow(span, len(prompt))
                span.length = len(prompt)
        logits: dict[tuple[int, ...], torch.Tensor] = {}
        if spans:
            hidden, rows = prefill.run(self.model, self.engine.layers, spans, self.pool)
            self.engine.counters.prompt_rows += rows
            for prompt, row in zip(hidden, self.engine.head(torch.stack(list(hidden.values()))), strict=True):
                logits[prompt] = row
                if prompt in self.prefixes:
                    self.prefixes[prompt].logits = row
        return torch.stack(
            [logits[p] if p in logits else self.prefixes[p].logits for p in (r.request.prompt for r in fresh)]  # pyright: ignore
        )

    def _decode(self) -> torch.Tensor:
        for row in self.rows:
            self.pool.grow(row.own, row.own.length + 1)
        if self._steps is not None:
            logits = self._steps.run(self.engine.layers, self.engine.head, self.rows)
        else:
            if self._plan is None or self._plan.version != self.pool.version:
                self._plan = decode.Plan(self.rows, self.pool, self.model.embedding.device)
            tokens = torch.tensor([r.last for r in self.rows])
            positions = torch.tensor([r.position for r in self.rows])
            if self._native is not None:
                hidden = self._native.run(self.engine.layers, self._plan, tokens, positions)
                self.engine.counters.native_steps += 1
            else:
                hidden = decode.step(self.model, self.engine.layers, self.pool, self._plan, tokens, positions)
            logits = self.engine.head(hidden)
        for row in self.rows:
            row.own.length += 1
        self.engine.counters.steps += 1
        return logits

    # sampling

    def _take(self, start: int, logits: torch.Tensor) -> list[Event]:
        """Sample for rows[start:] and retire the finished."""
        some = self.rows[start:]
        tokens, logprobs = choose(
            logits,
            [r.request.temperature for r in some],
            [uniform(r.request.seed, r.draws) if r.request.temperature else 0.0 for r in some],
            [r.filter for r in some],
            [r.request.logprobs for r in some],
        )
        events: list[Event] = []
        ended: list[int] = []
        for k, (row, token, lp) in enumerate(zip(some, tokens.tolist(), logprobs.tolist(), strict=True)):
            if row.request.top_logprobs:
                row.tops.append(likeliest(logits[k], row.request.top_logprobs, token, lp, row.request.temperature))
            if row.forcing is not None:
                events += self._forced(row, row.forcing, token, lp, logits[k])
            else:
                row.last = token
                row.tokens.append(token)
                if row.request.logprobs:
                    row.logprobs.append(lp)
                events.append(row.event(token, lp))
            reason = self._reason(row)
            if reason:
                ended.append(start + k)
                if row.forcing is not None:
                    events += [row.event(*told) for told in row.forcing.told(row.tokens, last=True)]
                events.append((row.id, row.completion(reason)))
        self.engine.counters.new_tokens += len(some)
        for at in reversed(ended):
            self._retire(at)
        return events

    def _forced(self, row: Row, forcing: Forcing, token: int, lp: float, logits: torch.Tensor) -> list[Event]:
        """One step of a row whose thinking is forced: logits [V] are those that `token` was sampled from."""

        def other(id: int) -> float:
            """The log-probability of another token under the same softmax."""
            return lp + float(logits[id].float() - logits[token].float()) / (row.request.temperature or 1.0)

        move = forcing.take(row.tokens, token)
        if move.drop:
            del row.tokens[-move.drop :], row.logprobs[-move.drop :], forcing.pending[-move.drop :]
            del row.tops[-move.drop :]  # this step's too: what stays last is of the place where the words now begin
            self.pool.shrink(row.own, row.own.length - move.drop)
            value = forcing.begun[-move.drop]
        else:
            value = other(move.token) if move.forced else lp
        row.last = move.token
        row.tokens.append(move.token)
        if row.request.logprobs:
            row.logprobs.append(value)
        forcing.pending.append((move.token, value))
        held = forcing.held(row.tokens)
        forcing.begun = [*forcing.begun, other(forcing.asked.wait[0])][-held:] if held else []
        return [row.event(*told) for told in forcing.told(row.tokens)]

    def _reason(self, row: Row) -> Literal["stop", "length", ""]:
        r = row.request
        if row.last in r.stop and (row.forcing is None or row.forcing.sampled[-1]):
            return "stop"
        if r.stop_strings and self.engine.text is not None:
            tail = self.engine.text(row.tokens[-TAIL - max(map(len, r.stop_strings)) :])
            if any(s in tail for s in r.stop_strings):
                return "stop"
        return "length" if len(row.tokens) >= r.max_new else ""

    def _retire(self, at: int) -> None:
        row = self.rows[at]
        self.rows[at] = self.rows[-1]
        self.rows.pop()
        self.pool.release(row.own)
        self.pool.version += 1  # the rows have changed, even where no block was held
        self._reserved -= row.reserved
        if row.prefix is not None:
            self.prefixes[row.request.prompt].rows -= 1
            self._drop(row.request.prompt)
