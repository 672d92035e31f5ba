"""What each arm takes before anything is spent, and the steps of arms that are to cost the same.

Equal dollars: an arm with `usd` has the steps (of sft: epochs, where it goes by epochs) of every stage that trains multiplied
by one factor, found by bisection, so that the plan's dollars of the stages that make the model come to `usd`. Scores, the start
and the export are not counted: they are the same for all. What cannot be scaled (sampling, curation) stays as it is and counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from shoestring import export, plan, stages
from shoestring.ablate.file import SHARED, Ablation, Arm
from shoestring.cost.prices import PriceBook
from shoestring.plan import Plan
from shoestring.recipe import Recipe, StageTable
from shoestring.records import UserError
from shoestring.tables import located
from shoestring.terms import money_text

NOT_MAKING = ("start", "evaluate", plan.LEAVE)
NEAR = 0.05  # planned dollars of an arm may miss its `usd` by this share: a step is not divisible
SMALLEST, LARGEST, HALVINGS = 1 / 64, 64.0, 18


@dataclass(frozen=True)
class Planned:
    """One child run of an arm (of the shared stages: SHARED), alike for every seed. minutes, usd: low, mid, high. making:
    dollars of the stages that make the model. headroom: dollars beside `usd` that stopping safely keeps back. scaled: what
    equal dollars made of the steps. recipe_hash: of the arm's recipe as the file has it, under seed 0."""

    arm: str
    stages: tuple[str, ...]
    reused: tuple[str, ...]
    minutes: tuple[float, float, float]
    usd: tuple[float, float, float]
    making: float
    headroom: float
    factor: float
    scaled: Mapping[str, Any]
    recipe_hash: str
    basis: str
    asked_usd: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Planned:
        """From a row of plan.json."""
        kept: dict[str, Any] = {f.name: row[f.name] for f in dataclasses.fields(cls)}
        for key in ("stages", "reused", "minutes", "usd"):
            kept[key] = tuple(kept[key])
        return cls(**kept)


def make(ablation: Ablation, recipe: Recipe, reused: Sequence[str], book: PriceBook) -> Plan:
    return plan.make(recipe, book, book.machine_sku(recipe.machine, recipe.rate), reused=reused)


def making(made: Plan) -> float:
    """Planned US dollars of the stages that make the model."""
    return sum(s.usd.mid for s in made.stages if s.use not in NOT_MAKING)


def all_arms(ablation: Ablation, arms: Sequence[Arm], book: PriceBook) -> list[Planned]:
    """The shared run first, where there is one; each arm's own stages then. UserError for what cannot be run."""
    out = []
    if ablation.shared:
        recipe = ablation.shared_recipe()
        check(recipe, make(ablation, recipe, (), book))
        out.append(_planned(SHARED, recipe, make(ablation, recipe, (), book), 1.0, {}, ""))
    for arm in arms:
        recipe = ablation.recipe(arm)
        reused = ablation.reused(recipe)
        factor, scaled, asked = 1.0, {}, ""
        if arm.usd is not None:
            factor, scaled = equal_dollars(ablation, arm, book)
            asked = money_text(arm.usd)
        made = make(ablation, ablation.recipe(arm, scaled=scaled), reused, book)
        check(recipe, made)
        out.append(_planned(arm.name, recipe, made, factor, scaled, asked))
    return out


def _planned(name: str, recipe: Recipe, made: Plan, factor: float, scaled: Mapping[str, Any], asked: str) -> Planned:
    minutes, usd = made.total_seconds().scaled(1 / 60), made.total_usd()
    final = made.final_evaluation()
    kept = made.safe_stop_seconds() - (final.seconds.mid if final else 0.0) + plan.RESUME_SECONDS + plan.TRAIN_SECONDS
    reused = tuple(s.name for s in made.stages if any(n.startswith("reused") for n in s.forecast.notes))
    return Planned(
        name, tuple(t.name for t in recipe.stages), reused, (minutes.low, minutes.mid, minutes.high),
        (usd.low, usd.mid, usd.high), making(made), kept * float(made.usd_per_second), factor, scaled, recipe.hash,
        usd.basis, asked,
    )  # fmt: skip


