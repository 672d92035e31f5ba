"""The rows of a running batch, and the prompts that they share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from shoestring.generate.cache import Span
from shoestring.generate.forcing import Forcing
from shoestring.generate.request import Completion, Event, Request, Top
from shoestring.generate.sampling import Filter


@dataclass
class Prefix:
    """A prompt that several rows share: its blocks, its next-token logits, and how many rows look at it."""

    span: Span
    logits: torch.Tensor | None = None
    rows: int = 0


@dataclass(eq=False)
class Row:
    id: int
    request: Request
    own: Span
    prefix: Span | None
    reserved: int  # blocks that this row may still come to need, those it has included
    filter: Filter
    last: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    forcing: Forcing | None = None
    tops: list[Top] = field(default_factory=list)  # one a token, where they were asked for
    told: int = 0  # how many of them were

    @property
    def position(self) -> int:
        """Of the token that is computed next."""
        return len(self.request.prompt) + len(self.tokens) - 1

    @property
    def draws(self) -> int:
        """How many tokens were sampled or forced before, those taken back included."""
        return len(self.tokens) + (self.forcing.dropped if self.forcing else 0)

    def event(self, token: int, logprob: float) -> Event:
        """Of the next token of the answer that is told; they are told in order."""
        if not self.request.top_logprobs:
            return self.id, token, logprob
        self.told += 1
        return self.id, token, logprob, self.tops[self.told - 1]

    def completion(self, reason: Literal["stop", "length"]) -> Completion:
        facts: Any = self.forcing.facts(self.tokens) if self.forcing else {}
        return Completion(tuple(self.tokens), tuple(self.logprobs), reason, top_logprobs=tuple(self.tops), **facts)
