"""Which problems a step of GRPO asks: the pool, its mixture, a curriculum that moves with the model, and replay.

Every draw is a function of the seed, the step and the scores of the steps before it, which stand in the steps' own files:
a resumed run draws what the uninterrupted one draws. Without keys of its own a draw is a function of (seed, step) alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from shoestring.records import Problem, UserError
from shoestring.stages.context import read_lines
from shoestring.tables import nearest

if TYPE_CHECKING:
    from shoestring.records import Trace

HALF_LIFE = 8.0  # steps after which an answer counts half: the model has moved on
PRIOR = 4.0  # answers that the family's own rate counts for in a problem's estimate
FLOOR = 0.05  # of the weight that a problem at 50% has: none is left out for good
NEVER = 0.25  # weight in the replay of a problem that was never solved, over one that was


@dataclass(frozen=True)
class DrawConfig:
    """Keys of the draw, part of the stage's `Config`.

    mix: family → weight, 1 where it is not named, 0 leaves the family out. curriculum: "moving" prefers problems whose
    running pass rate is near 50%, where the variance of a group's rewards, and so what there is to learn, is largest; the
    mixture's weights count beside it. replay: the share of a step's problems that were asked before and not all solved.
    """

    mix: dict[str, float] | None = None
    curriculum: Literal["none", "moving"] = "none"
    replay: float = 0.0

    def check_draw(self) -> None:
        """ValueError that names the key."""
        if self.curriculum not in ("none", "moving"):
            raise ValueError(f"curriculum = {self.curriculum!r} must be 'none' or 'moving'")
        if not 0 <= self.replay < 1:
            raise ValueError(f"replay = {self.replay} is a share of a step's problems, from 0 to below 1")
        if self.mix is not None:
            for name, weight in self.mix.items():
                if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                    raise ValueError(f"mix: the weight of {name} is {weight!r}; it must be a number, 0 or more")


class Draws(Protocol):
    """What a draw reads of the stage's `Config`."""

    @property
    def prompts(self) -> int: ...
    @property
    def mix(self) -> dict[str, float] | None: ...
    @property
    def curriculum(self) -> Literal["none", "moving"]: ...
    @property
    def replay(self) -> float: ...


Pool = Mapping[str, Sequence[Problem]]


@dataclass
class Lately:
    """How problems were answered, step by step: what a curriculum and a replay go by.

    most: the largest score that an answer can have; rates are shares of it. seen: problem → (step, mean rate, answers).
    """

    most: float = 1.0
    seen: dict[str, list[tuple[int, float, int]]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, step: int, most: float = 1.0) -> Lately:
        """From the files of the steps up to `step`; what a killed attempt did beyond is not reached yet.

        UserError where one is gone: the draws that follow would be others than those of the run that was cut off.
        """
        made = cls(most)
        for n in range(1, step + 1):
            if not (path := step_file(folder, n)).exists():
                raise UserError(f"{path}: a finished step's rollouts are gone, and draws read them; start the stage anew")
            made.note(n, ((r["problem_id"], r["score"]) for r in read_lines(path)))
        return made

    def add(self, step: int, traces: Iterable[Trace]) -> None:
        """The answers of step `step`, which counts from 1."""
        self.note(step, ((t.problem_id, t.score) for t in traces))

    def note(self, step: int, scores: Iterable[tuple[str, float | None]]) -> None:
        by: dict[str, list[float]] = {}
        for id, score in scores:
            if score is not None:  # no reward had an opinion
                by.setdefault(id, []).append(min(1.0, max(0.0, score / self.most)))
        for id, rates in by.items():
            self.seen.setdefault(id, []).append((step, sum(rates) / len(rates), len(rates)))

    def sums(self, id: str, now: int) -> tuple[float, float]:
        """(solved, asked) in answers, those of long ago counting less. now: steps done."""
        solved = asked = 0.0
        for step, rate, n in self.seen.get(id, ()):
            if step <= now:
                w = n * 0.5 ** ((now - step) / HALF_LIFE)
                solved, asked = solved + w * rate, asked + w
        return solved, asked

    def rates(self, members: Sequence[Problem], now: int) -> list[float]:
        """The running pass rate of each problem of a family, drawn towards the family's where little is known of it."""
        sums = [self.sums(p.id, now) if p.id in self.seen else (0.0, 0.0) for p in members]
        solved, asked = (sum(s[i] for s in sums) for i in (0, 1))
        family = (solved + 0.5) / (asked + 1.0)
        return [(s + PRIOR * family) / (n + PRIOR) for s, n in sums]


