"""What could be cheaper: the recipe changed in one place and planned again, with what is given up in words.

Nothing here is a rule of thumb: every row's dollars come from `plan.make` on the changed recipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from shoestring import plan as planner
from shoestring.cost.prices import PriceBook
from shoestring.estimate.gpus import gpu as card
from shoestring.plan import Plan
from shoestring.recipe import MachineSpec, Recipe, StageTable
from shoestring.records import Quantity, UserError
from shoestring.stages.trainer import TrainerConfig

WORTH = 0.02  # a saving of a smaller share of the plan is not worth a line
MACHINES = 8  # other machines that are planned at most
RANK = 16  # of the adapters that are compared


@dataclass(frozen=True)
class Alternative:
    """One change. usd, minutes, gpu_hours are of the whole changed plan; saving is against the plan as it stands (negative:
    dearer); set: what to write; fits: whether every stage fits into memory, None where that is not known."""

    change: str
    trade: str
    usd: Quantity
    saving: Quantity
    minutes: Quantity
    gpu_hours: Quantity
    set: tuple[str, ...]
    fits: bool | None

    def to_dict(self) -> dict[str, Any]:
        from shoestring.plan_json import quantity

        return {
            "change": self.change, "trade": self.trade, "usd": quantity(self.usd), "saving": quantity(self.saving),
            "minutes": quantity(self.minutes), "gpu_hours": quantity(self.gpu_hours), "set": list(self.set), "fits": self.fits,
        }  # fmt: skip


@dataclass(frozen=True)
class _Change:
    recipe: Recipe
    change: str
    trade: str
    set: tuple[str, ...] = ()
    dearer: bool = False  # shown although it saves nothing: the comparison itself is what is asked for


def ranked(plan: Plan, book: PriceBook) -> list[Alternative]:
    """Cheapest first. A recipe that says where it can be cheaper is left alone where the change saves under 2%."""
    before = plan.total_usd()
    found = []
    for change in [*_smaller(plan), *_machines(plan, book)]:
        try:
            sku = book.machine_sku(change.recipe.machine, change.recipe.rate)
            made = planner.make(change.recipe, book, sku, plan.shape, plan.profile)
        except (UserError, ValueError):
            continue  # no price, or a setting that does not go with the rest
        usd = made.total_usd()
        if not change.dearer and before.mid - usd.mid < WORTH * before.mid:
            continue
        low, mid, high = sorted((before.low - usd.low, before.mid - usd.mid, before.high - usd.high))
        hours = made.total_seconds().scaled(made.rates.gpus / 3600)
        fits = [s.forecast.fits for s in made.stages if s.forecast.fits is not None]
        found.append(
            Alternative(
                change.change, change.trade, usd, Quantity(low, mid, high, usd.basis), made.total_seconds().scaled(1 / 60),
                hours, change.set, all(fits) if fits else None,
            )  # fmt: skip
        )
    found.sort(key=lambda a: (a.fits is False, a.usd.mid))
    return found


def _with(plan: Plan, table: StageTable, trade: str, change: str, **keys: Any) -> Iterator[_Change]:
    """The recipe with some keys of one stage changed, unless its own checks refuse them."""
    try:
        config = replace(table.config, **keys)
    except ValueError:
        return
    stages = tuple(replace(t, config=config) if t.name == table.name else t for t in plan.recipe.stages)
    said = tuple(f"{table.name}.{k}={v}" for k, v in keys.items())
    yield _Change(replace(plan.recipe, stages=stages), f"{table.name}: {change}", trade, said)


def _smaller(plan: Plan) -> Iterator[_Change]:
    """The same machine, less work."""
    trained = False
    for table in plan.recipe.stages:
        c: Any = table.config
        stage = plan.stage(table.name).forecast
        if isinstance(table.config, TrainerConfig) and stage.fits is False and c.recompute not in ("auto", "full"):
            text = "activations computed again (recompute = full)"
            for change in _with(plan, table, "a third more FLOPs; it fits, or comes nearer to it", text, recompute="full"):
                yield replace(change, dearer=True)
        if isinstance(table.config, TrainerConfig) and not c.lora and c.optimiser != "muon":
            text = f"LoRA of rank {RANK} in place of every weight"
            trade = "adapters learn less from much data; the base's knowledge moves less"
            yield from _with(plan, table, trade, text, lora=RANK)
            yield from _with(
                plan, table, "as LoRA, from weights of 4 bits: memory falls most, rounding costs some quality",
                f"QLoRA of rank {RANK}", lora=RANK, quantise="nf4",
            )  # fmt: skip
        if table.use == "sft" and c.epochs > 1:
            less = round(max(1.0, c.epochs / 2), 2)
            trade = "fewer passes: formats are learnt first, answers last"
            yield from _with(plan, table, trade, f"{less:g} epochs", epochs=less)
        if table.use == "grpo":
            if c.steps > 1:
                yield from _with(plan, table, "half the updates", f"{c.steps // 2} steps", steps=c.steps // 2)
            if c.group > 4:
                text = f"{c.group // 2} answers a problem"
                yield from _with(plan, table, "more groups whose answers all score alike", text, group=c.group // 2)
        if table.use in ("grpo", "evaluate", "curate", "distill") and getattr(c, "max_new", 0) >= 16:
            text = f"at most {c.max_new // 2} tokens an answer"
            yield from _with(plan, table, "longer reasoning is cut off and counts as wrong", text, max_new=c.max_new // 2)
        if table.use == "curate":
            less = {"count": max(1, c.count // 2), "candidates": max(1, c.candidates // 2)}
            trade = "fewer worked examples, the likeliest loss of quality"
            yield from _with(plan, table, trade, f"{less['count']} problems", **less)
            if c.samples > 1:
                text = f"{c.samples // 2} samples a candidate"
                yield from _with(plan, table, "coarser pass rates", text, samples=c.samples // 2)
        if table.use == "data" and plan.stage(table.name).forecast.traces:
            rows = plan.stage(table.name).forecast.traces or 0
            if rows >= 20:
                yield from _with(plan, table, "half the examples", f"{rows // 2} traces", limit=rows // 2)
            if getattr(c, "expect_tokens", 0) >= 1000:
                less = c.expect_tokens // 2
                yield from _with(plan, table, "shorter reasoning is taught", f"traces of {less} tokens", expect_tokens=less)
        if table.use == "evaluate":
            if c.per_family > 20:
                text = f"{c.per_family // 2} problems a family"
                yield from _with(plan, table, "intervals wider by 1.4 times", text, per_family=c.per_family // 2)
            if not trained and len(plan.recipe.stages) > 1:
                kept = tuple(t for t in plan.recipe.stages if t.name != table.name)
                yield _Change(
                    replace(plan.recipe, stages=kept), f"without {table.name}: no score of the base model",
                    "the gain over the base model is not known", (f"drop the stage {table.name}",),
                )  # fmt: skip
        trained = trained or plan.stage(table.name).forecast.trains


def _machines(plan: Plan, book: PriceBook) -> Iterator[_Change]:
    """Other places, markets and cards: of each card the cheapest offer with enough GPUs, on demand and spot."""
    spec, gpus = plan.recipe.machine, plan.rates.gpus
    here = spec.kind == "this"
    facts = None if here else book.machine_facts(plan.machine)
    wanted = max(1, gpus)
    seen: dict[tuple[str, str], Any] = {}
    for offer in book.offers():
        f = offer.facts
        if not f.gpus or wanted % f.gpus or (here and f.gpus > 1):
            continue
        seen.setdefault((_name(f.gpu), f.market), offer)  # offers come cheapest GPU-hour first
    shown = 0
    order = sorted(seen.values(), key=lambda o: _guess(o, wanted))
    for offer in order:
        f = offer.facts
        if facts and _place(f) == _place(facts):
            continue
        place = f"{f.region}/{f.zone}" if f.zone not in ("", "-") else f.region
        machine = MachineSpec("cloud", f.provider, f.instance, wanted // f.gpus, place if f.region != "-" else "", f.market)
        same = facts is not None and _name(facts.gpu) == _name(f.gpu)
        what = f"{wanted} × {f.gpu}" if wanted > 1 else f.gpu
        text = f"{'rent ' if here else ''}{what}, {f.provider} {f.region} {f.market}".replace(" - ", " ")
        trades = []
        if f.market == "spot":
            trades.append("it can be taken away: at most a minute is done again, and the wait for another is yours")
        if here:
            trades.append("time to set it up; this machine's own hours are not saved if they are paid anyway")
        elif not same:
            trades.append("another card: other memory and kernels")
        elif f.provider != (facts.provider if facts else "") or f.region != (facts.region if facts else ""):
            trades.append("data and weights move there; a list price on its day")
        yield _Change(
            replace(plan.recipe, machine=machine, rate=None), text, "; ".join(trades) or "another price of the same machine",
            (_toml(machine),), dearer=here and shown < 2,
        )  # fmt: skip
        shown += 1
        if shown >= MACHINES:
            return


def _place(facts: Any) -> tuple[str, ...]:
    return facts.provider, facts.instance, facts.region, facts.market


def _name(gpu: str) -> str:
    """One name for one card; a card that no table of peaks knows stands for itself, and planning it will refuse."""
    try:
        return card(gpu).name
    except UserError:
        return gpu


def _guess(offer: Any, wanted: int) -> float:
    """Dollars for a unit of peak: only the order in which offers are tried; what they cost is planned."""
    try:
        peak = card(offer.facts.gpu).bf16_flops
    except UserError:
        return float("inf")
    return float(offer.usd_per_gpu_hour or 0) / peak if offer.usd_per_gpu_hour else float("inf")


def _toml(spec: MachineSpec) -> str:
    keys = {"provider": spec.provider, "sku": spec.sku, "region": spec.region, "market": spec.market}
    inner = ", ".join(f'{k} = "{v}"' for k, v in keys.items() if v)
    return f"machine = {{ {inner}{f', count = {spec.count}' if spec.count > 1 else ''} }}"
