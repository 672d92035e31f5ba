"""What a recipe will use and cost, before a cent is spent. The plan and the bill are priced by the same function.

Imports no torch: sizes come from headers and rates from this machine's profile (measured, or a wide prior), or for a
rented GPU from published runs (estimate.throughput).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from shoestring import stages
from shoestring.cost.beside import Beside
from shoestring.cost.prices import GB_MONTH, PriceBook
from shoestring.estimate import history
from shoestring.estimate.flops import ModelShape
from shoestring.estimate.headers import model_shape
from shoestring.estimate.lengths import Sizes
from shoestring.estimate.machine import Profile, current_profile, spent_probing
from shoestring.estimate.rates import CpuRates, GpuRates, Rates, added, rented_cpu
from shoestring.recipe import Recipe
from shoestring.records import Quantity, Usage, UserError
from shoestring.stages import forecasts
from shoestring.stages.context import Facts, Forecast
from shoestring.stages.trainer import TrainerConfig

START_SECONDS = 6.0  # imports and the base model's first reading, on a machine that was never measured
PROBE_SECONDS = 16.0  # measuring this machine, once
EXPORT_SECONDS = 6.0  # what is kept for writing model, bill and page; they take a second for a small model
CLOSE_SECONDS = 1.0
TRAIN_SECONDS = 15.0  # the least training that makes a run worth starting
LEAVE = "export"  # the row of the result's way out, where the recipe states one
RESUME_SECONDS = 10.0  # imports and the base model once more
Basis = Literal["measured", "simulated", "literature"]


@dataclass(frozen=True)
class PlannedStage:
    """One stage: its forecast and its dollars; `seconds` are wall seconds, of all machines at once. mended: the factor that
    earlier runs on this machine have put on them. storage: the part of `usd` that is for storage, where the recipe has some."""

    use: str
    name: str
    forecast: Forecast
    seconds: Quantity
    usd: Quantity
    facts: Facts
    mended: float = 1.0
    storage: Quantity | None = None

    @property
    def gpu_hours(self) -> Quantity:
        """GPUs of the lease times hours; 0 by definition on a machine without GPUs."""
        return self.seconds.scaled(self.facts.rates().gpus / 3600)


@dataclass(frozen=True)
class Plan:
    """usd_per_second: of the whole lease, `recipe.machine.count` machines. beside: what is paid for beside it, with the
    dollars of a second of storage and of the result's way out."""

    recipe: Recipe
    machine: str
    usd_per_second: Decimal
    shape: ModelShape
    profile: Profile
    stages: tuple[PlannedStage, ...]
    speed: Rates
    beside: Beside = Beside()
    storage_usd_per_second: Decimal = Decimal(0)
    egress_usd: Decimal = Decimal(0)

    @property
    def rates(self) -> Rates:
        """What the lease does in a second; of a machine without GPUs by this plan's profile."""
        here = isinstance(self.speed, CpuRates) and self.recipe.machine.kind == "this"
        return CpuRates(self.shape, self.profile) if here else self.speed

    def total_usd(self) -> Quantity:
        return added(*(s.usd for s in self.stages))

    def total_seconds(self) -> Quantity:
        return added(*(s.seconds for s in self.stages))

    def stage(self, name: str) -> PlannedStage:
        return next(s for s in self.stages if s.name == name)

    def final_evaluation(self) -> PlannedStage | None:
        found = [s for s in self.stages if s.use == "evaluate"]
        return found[-1] if found else None

    def checkpoint_seconds(self) -> float:
        """Writing the recipe's largest checkpoint; before an adapter is merged for it, the base is read once more."""
        configs = [t.config for t in self.recipe.stages if isinstance(t.config, TrainerConfig)]
        most = max((c.checkpoint_bytes(self.shape) for c in configs), default=0)
        merging = self.rates.load().mid if any(c.lora for c in configs) else 0.0
        return self.rates.store(most).mid + merging + 2.0

    def safe_stop_seconds(self) -> float:
        """The last checkpoint, the final evaluation and the export, at the high end."""
        last = self.final_evaluation()
        return self.checkpoint_seconds() + EXPORT_SECONDS + (last.seconds.high if last else 0.0)

    def least_usd(self) -> Decimal:
        """What must fit for a run to make sense: everything essential (the result's way out too), a checkpoint and a few steps
        of training, with the storage meanwhile."""
        essential = sum((Decimal(str(s.usd.mid)) for s in self.stages if s.forecast.essential), Decimal(0))
        seconds = EXPORT_SECONDS
        if any(s.forecast.trains for s in self.stages):
            seconds += self.checkpoint_seconds() + TRAIN_SECONDS
        return essential + Decimal(str(seconds)) * (self.usd_per_second + self.storage_usd_per_second)


