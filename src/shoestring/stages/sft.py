"""Supervised fine-tuning on traces: loss on the trace only, the end of the turn included.

Order is a function of (seed, step), so a resumed run needs no cursor; the loss of a step is normalised by all of its
trained tokens, however they are packed. The longest step comes first: what does not fit fails in the first minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from shoestring.estimate.lengths import slowest_share
from shoestring.estimate.rates import added
from shoestring.records import Artifact, StepReport, UserError
from shoestring.stages import forecasts, probing
from shoestring.stages.context import Context, Events, Facts, Forecast, read_lines
from shoestring.stages.rows import batches_of, examples, steps_of
from shoestring.stages.trainer import EpochsConfig, Trainer


@dataclass(frozen=True)
class Config(EpochsConfig):
    """epochs over the traces, `batch` traces a step; steps: so many optimiser steps, in place of epochs (0: by epochs).

    order: "given" takes the traces of the first epoch as they stand (with curate's order = "easy-first" a curriculum), later
    epochs shuffled. start: "base" begins from the base model's weights and not from the latest ones (DeepSeek-R1, section
    2.3.3, trains anew on what it has sampled), "random" from weights drawn anew by the seed: what is left of a gain without
    the base's own training. The keys of every stage that trains by epochs (`EpochsConfig`) belong to it too.
    """

    steps: int = 0
    order: Literal["shuffled", "given"] = "shuffled"
    start: Literal["latest", "base", "random"] = "latest"

    def __post_init__(self) -> None:
        if self.order not in ("shuffled", "given"):
            raise ValueError(f"order = {self.order!r} must be 'shuffled' or 'given'")
        if self.start not in ("latest", "base", "random"):
            raise ValueError(f"start = {self.start!r} must be 'latest', 'base' or 'random'")
        if self.start == "random" and self.lora:
            raise ValueError("start = 'random' with lora: an adapter on random weights has nothing to adapt; leave lora out")
        if self.steps < 0:
            raise ValueError(f"steps = {self.steps} cannot be below zero; 0 goes by epochs")
        self.check()


def forecast(config: Config, facts: Facts) -> Forecast:
    """Prompt and trace a row, the loss on the trace; beginnings that neighbours share are computed once."""
    sizes, traces = facts.sizes, max(facts.traces, 1)
    steps = steps_of(config, traces)
    passes = steps * config.batch
    answer = sizes.trace()
    whole = sizes.prompt + answer
    row = whole - min(sizes.shared, sizes.prompt - 1)
    n = max(2, round(whole))
    each = config.training_flops(facts.shape, [n], head_tokens=max(1, round(answer))) * row / n
    longest = sizes.longest or sizes.prompt + answer * slowest_share(traces, sizes.spread)
    done = forecasts.training(config, facts, each * passes, row * passes, row, config.batch, steps, longest=longest)
    rates, size = facts.rates(), config.checkpoint_bytes(facts.shape)
    around = rates.around(size, 4.0 if config.lora else 2.0, done.seconds.mid)
    return facts.forecast(
        added(done.seconds, around), tokens=round(passes * row), flops=each * passes, hardware_flops=done.hardware,
        parts={"update": each * passes}, memory_bytes=sum(done.memory.values()), memory=done.memory, fits=done.fits,
        trains=True, steps=steps, notes=(f"recompute = {done.recompute}",) if done.recompute != "none" else (),
    )  # fmt: skip


def run(config: Config, inputs: Mapping[str, Path], context: Context) -> Events:
    from shoestring.stages.workbench import need

    if config.start != "latest":
        context = replace(context, weights=None, random=config.start == "random")
    rows = read_lines(need(inputs, "traces", context.stage, "distill"))
    if not rows:
        raise UserError(f"stage {context.stage!r}: no traces to train on")
    from shoestring.models.device import free_bytes
    from shoestring.models.tokenizer import Tokenizer

    tokenizer = Tokenizer(context.base)
    data = examples(rows, tokenizer)
    batches = batches_of(config, context.seed, [len(e.tokens) for e in data], config.order == "given")
    total = len(batches)
    probe = probing.of(context, inputs, total)
    memory = config.memory(context.shape, available=free_bytes())
    trainer = Trainer(
        config, context, total, max(1, round(config.warmup * total)), config.lr, memory,
        (config.beta1, config.beta2), config.weight_decay,
    )  # fmt: skip
    pace = context.first(min(45.0, 3 * context.planned_seconds / total + 3))
    while trainer.step < total:
        said = yield from probing.before_step(context, trainer, tokenizer, probe, pace)
        if said == "stop":
            return
        if said == "enough":
            break
        began = context.clock()
        chosen = [data[i] for i in batches[trainer.step]]
        result, norm = trainer.update(chosen)
        seconds = context.clock() - began
        pace.add(seconds)
        plain = sum(len(e.tokens) for e in chosen)
        flops = config.training_flops(context.shape, [len(e.tokens) for e in chosen], head_tokens=result.predictions)
        yield StepReport(
            context.stage, trainer.step, total, seconds, result.rows, result.predictions, loss=result.loss,
            grad_norm=norm, flops=flops * result.rows / plain, extra={"plain_rows": plain, **trainer.news()},
        )  # fmt: skip
        if trainer.due(pace):
            yield trainer.save()
    yield trainer.finish()
    yield Artifact("weights", context.checkpoints / f"step-{trainer.step}", {"model": context.stage})
