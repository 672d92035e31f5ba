"""Supervised fine-tuning on traces: loss on the trace only, the end of the turn included.

Order is a function of (seed, step), so a resumed run needs no cursor; the loss of a step is normalised by all of its
trained tokens, however they are packed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring.estimate.flops import training_flops
from shoestring.estimate.memory import training_bytes
from shoestring.records import Artifact, Example, StepReport, UserError
from shoestring.stages.context import Context, Events, Facts, Forecast, read_lines

TRACE, OWN, WHOLE = (
    31,
    35,
    87,
)  # expected tokens: answer; prompt rows of its own beside shared ones; all (forecast only)


@dataclass(frozen=True)
class Config:
    """epochs over the traces, `batch` traces a step, at most `rows` packed rows a micro-batch.

    lr peaks after a `warmup` share of the steps and falls to zero along a cosine; AdamW (beta1, beta2).
    """

    epochs: float = 2.0
    batch: int = 32
    lr: float = 3e-4
    warmup: float = 0.05
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    max_norm: float = 1.0
    rows: int = 2048

    def __post_init__(self) -> None:
        for key in ("epochs", "batch", "lr", "rows"):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key} = {getattr(self, key)} must be above zero")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup = {self.warmup} is a share of the steps, from 0 to below 1")


def steps_of(config: Config, traces: int) -> int:
    return max(1, round(config.epochs * traces / config.batch))


def batch_of(config: Config, seed: int, step: int, traces: int) -> list[int]:
    """The traces of step `step` (from 0): whole shuffled epochs, one after another."""
    out: list[int] = []
    orders: dict[int, list[int]] = {}
    for place in range(step * config.batch, (step + 1) * config.batch):
        epoch, at = divmod(place, traces)
        if epoch not in orders:
            orders[epoch] = list(range(traces))
            random.Random(f"{seed}/sft/{epoch}").shuffle(orders[epoch])
        out.append(orders[epoch][at])
    return out


def forecast(config: Config, facts: Facts) -> Forecast:
    passes = config.epochs * max(facts.traces, 1)
    steps = steps_of(config, max(facts.traces, 1))
    rows = passes * (OWN + TRACE)
    flops = training_flops(facts.shape, [WHOLE], head_tokens=TRACE) * passes * (OWN + TRACE) / WHOLE
    seconds = flops / facts.profile.train_flops.mid + steps * 0.12 + 14
    memory = sum(training_bytes(facts.shape, config.rows).values())
    return Forecast(
        (facts.seconds(seconds),), tokens=int(rows), flops=flops, memory_bytes=memory, trains=True, essential=False
    )


def examples(rows: list[dict[str, Any]], tokenizer: Any) -> list[Example]:
    """Prompt by the tokenizer's own template, then the answer and the end of the turn, which carry the loss."""
    out = []
    for r in rows:
        prompt = tokenizer.chat(r["messages"][:-1])
        answer = (*tokenizer.encode(r["messages"][-1]["content"]), tokenizer.end)
        weight = (0.0,) * len(prompt) + (1.0,) * len(answer)
        out.append(Example(prompt + answer, weight, len(prompt), problem_id=r["problem_id"]))
    return out


def run(config: Config, inputs: Mapping[str, Path], context: Context) -> Events:
    from shoestring.stages.workbench import need

    rows = read_lines(need(inputs, "traces", context.stage, "distill"))
    if not rows:
        raise UserError(f"stage {context.stage!r}: no traces to train on")
    from shoestring.data.packing import pack
    from shoestring.models.tokenizer import Tokenizer
    from shoestring.stages.workbench import open_masters, open_model
    from shoestring.train.checkpoints import Checkpoints, read_tensors
    from shoestring.train.optimiser import MasterAdamW, cosine
    from shoestring.train.step import accumulate

    data = examples(rows, Tokenizer(context.base))
    total = steps_of(config, len(data))
    saves = Checkpoints(context.checkpoints, context.recipe_hash)
    saves.sweep()
    latest = saves.latest()
    model, masters = open_model(context)
    betas = (config.beta1, config.beta2)
    optimiser = MasterAdamW(model, config.lr, betas, config.weight_decay, open_masters(context, model, masters))
    step = 0
    if latest is not None:
        optimiser.restore(read_tensors(latest.path))
        step = latest.step
    pace, saved_at = context.first(min(45.0, 3 * context.planned_seconds / total + 3)), context.clock()
    while step < total:
        if (yield context.intent(step + 1, pace.upper())) == "stop":
            yield saves.save(context.stage, step, optimiser.tensors(), {}, final=False)
            saves.wait()
            optimiser.close()
            return
        began = context.clock()
        chosen = [data[i] for i in batch_of(config, context.seed, step, len(data))]
        result = accumulate(model, pack(chosen, config.rows))
        warmup = max(1, round(config.warmup * total))
        norm = optimiser.step(cosine(step, total, warmup), config.max_norm)
        step += 1
        seconds = context.clock() - began
        pace.add(seconds)
        flops = training_flops(context.shape, [len(e.tokens) for e in chosen], head_tokens=result.predictions)
        yield StepReport(
            context.stage, step, total, seconds, result.rows, result.predictions, loss=result.loss, grad_norm=norm,
            flops=flops * result.rows / sum(len(e.tokens) for e in chosen),
            extra={"plain_rows": sum(len(e.tokens) for e in chosen)},
        )  # fmt: skip
        if step < total and context.clock() - saved_at + pace.upper() > context.checkpoint_seconds:
            yield saves.save(context.stage, step, optimiser.tensors(), {})
            saved_at = context.clock()
    yield saves.save(context.stage, total, optimiser.tensors(), {}, final=True)
    optimiser.close()
    yield Artifact("weights", context.checkpoints / f"step-{total}", {"model": context.stage})
