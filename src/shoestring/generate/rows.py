"""The rows of a running batch, and the prompts that they share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from shoestring.generate.cache import Span
from shoestring.generate.forcing import Forcing
from shoestring.generate.request import Completion, Request
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

    @property
    def position(self) -> int:
        """Of the token that is computed next."""
        return len(self.request.prompt) + len(self.tokens) - 1

    @property
    def draws(self) -> int:
        """How many tokens were sampled or forced before, those taken back included."""
        return len(self.tokens) + (self.forcing.dropped if self.forcing else 0)

    def completion(self, reason: Literal["stop", "length"]) -> Completion:
        facts: Any = self.forcing.facts(self.tokens) if self.forcing else {}
        return Completion(tuple(self.tokens), tuple(self.logprobs), reason, **facts)