def step_file(folder: Path, step: int) -> Path:
    """Where a step's rollouts stand; steps count from 1."""
    return folder / f"step-{step:06d}.jsonl"


def read_pool(inputs: Mapping[str, Path], stage: str, mix: Mapping[str, float] | None = None) -> dict[str, list[Problem]]:
    """Problems by family that SFT has not seen, without the families that `mix` leaves out.

    UserError when none is left, or where `mix` names a family that is not there.
    """
    from shoestring.stages.prompts import from_row
    from shoestring.stages.workbench import need

    pool: dict[str, list[Problem]] = {}
    chosen = {r["id"] for r in read_lines(inputs["problems"])} if "problems" in inputs else set()
    for row in read_lines(need(inputs, "pool", stage, "curate")):
        if row["id"] not in chosen:
            pool.setdefault(row["domain"], []).append(from_row(row))
    if not pool:
        raise UserError(f"stage {stage!r}: no problems are left for reinforcement learning; curate fewer")
    for name in mix or ():
        if name not in pool:
            hint = nearest(name, pool) or f"; families: {', '.join(sorted(pool))}"
            raise UserError(f"stage {stage!r}: mix: the pool has no family {name!r}{hint}")
    kept = {family: ps for family, ps in pool.items() if (mix or {}).get(family, 1.0) > 0}
    if not kept:
        raise UserError(f"stage {stage!r}: mix leaves every family out; give one of them a weight above 0")
    return kept


def draw(pool: Pool, config: Draws, seed: int, step: int, lately: Lately | None = None) -> list[Problem]:
    """The problems of a step, `step` of which are done. lately: what the steps before found, for curriculum and replay."""
    if config.curriculum == "moving":
        out = _moving(pool, config, seed, step, lately or Lately())
    else:
        out = _in_turn(pool, config, seed, step)
    if config.replay and lately is not None:
        again = _again(pool, _replays(config, step), {p.id for p in out}, seed, step, lately)
        places = random.Random(f"{seed}/places/{step}").sample(range(len(out)), len(again))
        for place, p in zip(sorted(places), again, strict=True):
            out[place] = p
    return out


def others(
    pool: Pool, config: Draws, seed: int, step: int, lately: Lately | None, drawn: Collection[str]
) -> list[Problem]:  # fmt: skip
    """As `draw`, without those `drawn` (ids) in the same step, and none twice while the pool has another."""
    taken, size = set(drawn), len({p.id for ps in pool.values() for p in ps})
    out: list[Problem] = []
    while len(out) < config.prompts:
        left = {family: kept for family, ps in pool.items() if (kept := [p for p in ps if p.id not in taken])}
        if not left:  # all were asked in this step: those of this draw stay out as long as that leaves one
            own = {p.id for p in out}
            taken = own if len(own) < size else set()
            continue
        for p in draw(left, config, seed, step, lately)[: config.prompts - len(out)]:
            if p.id not in taken:
                taken.add(p.id)
                out.append(p)
    return out


def _replays(config: Draws, step: int) -> int:
    """Places of the step for what was asked before: the share of all problems so far, less those of the steps before."""
    before, now = (math.floor(config.replay * n * config.prompts + 1e-9) for n in (step, step + 1))
    return now - before


