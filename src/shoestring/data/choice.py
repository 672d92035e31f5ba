"""From a curated pool on disk to N problems: what is already known of difficulty, domains, a selector, a file.

Only what a selector looks at is held in memory; a question's text is read again when it is written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shoestring.data import domains, selectors
from shoestring.data.embed import Embed, HashedTfIdf
from shoestring.data.funnel import Row
from shoestring.records import Problem, UserError

TOO_EASY = 0.99  # a problem that a model solves more often than this teaches it nothing


@dataclass
class Choices:
    """The candidates of a pool (their prompt left out) and what is known of them, by problem id.

    rates: the highest pass rate that any model has; lengths: tokens of the trace where rows say so, else characters of the
    solution; length_basis: "tokens", "solution characters" or "none"; domains_from: "rows" or "clusters"; place: the line.
    """

    path: Path
    problems: list[Problem] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    place: dict[str, int] = field(default_factory=dict)
    length_basis: str = "none"
    domains_from: str = "rows"
    sources: Counter[tuple[str, str]] = field(default_factory=Counter)


def lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as f:
        return (yield from map(json.loads, f))


def candidates(path: Path, clusters: int = domains.CLUSTERS, seed: int = 0, embed: Embed | None = None) -> Choices:
    """Read problems.jsonl. Where most rows have no domain, clusters of the questions are the domains.

    Raises UserError for a pass rate outside [0, 1] and a length below zero.
    """
    made = Choices(path)
    tokens: dict[str, int] = {}
    solutions: dict[str, int] = {}
    for at, row in enumerate(lines(path)):
        p = Problem(row["id"], "", "", source=row["source"], licence=row["licence"], domain=row["domain"])
        made.problems.append(p)
        made.place[p.id] = at
        made.sources[p.source, p.licence] += 1
        rates = [*_rates(row)]
        if rates:
            made.rates[p.id] = max(rates)
        if row.get("tokens") is not None:
            tokens[p.id] = int(_number(row, "tokens", row["tokens"], float("inf")))
        elif row.get("solution"):
            solutions[p.id] = len(row["solution"])
    if tokens:
        made.lengths, made.length_basis = tokens, "tokens"
    elif solutions:
        made.lengths, made.length_basis = solutions, "solution characters"
    if domains.needed(made.problems):
        prompts = [row["prompt"] for row in lines(path)]
        labels = domains.by_clusters(prompts, clusters, seed, embed)
        made.problems = [replace(p, domain=d) for p, d in zip(made.problems, labels, strict=True)]
        made.domains_from = "clusters"
    return made


def _rates(row: Mapping[str, Any]) -> Iterator[float]:
    if row.get("pass_rate") is not None:
        yield _number(row, "pass_rate", row["pass_rate"], 1)
    rates = row.get("rates") or {}
    if not isinstance(rates, Mapping):
        raise UserError(f"problem {row['id']}: rates must be an object of model and pass rate, not {type(rates).__name__}")
    for model, rate in rates.items():
        yield _number(row, f"rates of {model}", rate, 1)


def _number(row: Mapping[str, Any], name: str, value: Any, most: float) -> float:
    try:
        made = float(value)
    except (TypeError, ValueError):
        made = -1.0
    if not 0 <= made <= most:
        raise UserError(f"problem {row['id']} ({row['source']}): {name} = {value!r} must be a number from 0 to {most:g}")
    return made


def difficulty(choices: Choices, too_easy: float = TOO_EASY) -> Row | None:
    """Drop what a model already solves more often than `too_easy`; the funnel's row, or None where no rate is known."""
    if not choices.rates:
        return None
    before = len(choices.problems)
    choices.problems = [p for p in choices.problems if choices.rates.get(p.id, 0.0) <= too_easy]
    why = f"recorded pass rate above {too_easy:.0%}: nothing to learn"
    return {"step": "difficulty", "before": before, "after": len(choices.problems), "why": why}


def pool_of(choices: Choices, band: tuple[float, float] = (0.1, 0.9), embed: Embed | None = None) -> selectors.Pool:
    """The candidates as a selector takes them; vectors are made when one is asked for, and once."""
    made: list[np.ndarray] = []

    def vectors() -> np.ndarray:
        if not made:
            wanted = {choices.place[p.id]: i for i, p in enumerate(choices.problems)}
            prompts = [""] * len(wanted)
            for at, row in enumerate(lines(choices.path)):
                if at in wanted:
                    prompts[wanted[at]] = row["prompt"]
            made.append((embed or HashedTfIdf(prompts[: domains.FIT]))(prompts))
        return made[0]

    return selectors.Pool(choices.problems, choices.rates, choices.lengths, band, vectors)


def write(choices: Choices, chosen: Sequence[Problem], path: Path) -> None:
    """The chosen rows as they stand in the pool, in the order chosen, with the domain by which they were chosen."""
    rows: dict[int, dict[str, Any]] = {}
    wanted = {choices.place[p.id] for p in chosen}
    for at, row in enumerate(lines(choices.path)):
        if at in wanted:
            rows[at] = row
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    with draft.open("w", encoding="utf-8") as f:
        for p in chosen:
            row = rows[choices.place[p.id]]
            if row["domain"] != p.domain:
                row = {**row, "domain": p.domain}
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
    draft.replace(path)