def shape_of(base: str) -> ModelShape:
    """The sizes of `base` by its headers, or by its name where nothing of it is on this machine. Raises UserError."""
    try:
        return model_shape(base)
    except UserError:
        from shoestring.estimate.known_shapes import known_shape

        if Path(base).expanduser().exists() or (found := known_shape(base)) is None:
            raise
        return found


def rates_of(recipe: Recipe, book: PriceBook, machine: str, shape: ModelShape, profile: Profile) -> Rates:
    """What the recipe's machines do in a second: this one by its profile, rented ones by what the price book says they are."""
    spec = recipe.machine
    if spec.kind == "this":
        return CpuRates(shape, profile)
    facts = book.machine_facts(machine)
    where = f"{spec.count} × {facts.instance}" if spec.count > 1 else facts.instance
    if facts.gpus:
        family = re.match(r"[a-z]+\d+(?=-)", recipe.name.lower())  # a published run
        without = (family[0],) if family else ()
        return GpuRates(shape, facts.gpu, facts.gpus * spec.count, spec.count, where=where, without=without)
    if spec.count > 1:
        raise UserError(f"machine.count = {spec.count}: only machines with GPUs work together; set count = 1")
    return rented_cpu(shape, facts.vcpus, facts.memory_gib, where)


def make(
    recipe: Recipe, book: PriceBook, machine: str, shape: ModelShape | None = None, profile: Profile | None = None,
    reused: Collection[str] = (),
) -> Plan:  # fmt: skip
    """Forecast every stage in order. reused: names of stages whose result an earlier run has left and paid for. Raises
    UserError for what cannot be planned (unknown price, model, card, stage)."""
    shape = shape or shape_of(recipe.base)
    profile = profile or current_profile()
    count = recipe.machine.count
    rate = book.price(machine).amount * count
    beside = Beside.of(recipe.terms, book)
    speed = rates_of(recipe, book, machine, shape, profile)
    facts = Facts(shape, profile, machine, "start", machines=count, speed=speed)
    planned = [_start(facts, book, recipe.machine.kind == "this", beside)]
    problems = traces = sampled = 0
    sizes = Sizes()
    trained = False
    last_evaluation = max((i for i, t in enumerate(recipe.stages) if t.use == "evaluate"), default=-1)
    for i, table in enumerate(recipe.stages):
        facts = Facts(shape, profile, machine, table.name, problems, traces, trained, sizes, sampled, count, speed)
        forecast: Forecast = stages.module(table.use).forecast(table.config, facts)
        if recipe.terms.worth is not None and forecast.trains:
            forecast = forecasts.probed(forecast, facts, table.config.max_new if table.use == "grpo" else None)
        if table.use == "evaluate" and i != last_evaluation and trained:
            forecast = replace(forecast, essential=False)  # a score between stages is skipped when money is short
        problems = forecast.problems if forecast.problems is not None else problems
        traces = forecast.traces if forecast.traces is not None else traces
        sampled = forecast.sampled if forecast.sampled is not None else sampled
        sizes = forecast.sizes or sizes
        trained = trained or forecast.trains
        if table.name in reused:
            notes = ("reused: an earlier run's, billed there",)
            forecast = Forecast((), basis=forecast.basis, counted=forecast.counted, notes=notes)
        planned.append(_priced(table.use, table.name, forecast, facts, book, recipe.machine.kind == "this", beside))
    out = beside.out(LEAVE, "", 0.0)
    if out:
        planned.append(_leaving(out, facts, book))
    second = book.cost(beside.during(Usage(machine, 1.0, "second", "")))
    return Plan(
        recipe, machine, rate, shape, profile, tuple(planned), speed, beside, second, book.cost(out)
    )  # fmt: skip