def _in_turn(pool: Pool, config: Draws, seed: int, step: int) -> list[Problem]:
    """Families in turn, as often as their weights say, inside a family shuffled epochs."""
    families = sorted(f for f in pool if (config.mix or {}).get(f, 1.0) > 0)
    first, last = step * config.prompts, (step + 1) * config.prompts
    if config.mix:
        turns = turns_of([config.mix.get(f, 1.0) for f in families], last)[first:]
    else:
        turns = [divmod(place, len(families)) for place in range(first, last)]
    out = []
    for turn, which in turns:
        members = pool[families[which]]
        epoch, at = divmod(turn, len(members))
        order = list(range(len(members)))
        random.Random(f"{seed}/{families[which]}/{epoch}").shuffle(order)
        out.append(members[order[at]])
    return out


def turns_of(weights: Sequence[float], places: int) -> list[tuple[int, int]]:
    """(turn of its family, family) of every place: next is who is furthest behind its share (Webster's method)."""
    had = [0] * len(weights)
    out = []
    for _ in range(places):
        which = min((i for i, w in enumerate(weights) if w > 0), key=lambda i: ((had[i] + 0.5) / weights[i], i))
        out.append((had[which], which))
        had[which] += 1
    return out


def _moving(pool: Pool, config: Draws, seed: int, step: int, lately: Lately) -> list[Problem]:
    """Without replacement, by the variance p (1 - p) of a reward at pass rate p (learnability: Rutherford et al. 2024, "No
    regrets", and Foster and Foerster 2025 for GRPO); a family's problems share its weight."""
    rng = random.Random(f"{seed}/moving/{step}")
    problems: list[Problem] = []
    weights: list[float] = []
    for family in sorted(pool):
        share = (config.mix or {}).get(family, 1.0) / len(pool[family])
        problems += pool[family]
        weights += [share * (FLOOR + 4 * r * (1 - r)) for r in lately.rates(pool[family], step)]
    picked = weighted(rng, weights, config.prompts)
    while len(picked) < config.prompts:  # a pool smaller than a step
        picked += weighted(rng, weights, config.prompts - len(picked))
    return [problems[i] for i in picked]


def _again(pool: Pool, count: int, drawn: set[str], seed: int, step: int, lately: Lately) -> list[Problem]:
    """At most `count` problems that were asked before and are not solved: those that the model could once, and now fails,
    first of all."""
    problems: list[Problem] = []
    weights: list[float] = []
    for family in sorted(pool):
        for p in pool[family]:
            own = [r for r in lately.seen.get(p.id, ()) if r[0] <= step]
            if own and p.id not in drawn and own[-1][1] < 1:
                problems.append(p)
                weights.append((1 - own[-1][1]) * (1.0 if any(rate > 0 for _, rate, _ in own) else NEVER))
    return [problems[i] for i in weighted(random.Random(f"{seed}/replay/{step}"), weights, count)]


def weighted(rng: random.Random, weights: Sequence[float], count: int) -> list[int]:
    """At most `count` places without replacement, each next one by weight among the rest; weight 0 is never drawn
    (Efraimidis and Spirakis 2006: the largest of u^(1/w))."""
    keys = [(math.log(1.0 - rng.random()) / w, i) for i, w in enumerate(weights) if w > 0]
    return [i for _, i in sorted(keys, reverse=True)[:count]]


def told(questions: Sequence[Problem], lately: Lately, step: int) -> dict[str, Any]:
    """The report's own measures of a draw: problems by family, how many were asked before, and their running rate."""
    by: dict[str, int] = {}
    for p in questions:
        by[p.domain] = by.get(p.domain, 0) + 1
    known = [s / n for p in questions for s, n in [lately.sums(p.id, step)] if n]
    out: dict[str, Any] = {"drawn": by, "asked_before": len(known)}
    return out | ({"rate_before": round(sum(known) / len(known), 4)} if known else {})
