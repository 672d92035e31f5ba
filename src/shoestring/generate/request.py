"""What is asked of an engine or a server, and what comes back. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Top = tuple[tuple[int, float], ...]  # the likeliest tokens of one place, the likeliest first: (id, log-probability)


@dataclass(frozen=True)
class Thinking:
    """How long to think before the answer: budget forcing (Muennighoff et al. 2025, s1, section 3.1), in token ids.

    budget: most thinking tokens, the forced words among them included; there `close` is forced, which ends the thinking and
    opens the answer. ends: sequences that end the thinking when they are sampled. waits: how many such ends are taken back
    and replaced by `wait`. answer: tokens kept for the answer beyond the budget, the forced `close` included.
    opens, tagged: where the prompt ends in or the answer begins with one of `opens`, `tagged` is forced in place of `close`.
    `thinking.thinking_of` makes one from a tokenizer.
    """

    budget: int
    close: tuple[int, ...]
    ends: tuple[tuple[int, ...], ...]
    waits: int = 0
    wait: tuple[int, ...] = ()
    answer: int = 64
    opens: tuple[tuple[int, ...], ...] = ()
    tagged: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.budget < 0 or self.waits < 0:
            raise ValueError(f"{self.budget=} and {self.waits=} must be 0 or more")
        if not self.close or not all(self.ends) or not all(self.opens) or (self.opens and not self.tagged):
            raise ValueError("close, every one of ends and opens, and tagged beside opens must hold token ids")
        if self.waits and not self.wait:
            raise ValueError("waits need the ids of a word to continue with")
        if self.answer <= max(len(self.close), len(self.tagged)):
            longest = max(len(self.close), len(self.tagged))
            raise ValueError(f"{self.answer=} leaves no room for an answer after the {longest} closing tokens")


@dataclass(frozen=True)
class Request:
    """temperature 0 is greedy. top_p (0, 1], top_k (0: all) and min_p [0, 1) narrow what may be sampled, in that order:
    top_k, top_p, min_p. stop: token ids; stop_strings: searched in the text, where the engine was given `text`.
    logprobs: whether log-probabilities are wanted; a greedy answer without them spends no pass on the softmax.
    top_logprobs: how many of the likeliest tokens of each place are wanted beside; needs logprobs.
    thinking: forces the length of the thinking; max_new is then budget + answer, whatever was given."""

    prompt: tuple[int, ...]
    max_new: int
    temperature: float = 0.0
    seed: int = 0
    stop: frozenset[int] = frozenset()
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop_strings: tuple[str, ...] = ()
    logprobs: bool = True
    thinking: Thinking | None = None
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        if self.thinking is not None:
            object.__setattr__(self, "max_new", self.thinking.budget + self.thinking.answer)


@dataclass(frozen=True)
class Completion:
    """tokens includes the stop token, if one was sampled, or the token that completed a stop string.

    logprobs: natural log under the softmax at the request's temperature (1 for greedy), unfiltered; one a token, none where
    the request wanted none.
    reason "error": nothing was sampled, and `error` says why.
    sampled: False for every forced token, () where all were sampled; a forced token's log-probability is its true one.
    thinking: tokens of the thinking, forced words included, without the marker that ended it. waits: ends taken back.
    top_logprobs: one a token where they were asked for, of the same distribution as logprobs.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    reason: Literal["stop", "length", "error"]
    error: str = ""
    sampled: tuple[bool, ...] = field(default=(), kw_only=True)
    thinking: int = field(default=0, kw_only=True)
    waits: int = field(default=0, kw_only=True)
    top_logprobs: tuple[Top, ...] = field(default=(), kw_only=True)


# (request, token, log-probability), with the likeliest where those were asked for, or (request, its end)
Event = tuple[int, int, float] | tuple[int, int, float, Top] | tuple[int, Completion]