def check(recipe: Recipe, made: Plan) -> None:
    """UserError for bad input of a stage, a base that cannot be read, problem files that are not there."""
    export.check_base(recipe.base)
    for table in recipe.stages:
        stage = stages.module(table.use)
        if hasattr(stage, "check"):
            stage.check(table.config, recipe.base)
    plan.check_inputs(made)


# equal dollars


def steps_by(tables: Sequence[StageTable], trains: Sequence[str], factor: float) -> dict[str, Any]:
    """{"stage.key": value} of the stages in `trains`, their steps (or epochs) times `factor`."""
    out: dict[str, Any] = {}
    for t in tables:
        if t.name not in trains:
            continue
        if getattr(t.config, "steps", 0):
            out[f"{t.name}.steps"] = max(1, round(t.config.steps * factor))
        elif hasattr(t.config, "epochs"):
            out[f"{t.name}.epochs"] = max(0.001, round(t.config.epochs * factor, 3))
    return out


def equal_dollars(ablation: Ablation, arm: Arm, book: PriceBook) -> tuple[float, dict[str, Any]]:
    """(factor, the scaled steps) whose planned dollars are nearest to `arm.usd`. UserError where nothing comes near."""
    recipe = ablation.recipe(arm)
    reused, wanted = ablation.reused(recipe), float(arm.usd or 0)
    trains = [s.name for s in make(ablation, recipe, reused, book).stages if s.forecast.trains]
    tried: list[tuple[float, float, float, dict[str, Any]]] = []

    def dollars(factor: float) -> float:
        scaled = steps_by(recipe.stages, trains, factor)
        found = making(make(ablation, ablation.recipe(arm, scaled=scaled), reused, book))
        tried.append((abs(found - wanted), factor, found, scaled))
        return found

    if not trains:
        raise located(arm.where, f'arm "{arm.name}": usd scales the steps of stages that train, and none of its own does')
    low, high = SMALLEST, LARGEST
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if dollars(middle) < wanted else (low, middle)
    miss, factor, found, scaled = min(tried, key=lambda x: x[0])
    if miss > NEAR * wanted:
        raise located(
            arm.where, f'arm "{arm.name}": {wanted:g} USD cannot be met: the nearest number of steps comes to {found:.6f} USD '
            "by the plan; sampling and curation are not scaled, and a step is not divisible: change usd or the stages",
        )  # fmt: skip
    return factor, scaled


# what it takes in all


def needed(rows: Sequence[Planned], seeds: int) -> float:
    """US dollars for all runs at the plan's middle, and the largest reserve for stopping safely: one runs after another."""
    return sum(r.usd[1] * (1 if r.arm == SHARED else seeds) for r in rows) + max((r.headroom for r in rows), default=0.0)


def refuse_if_too_small(ablation: Ablation, need: float, spent: Decimal = Decimal(0)) -> None:
    """UserError, before anything is spent, where what is left to do does not fit under the ceiling."""
    if float(ablation.budget - spent) < need:
        already = f", of which {spent:.4f} are spent," if spent else ""
        raise UserError(
            f"{ablation.path}: budget {ablation.budget} USD{already} is too small: the runs need about {need:.4f} USD here; "
            "raise the budget, or take fewer seeds or arms"
        )


def to_dict(ablation: Ablation, rows: Sequence[Planned], seeds: Sequence[int]) -> dict[str, Any]:
    """plan.json of an ablation."""
    each = [(r, 1 if r.arm == SHARED else len(seeds)) for r in rows]

    def total(key: str) -> list[float]:
        return [sum(getattr(r, key)[i] * n for r, n in each) for i in range(3)]

    return {
        "name": ablation.name, "budget": f"{ablation.budget} USD", "seeds": list(seeds),
        "arms": [dataclasses.asdict(r) | {"runs": n} for r, n in each],
        "total": {"minutes": total("minutes"), "usd": total("usd")}, "needed_usd": needed(rows, len(seeds)),
    }  # fmt: skip
