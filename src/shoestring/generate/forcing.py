"""The state of one request whose thinking is forced: what becomes of each token that the model samples.

The engine and the endpoint both follow it, so they force alike. Ids only; no torch, no text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shoestring.generate.request import Request, Thinking


@dataclass(frozen=True)
class Move:
    """Take the last `drop` tokens back, then append `token`. forced: it is not what the model sampled."""

    token: int
    drop: int = 0
    forced: bool = False


class Forcing:
    """`take` is asked once a sampled token, before it is appended; `tokens` is always the answer so far.

    sampled: one a token of the answer. thinking: its thinking tokens, -1 while it thinks. waits: ends taken back.
    dropped: tokens taken back out of the answer, so that noise is never used twice.
    pending: (token, log-probability) not told yet, because they may begin an end that is taken back. begun: the
    log-probability that the first forced word would have had at the place of each of the last held tokens.
    """

    def __init__(self, request: Request, thinking: Thinking) -> None:
        self.asked, self.stop, self.prompt = thinking, request.stop, request.prompt
        self.ends = {*thinking.ends, *((s,) for s in request.stop)}
        self.begins = {e[:n] for e in self.ends for n in range(1, len(e))}
        self.longest = max(map(len, self.begins), default=0)
        self.queue: deque[int] = deque()
        self.sampled: list[bool] = []
        self.thinking = -1
        self.waits = self.dropped = 0
        self._since = 0  # an end is looked for among the tokens sampled after the last forced one
        self.pending: list[tuple[int, float]] = []
        self.begun: list[float] = []

    def take(self, tokens: Sequence[int], token: int) -> Move:
        """What becomes of the sampled `token` after `tokens`. Updates everything but pending and begun."""
        move = self._move(tokens, token)
        if move.drop:
            del self.sampled[-move.drop :]
            self.dropped += move.drop
        self.sampled.append(not move.forced)
        if move.forced:
            self._since = len(self.sampled)
        return move

    def _move(self, tokens: Sequence[int], token: int) -> Move:
        if self.queue:
            return Move(self.queue.popleft(), forced=True)
        if self.thinking >= 0:
            return Move(token)
        n = len(tokens)
        if n >= self.asked.budget:
            return self._close(tokens)
        recent = (*tokens[max(self._since, n - self.longest) :], token)
        end = max((len(e) for e in self.ends if recent[-len(e) :] == e), default=0)
        if not end:
            return Move(token)
        kept = n + 1 - end
        if self._may_wait(kept):
            self.waits += 1
            self.queue.extend(self.asked.wait[1:])
            return Move(self.asked.wait[0], end - 1, True)
        if token in self.stop and self._closing(tokens)[1]:
            return self._close(tokens)
        self.thinking = kept
        return Move(token)

    def _may_wait(self, kept: int) -> bool:
        """Whether an end after `kept` thinking tokens is taken back: the words and one token more must fit."""
        return self.waits < self.asked.waits and kept + len(self.asked.wait) < self.asked.budget

    def _closing(self, tokens: Sequence[int]) -> tuple[tuple[int, ...], bool]:
        """The ids that close this thinking, and whether they begin with a marker, without which a turn ends unanswered."""
        a = self.asked
        head = tuple(tokens[: max(map(len, a.opens), default=0)])
        opened = any(head[: len(o)] == o or self.prompt[-len(o) :] == o for o in a.opens)
        close = a.tagged if opened else a.close
        return close, any(close[: len(e)] == e for e in a.ends)

    def _close(self, tokens: Sequence[int]) -> Move:
        """End the thinking here. A marker that the model has begun is finished, not begun again."""
        close, _ = self._closing(tokens)
        recent = tuple(tokens[self._since :])[-self.longest :] if self.longest else ()
        begun = max((n for n in range(1, len(recent) + 1) if self._begins(recent[-n:], close)), default=0)
        self.thinking = len(tokens) - begun
        self.queue.extend(close[begun:])
        return Move(self.queue.popleft(), forced=True)

    def _begins(self, tail: tuple[int, ...], close: tuple[int, ...]) -> bool:
        return tail in self.begins and len(tail) < len(close) and close[: len(tail)] == tail

    def held(self, tokens: Sequence[int]) -> int:
        """How many tokens at the end of the answer may still be taken back."""
        if self.thinking >= 0 or self.waits >= self.asked.waits:
            return 0
        n = len(tokens)
        for k in range(min(self.longest, n - self._since), 0, -1):
            if tuple(tokens[n - k :]) in self.begins and self._may_wait(n - k):
                return k
        return 0

    def told(self, tokens: Sequence[int], last: bool = False) -> Iterable[tuple[int, float]]:
        """The pending tokens that are certain now, which are pending no longer."""
        sure = len(self.pending) - (0 if last else self.held(tokens))
        out, self.pending = self.pending[:sure], self.pending[sure:]
        return out

    def facts(self, tokens: Sequence[int]) -> dict[str, object]:
        """What a completion says of its forcing."""
        thinking = self.thinking if self.thinking >= 0 else len(tokens)
        return {"sampled": tuple(self.sampled), "thinking": thinking, "waits": self.waits}
