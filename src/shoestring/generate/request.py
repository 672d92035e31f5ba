"""What is asked of an engine or a server, and what comes back. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Request:
    """temperature 0 is greedy. top_p (0, 1], top_k (0: all) and min_p [0, 1) narrow what may be sampled, in that order:
    top_k, top_p, min_p. stop: token ids; stop_strings: searched in the text, where the engine was given `text`.
    logprobs: whether log-probabilities are wanted; a greedy answer without them spends no pass on the softmax."""

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


@dataclass(frozen=True)
class Completion:
    """tokens includes the stop token, if one was sampled, or the token that completed a stop string.

    logprobs: natural log under the softmax at the request's temperature (1 for greedy), unfiltered; one a token, none where
    the request wanted none.
    reason "error": nothing was sampled, and `error` says why.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    reason: Literal["stop", "length", "error"]
    error: str = ""


Event = tuple[int, int, float] | tuple[int, Completion]
