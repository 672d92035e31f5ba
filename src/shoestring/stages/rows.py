"""Traces as training rows, and which of them each step takes: what the stages that learn from traces share. No torch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Protocol

from shoestring.records import Example


class Epochs(Protocol):
    """epochs over the rows, `batch` rows a step, packed into at most `rows` a micro-batch."""

    @property
    def epochs(self) -> float: ...
    @property
    def batch(self) -> int: ...
    @property
    def rows(self) -> int: ...


def steps_of(config: Epochs, traces: int) -> int:
    """`steps` of a configuration that has them and says so, else what the epochs come to."""
    return getattr(config, "steps", 0) or max(1, round(config.epochs * traces / config.batch))


def batches_of(config: Epochs, seed: int, lengths: Sequence[int], given: bool = False) -> list[list[int]]:
    """The traces of every step: whole shuffled epochs, one after another, then the longest step and the first exchanged.

    lengths: tokens of each trace. The longest step is the one whose largest micro-batch has the most rows: its tokens up to
    `rows`, or its longest trace where that is more; among equals the one with the most tokens. given: the first epoch takes
    the rows in the order in which they stand, and no step is exchanged.
    """
    traces, steps = len(lengths), steps_of(config, len(lengths))
    places: list[int] = []
    for epoch in range(-(-steps * config.batch // traces)):
        order = list(range(traces))
        if epoch or not given:
            random.Random(f"{seed}/sft/{epoch}").shuffle(order)
        places += order
    out = [places[s * config.batch : (s + 1) * config.batch] for s in range(steps)]

    def size(step: int) -> tuple[int, int, int]:
        own = [lengths[i] for i in out[step]]
        return max(min(sum(own), config.rows), max(own)), sum(own), -step

    if given:
        return out
    longest = max(range(steps), key=size)
    out[0], out[longest] = out[longest], out[0]
    return out


def examples(rows: list[dict[str, Any]], tokenizer: Any) -> list[Example]:
    """Prompt by the tokenizer's own template (as it stands in a `plain` row), then the answer and the end of the turn,
    which carry the loss."""
    out = []
    for r in rows:
        prompt = tuple(r["prompt_tokens"]) if r.get("plain") else tokenizer.chat(r["messages"][:-1])
        answer = (*tokenizer.encode(r["messages"][-1]["content"]), tokenizer.end)
        weight = (0.0,) * len(prompt) + (1.0,) * len(answer)
        out.append(Example(prompt + answer, weight, len(prompt), problem_id=r["problem_id"]))
    return out
