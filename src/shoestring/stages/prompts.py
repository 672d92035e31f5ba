"""Problems as chat messages: plain, or after a few worked examples of the same family. No torch."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from shoestring.records import Problem

QUESTION = "{question}"  # where the problem's text goes in an `ask`


def check_ask(ask: str) -> None:
    """ValueError for a text that leaves the question out."""
    if ask.count(QUESTION) != 1:
        raise ValueError(f"ask = {ask!r} must hold {QUESTION} once, where the problem's text goes")


def ask_tokens(ask: str) -> int:
    """Tokens that `ask` adds to a prompt, about: of the plan."""
    return -(-(len(ask) - len(QUESTION)) // 4)


def plain(problem: Problem, ask: str = QUESTION) -> list[dict[str, str]]:
    """ask: what the user says, with the problem's text at `QUESTION`."""
    return [{"role": "user", "content": ask.replace(QUESTION, problem.prompt)}]


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
