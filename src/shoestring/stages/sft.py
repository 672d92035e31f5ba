"""Supervised fine-tuning on traces: loss on the trace only, the end of the turn included.

Order is a function of (seed, step), so a resumed run needs no cursor; the loss of a step is normalised by all of its
trained tokens, however they are packed. The longest step comes first: what does not fit fails in the first minute.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring.records import Artifact, Example, StepReport, UserError
from shoestring.stages.context import Context, Events, Facts, Forecast, read_lines
from shoestring.stages.trainer import Trainer, TrainerConfig

TRACE, OWN, WHOLE = (
    31,
    35,
    87,
)  # expected tokens: answer; prompt rows of its own beside shared ones; all (forecast only)


@dataclass(frozen=True)
class Config(TrainerConfig):
    """epochs over the traces, `batch` traces a step.

    lr peaks after a `warmup` share of the steps. beta1, beta2 and weight_decay are AdamW's. The keys of every stage that
    trains (`TrainerConfig`) belong to it too.
    """

    epochs: float = 2.0
    batch: int = 32
    lr: float = 3e-4
    warmup: float = 0.05
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95

    def __post_init__(self) -> None:
        for key in ("epochs", "batch", "lr", "rows"):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key} = {getattr(self, key)} must be above zero")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup = {self.warmup} is a share of the steps, from 0 to below 1")
        self.check()


def steps_of(config: Config, traces: int) -> int:
    return max(1, round(config.epochs * traces / config.batch))


def batches_of(config: Config, seed: int, lengths: Sequence[int]) -> list[list[int]]:
    """The traces of every step: whole shuffled epochs, one after another, then the longest step and the first exchanged.

    lengths: tokens of each trace. The longest step is the one whose largest micro-batch has the most rows: its tokens up to
    `rows`, or its longest trace where that is more; among equals the one with the most tokens.
    """
    traces, steps = len(lengths), steps_of(config, len(lengths))
    places: list[int] = []
    for epoch in range(-(-steps * config.batch // traces)):
        order = list(range(traces))
        random.Random(f"{seed}/sft/{epoch}").shuffle(order)
        places += order
    out = [places[s * config.batch : (s + 1) * config.batch] for s in range(steps)]

    def size(step: int) -> tuple[int, int, int]:
        own = [lengths[i] for i in out[step]]
        return max(min(sum(own), config.rows), max(own)), sum(own), -step

    longest = max(range(steps), key=size)
    out[0], out[longest] = out[longest], out[0]
    return out


def forecast(config: Config, facts: Facts) -> Forecast:
    passes = config.epochs * max(facts.traces, 1)
    steps = steps_of(config, max(facts.traces, 1))
    rows = passes * (OWN + TRACE)
    flops = config.training_flops(facts.shape, [WHOLE], head_tokens=TRACE) * passes * (OWN + TRACE) / WHOLE
    seconds = flops / facts.profile.train_flops.mid + steps * 0.12 + 14
    memory = config.memory(facts.shape).total
    return Forecast((facts.seconds(seconds),), tokens=int(rows), flops=flops, memory_bytes=memory, trains=True, essential=False)


def examples(rows: list[dict[str, Any]], tokenizer: Any) -> list[Example]:
    """Prompt by the tokenizer's own template (as it stands in a `plain` row), then the answer and the end of the turn,
    which carry the loss."""
    out = []
    for r in rows:
        prompt = tuple(r["prompt_tokens"]) if r.get("plain") else tokenizer.chat(r["messages"][:-1])
        answer = (*tokenizer.encode(r["messages"][-1]["content"]), tokenizer.end)
        weight = (0.0,) * len(prompt) + (1.0,) * len(answer)
        out.append(Example(prompt + answer, weight, len(prompt), problem_id=r["problem_id"]))
    return out


def run(config: Config, inputs: Mapping[str, Path], context: Context) -> Events:
    from shoestring.stages.workbench import need

    rows = read_lines(need(inputs, "traces", context.stage, "distill"))
    if not rows:
        raise UserError(f"stage {context.stage!r}: no traces to train on")
    from shoestring.models.tokenizer import Tokenizer

    data = examples(rows, Tokenizer(context.base))
    batches = batches_of(config, context.seed, [len(e.tokens) for e in data])
    total = len(batches)
    trainer = Trainer(
        config, context, total, max(1, round(config.warmup * total)), config.lr, config.memory(context.shape),
        (config.beta1, config.beta2), config.weight_decay,
    )  # fmt: skip
    pace = context.first(min(45.0, 3 * context.planned_seconds / total + 3))
    while trainer.step < total:
        if (yield context.intent(trainer.step + 1, pace.upper())) == "stop":
            yield trainer.stop()
            return
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
    yield Artifact("weights", context.checkpoints / f"step-{total}", {"model": context.stage})
