"""What the stages' forecasts share: seconds, FLOPs and memory of training and of answering on whatever machine. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shoestring.estimate import adapters
from shoestring.estimate.flops import ModelShape, forward_flops, generation_flops
from shoestring.estimate.lengths import slowest, written
from shoestring.estimate.memory import MARGIN, POLICIES, RUNTIME, decoding_bytes
from shoestring.estimate.rates import Work, added
from shoestring.records import Quantity
from shoestring.stages import probing
from shoestring.stages.context import Facts, Forecast

if TYPE_CHECKING:
    from shoestring.stages.trainer import TrainerConfig

ROWS = 96  # sequences that an engine decodes at once


@dataclass(frozen=True)
class Trained:
    """Seconds of a training stage's steps, its hardware FLOPs, and the bytes of one GPU (or the host) by part."""

    seconds: Quantity
    hardware: float
    memory: Mapping[str, int]
    recompute: str
    fits: bool


def recomputed(shape: ModelShape, policy: str, length: float) -> float:
    """FLOPs of recomputation over those of useful training: "full" makes each layer's forward pass again, "selective" only
    norms and gates (about 1%)."""
    if policy == "selective":
        return 0.01
    if policy != "full":
        return 0.0
    n = max(1, round(length))
    forward = forward_flops(shape, [n])
    return (forward - 2.0 * shape.vocab * shape.hidden * n) / (3 * forward)


def training(
    config: TrainerConfig, facts: Facts, flops: float, tokens: float, length: float, batch: float, steps: int,
    again: float = 0.0, beside: Mapping[str, int] | None = None, longest: float = 0.0,
) -> Trained:  # fmt: skip
    """flops, tokens: useful ones of all steps; length: packed tokens of a row on average; batch: rows a step; longest: tokens
    of the longest row expected; again: other FLOPs that are computed twice; beside: bytes of what else the process holds."""
    rates, shape = facts.rates(), facts.shape
    gpus = max(1, rates.gpus)
    each = max(1.0, batch / gpus)
    peak = max(min(float(config.rows), 1.15 * each * length), min(longest or length, 1.0 * config.rows), 1.0)
    method = "full" if not config.lora else "qlora" if config.quantise == "nf4" else "lora"
    moved = adapters.adapter_parameters(shape, config.lora, config.targets()) / shape.parameters() if config.lora else 1.0
    waits = slowest(facts.sizes, rates.gpus, each)
    work = Work(
        flops, tokens, length, min(config.rows, each * length), steps, method, config.lora, waits,
        optimiser=config.optimiser, trained=moved,
        targets=config.targets() if config.lora else (),
    )  # fmt: skip
    if not rates.gpus:
        memory = replace(config, rows=int(peak)).memory(shape, beside, rates.memory_bytes)
        work = replace(work, recompute=memory.recompute, overhead=recomputed(shape, memory.recompute, length) + again / flops)
        return Trained(rates.train(work), flops * (1 + work.overhead), memory.parts, memory.recompute, memory.fits)
    parts: Mapping[str, int] = {}
    fits = False
    for policy in POLICIES if config.recompute == "auto" else (config.recompute,):
        work = replace(work, recompute=policy, overhead=recomputed(shape, policy, length) + again / flops)
        parts = rates.training_parts(replace(work, length=peak, rows=peak)) or {}
        parts = {**parts, **{k: v // gpus for k, v in (beside or {}).items()}}
        fits = sum(parts.values()) <= (rates.memory_bytes or 0)
        if fits:
            break
    return Trained(rates.train(work), flops * (1 + work.overhead), parts, work.recompute, fits)


def answering(
    facts: Facts, count: float, new: float, rows: float, max_new: int, sequences: int = ROWS
) -> tuple[Quantity, float, Mapping[str, int], bool]:
    """(seconds, FLOPs, bytes by part, whether they fit) of writing `count` answers of `new` tokens after `rows` tokens of
    prompts, each counted once."""
    rates = facts.rates()
    prompt = max(1.0, facts.sizes.prompt)
    at_once = max(1, min(sequences, round(count)) if rates.gpus == 0 else round(min(count, 256 * rates.gpus)))
    seconds = added(rates.decode(count * new, at_once, prompt + new / 2), rates.prefill(rows, prompt))
    each = generation_flops(facts.shape, 1, max(1, round(new))) * count
    flops = each + forward_flops(facts.shape, [max(1, round(prompt))], head_tokens=0) * rows / max(1, round(prompt))
    context = prompt + max_new
    parts = rates.decoding_parts(at_once, context)
    if parts is None:
        own = {"prepacked weights": 2 * facts.shape.parameters(), "runtime": RUNTIME}
        parts = {**decoding_bytes(facts.shape, at_once, round(context)), **own}
    room = rates.memory_bytes
    return seconds, flops, parts, room is None or sum(parts.values()) <= (MARGIN if not rates.gpus else 1.0) * room


def probed(forecast: Forecast, facts: Facts, max_new: int | None = None) -> Forecast:
    """The forecast of a stage that trains, with the held-out probes that `worth` asks for (stages/probing.py).

    max_new: tokens an answer, where the stage has a bound of its own. `tokens` stay those of training. Training may end at
    its second probe that does not pay, which is what the low end becomes.
    """
    looks, bound = min(probing.LOOKS, forecast.steps or probing.LOOKS), max_new or probing.MAX_NEW
    first, later = (written(facts.sizes, bound, trained) for trained in (facts.trained, True))
    new = (first + (looks - 1) * later) / looks
    count = looks * probing.PROBLEMS
    seconds, flops, _, _ = answering(facts, count, new, count * facts.sizes.own, bound, probing.SLOTS)
    soonest = min(1.0, 2 / looks)
    return replace(
        forecast, usages=(*forecast.usages, facts.seconds(seconds.mid)), low=forecast.low * soonest,
        flops=forecast.flops + flops,
        hardware_flops=(forecast.hardware_flops or forecast.flops) + flops, parts={**forecast.parts, "probes": flops},
        notes=(*forecast.notes, f"{looks} probes of {probing.PROBLEMS} problems for worth; training may end early"),
    )  # fmt: skip