def _start(facts: Facts, book: PriceBook, here: bool, beside: Beside) -> PlannedStage:
    """Imports and opening the base model, measuring the machine where that is yet to be done, and closing the run."""
    rates, close = facts.rates(), Quantity(0.3, CLOSE_SECONDS, 5.0, "literature")
    parts = [close]
    if isinstance(rates, CpuRates) and rates.profile.start_seconds is None:
        parts.append(Quantity(0.3 * START_SECONDS, START_SECONDS, 2.2 * START_SECONDS, "literature"))
    elif rates.gpus:  # the stage that opens the base counts it; a training stage's hours are those of whole published runs
        parts.append(rates.start())
    else:
        parts += [rates.start(), rates.load()]
    if spent := spent_probing():
        parts.append(Quantity(spent, spent, spent, "measured"))
    elif here and facts.profile.basis != "measured":
        parts.append(Quantity(0.5 * PROBE_SECONDS, PROBE_SECONDS, 4 * PROBE_SECONDS, "literature"))
    forecast = facts.forecast(added(*parts), essential=True, by_length=False)
    return _priced("start", "start", forecast, facts, book, False, beside)


def _leaving(out: list[Usage], facts: Facts, book: PriceBook) -> PlannedStage:
    """The row of the result's way out: the recipe states its GB, the book their price."""
    nothing, usd = Quantity(0.0, 0.0, 0.0, "measured"), float(book.cost(out))
    forecast = Forecast(tuple(out), low=1.0, high=1.0, essential=True)
    facts = replace(facts, stage=LEAVE)
    return PlannedStage(LEAVE, LEAVE, forecast, nothing, Quantity(usd, usd, usd, "literature"), facts)


def _priced(
    use: str, name: str, forecast: Forecast, facts: Facts, book: PriceBook, here: bool, beside: Beside
) -> PlannedStage:  # fmt: skip
    """Wall seconds and dollars; on this machine mended by what earlier runs took (estimate.history).

    Mended by what runs on another machine took (no run here tells), measured rates no longer make a measured forecast.
    """
    mended, typical = 1.0, False
    if here:
        found = history.correction(use, facts.shape.parameters(), facts.profile)
        typical = found is None and use in history.TYPICAL
        mended = history.TYPICAL[use] if typical else found or 1.0
        usages = tuple(replace(u, quantity=u.quantity * mended) if u.unit == "second" else u for u in forecast.usages)
        forecast = replace(forecast, usages=usages)
    seconds = sum(u.quantity for u in forecast.usages if u.unit == "second") / facts.machines
    lease = Usage(facts.machine, seconds, "second", name)  # storage is there once, however many machines use it
    forecast = replace(forecast, usages=(*forecast.usages, *beside.during(lease)))
    basis: Basis = forecast.basis or facts.rates().basis
    if typical and basis == "measured":
        basis = "literature"
    low, high = min(forecast.low, 1.0), max(forecast.high, 1.0)

    def at(scale: float, tokens: float = 1.0, unit: str = "") -> float:
        scales = {"second": scale, "token": tokens, GB_MONTH: scale}
        kept = [u for u in forecast.usages if unit in ("", u.unit)]
        return float(book.cost(replace(u, quantity=u.quantity * scales.get(u.unit, 1.0)) for u in kept))

    stored = (
        Quantity(at(low, unit=GB_MONTH), at(1.0, unit=GB_MONTH), at(high, unit=GB_MONTH), basis) if beside.storage else None
    )
    return PlannedStage(
        use, name, forecast, Quantity(seconds * low, seconds, seconds * high, basis),
        Quantity(at(low, forecast.amounts[0]), at(1.0), at(high, forecast.amounts[1]), basis), facts, mended, stored,
    )  # fmt: skip


def check_inputs(plan: Plan) -> None:
    """UserError for what a run of this plan could not do: more than one machine, a problem file that cannot be read.

    Called before anything is made or spent.
    """
    from shoestring.stages.workbench import load_problems

    if plan.recipe.machine.count != 1:
        raise UserError(
            f"machine.count = {plan.recipe.machine.count}: a run uses one machine; several can be planned, not run: "
            "set count = 1"
        )
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


def to_dict(plan: Plan, book: PriceBook, now: float | None = None) -> dict[str, Any]:
    """plan.json (see plan_json); now: unix seconds, for a recipe's window."""
    from shoestring import plan_json

    return plan_json.to_dict(plan, book, now)


def write(plan: Plan, book: PriceBook, path: Path, now: float | None = None) -> dict[str, Any]:
    """plan.json in a file. UserError for a plan that cannot be run here."""
    from shoestring import plan_json

    return plan_json.write(plan, book, path, now)
