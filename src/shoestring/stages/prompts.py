"""Problems as chat messages: plain, or after a few worked examples of the same family. No torch."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from shoestring.estimate.lengths import TURN, tokens
from shoestring.records import Problem

QUESTION = "{question}"  # where the problem's text goes in an `ask`
Ask = str | tuple[str, ...]  # what the user says; or turns of a conversation, the user's and the model's, the user's last


def check_ask(ask: Ask) -> None:
    """ValueError for a text that leaves the question out, or turns whose last is not the user's with the question."""
    if isinstance(ask, str):
        if ask.count(QUESTION) != 1:
            raise ValueError(f"ask = {ask!r} must hold {QUESTION} once, where the problem's text goes")
    elif len(ask) % 2 == 0 or [t.count(QUESTION) for t in ask] != [0] * (len(ask) - 1) + [1]:
        raise ValueError(
            f"ask = {list(ask)!r}: turns of the user and of the model, both ends the user's, {QUESTION} once, in the last"
        )


def ask_tokens(ask: Ask) -> int:
    """Tokens that `ask` adds to a prompt, about: of the plan."""
    turns = (ask,) if isinstance(ask, str) else ask
    return math.ceil(sum(tokens(t.replace(QUESTION, "")) for t in turns)) + TURN * (len(turns) // 2)


def plain(problem: Problem, ask: Ask = QUESTION) -> list[dict[str, str]]:
    """The chat: what `ask` says, with the problem's text at `QUESTION`."""
    *before, last = (ask,) if isinstance(ask, str) else ask
    earlier = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(before)]
    return [*earlier, {"role": "user", "content": last.replace(QUESTION, problem.prompt)}]


def few_shot(problem: Problem, shots: Sequence[Problem]) -> list[dict[str, str]]:
    """The shots as earlier turns of one conversation, then the problem."""
    messages = []
    for s in shots:
        messages += [{"role": "user", "content": s.prompt}, {"role": "assistant", "content": worked(s)}]
    return messages + plain(problem)


def worked(problem: Problem) -> str:
    """The worked solution where there is one, else the bare answer, ending in the line that the graders read."""
    return problem.solution or f"Answer: {problem.answer}"


def choose_shots(problems: Sequence[Problem], count: int, seed: int) -> dict[str, list[Problem]]:
    """`count` problems a domain, drawn once, so that every question of a family sees the same examples."""
    by: dict[str, list[Problem]] = {}
    for p in problems:
        by.setdefault(p.domain, []).append(p)
    return {d: random.Random(f"{seed}/{d}").sample(ps, min(count, len(ps))) for d, ps in sorted(by.items())}


def to_row(problem: Problem, **extra: Any) -> dict[str, Any]:
    return {**asdict(problem), **extra}


def from_row(row: Mapping[str, Any]) -> Problem:
    return Problem(**{k: row[k] for k in Problem.__dataclass_fields__ if k in row})
