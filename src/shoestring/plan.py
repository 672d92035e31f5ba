"""What a recipe will use and cost, before a cent is spent. The plan and the bill are priced by the same function.

Imports no torch: sizes come from headers and rates from this machine's profile (measured, or a wide prior).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from shoestring import stages
from shoestring.cost.prices import PriceBook
from shoestring.estimate.flops import ModelShape
from shoestring.estimate.headers import model_shape
from shoestring.estimate.machine import Profile, current_profile
from shoestring.recipe import Recipe
from shoestring.records import Quantity, Usage, UserError
from shoestring.stages.context import Facts, Forecast
from shoestring.stages.trainer import TrainerConfig

START_SECONDS = 25.0  # imports, the base model's conversion, the probe; export, bill and page at the end
EXPORT_SECONDS = 6.0
TRAIN_SECONDS = 15.0  # the least training that makes a run worth starting
RESUME_SECONDS = 10.0  # imports and the base model once more
LEFT_OUT = (
    "pre-training of the base model",
    "the people: choosing problems, reading the report",
    "earlier and abandoned runs",
    "the machine's set-up: installing the packages",
    "storage of the results after the run",
)


@dataclass(frozen=True)
class PlannedStage:
    """One stage: its forecast and its dollars; `seconds` are machine seconds."""

    use: str
    name: str
    forecast: Forecast
    seconds: Quantity
    usd: Quantity
    facts: Facts


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    machine: str
    usd_per_second: Decimal
    shape: ModelShape
    profile: Profile
    stages: tuple[PlannedStage, ...]

    def total_usd(self) -> Quantity:
        parts = [s.usd for s in self.stages]
        basis = self.profile.basis
        return Quantity(sum(q.low for q in parts), sum(q.mid for q in parts), sum(q.high for q in parts), basis)

    def stage(self, name: str) -> PlannedStage:
        return next(s for s in self.stages if s.name == name)

    def final_evaluation(self) -> PlannedStage | None:
        found = [s for s in self.stages if s.use == "evaluate"]
        return found[-1] if found else None

    def checkpoint_seconds(self) -> float:
        """Writing the recipe's largest checkpoint; before an adapter is merged for it, the base is read once more."""
        configs = [t.config for t in self.recipe.stages if isinstance(t.config, TrainerConfig)]
        most = max((c.checkpoint_bytes(self.shape) for c in configs), default=0)
        merging = self.profile.load_seconds.mid if any(c.lora for c in configs) else 0.0
        return most / self.profile.disk_bytes_per_second.mid + merging + 2.0

    def safe_stop_seconds(self) -> float:
        """The last checkpoint, the final evaluation and the export, at the high end."""
        last = self.final_evaluation()
        return self.checkpoint_seconds() + EXPORT_SECONDS + (last.seconds.high if last else 0.0)

    def least_usd(self) -> Decimal:
        """What must fit for a run to make sense: everything essential, a checkpoint and a few steps of training."""
        needed = [s.seconds.mid for s in self.stages if s.forecast.essential]
        if any(s.forecast.trains for s in self.stages):
            needed += [self.checkpoint_seconds(), TRAIN_SECONDS]
        return Decimal(str(sum(needed) + EXPORT_SECONDS)) * self.usd_per_second


def make(
    recipe: Recipe, book: PriceBook, machine: str, shape: ModelShape | None = None, profile: Profile | None = None
) -> Plan:
    """Forecast every stage in order. Raises UserError for what cannot be planned (unknown price, model, stage)."""
    if recipe.machine.count != 1:
        raise UserError(f"machine.count = {recipe.machine.count}: a run uses one machine; set count = 1")
    shape = shape or model_shape(recipe.base)
    profile = profile or current_profile()
    rate = book.price(machine).amount
    facts = Facts(shape, profile, machine, "start")
    first = Forecast((facts.seconds(START_SECONDS),), low=0.7, high=1.2, essential=True)  # a typed figure: widened below
    planned = [_priced("start", "start", first, facts, book, "literature")]
    problems = traces = 0
    trained = False
    last_evaluation = max((i for i, t in enumerate(recipe.stages) if t.use == "evaluate"), default=-1)
    for i, table in enumerate(recipe.stages):
        facts = Facts(shape, profile, machine, table.name, problems, traces, trained)
        forecast: Forecast = stages.module(table.use).forecast(table.config, facts)
        if table.use == "evaluate" and i != last_evaluation and trained:
            forecast = replace(forecast, essential=False)  # a score between stages is skipped when money is short
        problems = forecast.problems if forecast.problems is not None else problems
        traces = forecast.traces if forecast.traces is not None else traces
        trained = trained or forecast.trains
        planned.append(_priced(table.use, table.name, forecast, facts, book, profile.basis))
    return Plan(recipe, machine, rate, shape, profile, tuple(planned))


def _priced(
    use: str,
    name: str,
    forecast: Forecast,
    facts: Facts,
    book: PriceBook,
    basis: Literal["measured", "simulated", "literature"],
) -> PlannedStage:
    seconds = sum(u.quantity for u in forecast.usages if u.unit == "second")
    spread = 1.0 if basis == "measured" else 1.8
    low, high = forecast.low / spread, forecast.high * spread

    def at(scale: float) -> float:
        scaled: list[Usage] = [
            replace(u, quantity=u.quantity * scale) if u.unit == "second" else u for u in forecast.usages
        ]
        return float(book.cost(scaled))

    return PlannedStage(
        use, name, forecast, Quantity(seconds * low, seconds, seconds * high, basis),
        Quantity(at(low), at(1.0), at(high), basis), facts,
    )  # fmt: skip


def check_inputs(plan: Plan) -> None:
    """UserError for a problem file that a stage could not read, before anything is made or spent."""
    from shoestring.stages.workbench import load_problems

    wanted: dict[tuple[str, str], None] = {}
    for table in plan.recipe.stages:
        stage = stages.module(table.use)
        if hasattr(stage, "reads"):
            wanted |= dict.fromkeys(stage.reads(table.config, plan.stage(table.name).facts.trained))
    for source, split in wanted:
        load_problems([source], split)


def refuse_if_too_small(plan: Plan) -> None:
    """UserError when the budget cannot buy a usable, scored model."""
    least = plan.least_usd()
    if plan.recipe.budget < least:
        raise UserError(
            f"{plan.recipe.path or plan.recipe.name}: budget {plan.recipe.budget} USD is too small to start: loading, "
            f"curation, a few steps of training and a score need about {least:.4f} USD here; "
            "raise the budget or shrink the stages"
        )


def _quantity(q: Quantity) -> dict[str, Any]:
    return {"low": _round(q.low), "mid": _round(q.mid), "high": _round(q.high), "basis": q.basis}


def _round(x: float) -> float:
    return float(f"{x:.6g}")


def to_dict(plan: Plan, book: PriceBook) -> dict[str, Any]:
    """plan.json: every quantity as low, mid, high and basis."""
    price = book.price(plan.machine)

    def exact(x: float, basis: Any = plan.profile.basis) -> dict[str, Any]:
        return _quantity(Quantity(x, x, x, basis))

    rows = []
    for s in plan.stages:
        rows.append(
            {
                "use": s.use, "name": s.name, "tokens": exact(s.forecast.tokens), "flops": exact(s.forecast.flops),
                "gpu_hours": exact(0.0), "minutes": _quantity(s.seconds.scaled(1 / 60)), "usd": _quantity(s.usd),
                "memory_gib": exact(s.forecast.memory_bytes / 2**30),
            }
        )  # fmt: skip
    seconds = [s.seconds for s in plan.stages]
    minutes = Quantity(
        sum(q.low for q in seconds) / 60, sum(q.mid for q in seconds) / 60, sum(q.high for q in seconds) / 60,
        plan.profile.basis,
    )  # fmt: skip
    return {
        "recipe": plan.recipe.name,
        "budget": f"{plan.recipe.budget} USD",
        "base": {"model": plan.recipe.base, "parameters": plan.shape.parameters()},
        "machine": {
            "sku": plan.machine, "usd_per_hour": f"{price.amount * 3600:.4f}", "source": price.ref.source,
            "date": price.ref.date, "note": price.ref.note,
        },
        "profile": {k: v for k, v in asdict(plan.profile).items() if k in ("train_flops", "decode_tokens", "basis")},
        "stages": rows,
        "total": {
            "tokens": exact(sum(s.forecast.tokens for s in plan.stages)),
            "flops": exact(sum(s.forecast.flops for s in plan.stages)),
            "gpu_hours": exact(0.0),
            "minutes": _quantity(minutes),
            "usd": _quantity(plan.total_usd()),
            "memory_gib": exact(max(s.forecast.memory_bytes for s in plan.stages) / 2**30),
        },
        "least_usd": f"{plan.least_usd():.6f}",
        "alternatives": [],
        "left_out": list(LEFT_OUT),
    }  # fmt: skip


def write(plan: Plan, book: PriceBook, path: Path) -> dict[str, Any]:
    data = to_dict(plan, book)
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return data
