"""Distillation from logits: a larger local model, the teacher, gives the student its whole next-token distribution.

On given traces (Hinton, Vinyals, Dean 2015; Sanh et al. 2019) or on the student's own answers (on-policy: Agarwal et al.
2023, GKD, algorithm 1), by forward KL, reverse KL or the generalised Jensen-Shannon divergence (train.distillation). Both
models must have one tokenizer. The teacher only runs forward; its logits are made a chunk at a time and never kept.

Before the first step and after the last one the KL from teacher to student is measured on rows that stay the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shoestring.estimate.flops import ModelShape, forward_flops, generation_flops
from shoestring.estimate.rates import added
from shoestring.records import Artifact, Example, StepReport, UserError
from shoestring.stages import forecasts, probing, teachers
from shoestring.stages.context import Context, Events, Facts, Forecast, read_lines, write_lines
from shoestring.stages.rows import batches_of, examples, steps_of
from shoestring.stages.trainer import EpochsConfig, Trainer

if TYPE_CHECKING:
    from shoestring.generate.engine import Engine
    from shoestring.models.tokenizer import Tokenizer

FIXED = 16  # rows on which the student is compared with its teacher before the first step and after the last
SLOTS = 96  # answers that the student writes at once


@dataclass(frozen=True)
class Config(EpochsConfig):
    """teacher: a model as in `base` (a folder, a .gguf, a packaged name, a hub id in the cache).

    loss: "forward_kl", "reverse_kl" or "jsd", whose mixture has `beta` of the teacher. temperature: of both softmaxes in the
    loss. top_k: compare the teacher's k likeliest tokens and the rest as one; 0: the whole vocabulary.
    on_policy: share of each step's rows that the student answers itself (lambda of GKD), with at most `max_new` tokens at
    temperature 1; 0: traces alone; 1: needs problems alone. The other keys are those of `sft`.
    """

    teacher: str = ""
    loss: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0
    top_k: int = 0
    on_policy: float = 0.0
    max_new: int = 256

    def __post_init__(self) -> None:
        if not self.teacher.strip():
            raise ValueError("teacher names no model: give a folder, a .gguf file or a hub id that is downloaded")
        if self.loss not in ("forward_kl", "reverse_kl", "jsd"):
            raise ValueError(f"loss = {self.loss!r} must be one of forward_kl, reverse_kl, jsd")
        for key in ("max_new", "temperature"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"{key} = {getattr(self, key)} must be above zero")
        if not 0 < self.beta < 1:
            raise ValueError(
                f"beta = {self.beta} must be above 0 and below 1; its ends are the losses forward_kl and reverse_kl"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k = {self.top_k} is a number of tokens, or 0 for all")
        if not 0 <= self.on_policy <= 1:
            raise ValueError(f"on_policy = {self.on_policy} is a share of the rows, from 0 to 1")
        plain = {f.name: f.default for f in fields(Config)}
        read = {"beta": (self.loss == "jsd", 'loss = "jsd"'), "max_new": (self.on_policy > 0, "on_policy above 0")}
        for key, (is_read, by) in read.items():
            if not is_read and getattr(self, key) != plain[key]:
                raise ValueError(f"{key} = {getattr(self, key)} is read with {by} alone; set that or leave {key} out")
        self.check()


def check(config: Config, base: str) -> None:
    """UserError, before anything is spent, for a teacher that is not there or whose tokenizer is not the base's."""
    teachers.check(config.teacher, base)


def sampled_rows(config: Config, step: int) -> int:
    """How many of a step's rows the student answers itself: over the steps exactly the share that is asked for."""
    each = config.on_policy * config.batch
    return math.floor((step + 1) * each + 1e-9) - math.floor(step * each + 1e-9)


def beside(config: Config, teacher: ModelShape, student: ModelShape, rows: float, context: float, cuda: bool) -> dict[str, int]:
    """Bytes that the process holds beyond a trainer's own; context: tokens of a row that the student answers."""
    own = teachers.training_bytes(teacher, student, round(rows), cuda)
    if config.on_policy:
        from shoestring.estimate.memory import rollout_bytes

        own |= rollout_bytes(student, min(SLOTS, math.ceil(config.on_policy * config.batch)), math.ceil(context))
    return own


def forecast(config: Config, facts: Facts) -> Forecast:
    """The student's update as in SFT, the teacher's forward pass over the same rows, and what the student writes itself."""
    from shoestring.estimate.lengths import slowest_share, written

    sizes, shape, rates = facts.sizes, facts.shape, facts.rates()
    teacher = teachers.shape_of(config.teacher)
    given = facts.problems if config.on_policy == 1 and facts.problems else facts.traces
    count = max(given, 1)
    steps = steps_of(config, count)
    passes = steps * config.batch
    new = written(sizes, config.max_new, facts.trained)
    answer = (1 - config.on_policy) * sizes.trace() + config.on_policy * new
    whole = sizes.prompt + answer
    row = whole - min(sizes.shared, sizes.prompt - 1)
    n, heads = max(2, round(whole)), max(1, round(answer))
    each = config.training_flops(shape, [n], head_tokens=heads) * row / n
    forward = forward_flops(teacher, [n], head_tokens=heads)
    longest = sizes.prompt + max(answer * slowest_share(count, sizes.spread), config.max_new if config.on_policy else 0)
    peak = max(min(float(config.rows), config.batch * row), min(longest, float(config.rows)))
    held = beside(config, teacher, shape, peak, sizes.prompt + config.max_new, rates.gpus > 0)
    done = forecasts.training(
        config, facts, each * passes, row * passes, row, config.batch, steps, beside=held, longest=max(sizes.longest, longest)
    )
    rows = passes + 2 * min(FIXED, count)  # the two comparisons score their rows too
    scored = teachers.rates_of(rates, teacher).prefill(rows * row, whole)
    scored = scored.scaled(forward / max(1.0, forward_flops(teacher, [n], head_tokens=0)))
    rolled, rollout = scored.scaled(0.0), 0.0
    if config.on_policy:
        answers = config.on_policy * passes + (min(FIXED, count) if config.on_policy == 1 else 0)
        at_once = max(1, min(SLOTS, round(config.on_policy * config.batch)))
        rolled, rollout, _, _ = forecasts.answering(facts, answers, new, answers * sizes.own, config.max_new, at_once)
    around = rates.around(config.checkpoint_bytes(shape), 4.0 if config.lora else 2.0, done.seconds.mid)
    opened = teachers.rates_of(rates, teacher).load()
    update, scoring = each * passes, forward * row / n * rows
    return facts.forecast(
        added(done.seconds, scored, rolled, around, opened), tokens=round(passes * row + (config.on_policy * passes * new)),
        flops=update + scoring + rollout, hardware_flops=done.hardware + scoring + rollout,
        parts={"rollouts": rollout, "teacher": scoring, "update": update}, memory_bytes=sum(done.memory.values()),
        memory=done.memory, fits=done.fits, trains=True,
        notes=(f"teacher {config.teacher}: {teacher.parameters() / 1e6:,.0f}M weights, held beside the student",),
    )  # fmt: skip


@dataclass(frozen=True)
class Data:
    """prompts[i] of row i with its problem's id; given[i]: the trace to learn from; none where the student answers all."""

    prompts: Sequence[tuple[int, ...]]
    ids: Sequence[str]
    given: Sequence[Example]

    def lengths(self, config: Config) -> list[int]:
        """The most tokens that each row can have."""
        own = config.max_new if config.on_policy else 0
        made = [len(p) + own for p in self.prompts]
        return [max(n, len(e.tokens)) for n, e in zip(made, self.given, strict=True)] if self.given else made


def read_data(config: Config, inputs: Mapping[str, Path], tokenizer: Tokenizer, stage: str) -> Data:
    """Traces; where the student answers every row, the chosen problems if there are any. UserError where nothing is."""
    from shoestring.stages.prompts import from_row, plain
    from shoestring.stages.workbench import need

    if config.on_policy == 1 and "problems" in inputs:
        problems = [from_row(r) for r in read_lines(inputs["problems"])]
        data = Data([tokenizer.chat(plain(p)) for p in problems], [p.id for p in problems], ())
    else:
        rows = examples(read_lines(need(inputs, "traces", stage, "distill")), tokenizer)
        data = Data([e.tokens[: e.prompt_length] for e in rows], [e.problem_id for e in rows], rows)
    if not data.prompts:
        raise UserError(f"stage {stage!r}: no traces or problems to distil on")
    return data


def answer(
    engine: Engine, tokenizer: Tokenizer, data: Data, chosen: Sequence[tuple[int, int]], config: Config, stage: str
) -> list[Example]:
    """The student's own answers to the rows of `chosen` (row, noise seed), every token of them trained on."""
    from shoestring.generate.engine import Request

    stop = tokenizer.ends
    asked = [Request(data.prompts[i], config.max_new, 1.0, seed, stop) for i, seed in chosen]
    made = []
    for (i, _), done in zip(chosen, engine.generate(asked), strict=True):
        if done.reason == "error":
            raise UserError(f"stage {stage!r}: problem {data.ids[i]}: {done.error}; lower max_new")
        n = len(data.prompts[i])
        weight = (0.0,) * n + (1.0,) * len(done.tokens)
        made.append(Example(data.prompts[i] + done.tokens, weight, n, problem_id=data.ids[i]))
    return made


def step_rows(
    engine: Engine | None, tokenizer: Tokenizer, data: Data, batch: Sequence[int], config: Config, context: Context, step: int
) -> tuple[list[Example], list[Example]]:
    """(given rows, rows that the student answered) of a step: a function of (seed, step) and the weights."""
    from shoestring.generate.sampling import request_seed

    places, count = range(len(batch)), min(len(batch), sampled_rows(config, step))
    own = set(random.Random(f"{context.seed}/on-policy/{step}").sample(places, count))
    given = [data.given[i] for place, i in enumerate(batch) if place not in own]
    if engine is None or not own:
        return given, []
    chosen = [(i, request_seed(context.seed, step, place, 0)) for place, i in enumerate(batch) if place in own]
    made = answer(engine, tokenizer, data, chosen, config, context.stage)
    written = []
    for e in made:
        prompt, tokens = e.tokens[: e.prompt_length], e.tokens[e.prompt_length :]
        row = {"problem_id": e.problem_id, "model": context.stage, "step": step + 1, "text": tokenizer.decode(tokens)}
        written.append({**row, "prompt_tokens": list(prompt), "tokens": list(tokens)})
    write_lines(context.folder / f"step-{step + 1:06d}.jsonl", written)
    return given, made


def fixed_rows(engine: Engine | None, tokenizer: Tokenizer, data: Data, config: Config, context: Context) -> list[Example]:
    """Up to `FIXED` rows to compare student and teacher on: traces, or what the untrained student answers."""
    from shoestring.generate.sampling import request_seed

    count = len(data.prompts)
    some = random.Random(f"{context.seed}/closeness").sample(range(count), min(FIXED, count))
    if data.given or engine is None:
        return [data.given[i] for i in some]
    return answer(engine, tokenizer, data, [(i, request_seed(context.seed, -1, i)) for i in some], config, context.stage)


def run(config: Config, inputs: Mapping[str, Path], context: Context) -> Events:
    from shoestring.models.device import choose, free_bytes
    from shoestring.models.tokenizer import Tokenizer
    from shoestring.train.distillation import Divergence, Teaching

    source = teachers.folder_of(config.teacher)
    teachers.refuse_another_tokenizer(context.base, source)
    tokenizer = Tokenizer(context.base)
    data = read_data(config, inputs, tokenizer, context.stage)
    lengths = data.lengths(config)
    batches = batches_of(config, context.seed, lengths)
    total = len(batches)
    teacher = teachers.open_teacher(source, max(lengths))
    probe = probing.of(context, inputs, total)
    held = beside(config, teachers.shape_of(str(source)), context.shape, config.rows, max(lengths), choose().type != "cpu")
    memory = config.memory(context.shape, held, free_bytes())
    trainer = Trainer(
        config, context, total, max(1, round(config.warmup * total)), config.lr, memory,
        (config.beta1, config.beta2), config.weight_decay,
    )  # fmt: skip
    engine = None
    if config.on_policy:
        from shoestring.generate.engine import Engine

        engine = Engine(trainer.model, max(1, min(SLOTS, math.ceil(config.on_policy * config.batch))))
    teaching = Teaching(teacher, Divergence(config.loss, config.beta, config.temperature, config.top_k))
    planned = 3 * context.planned_seconds / total  # a step's share, with room
    closeness = teachers.Closeness(context, teaching, min(45.0, planned * max(1.0, FIXED / config.batch) + 3))
    cost = _flops(config, context.shape, teachers.shape_of(str(source)))
    if not (yield from closeness.look("before", trainer, lambda: fixed_rows(engine, tokenizer, data, config, context))):
        yield trainer.stop()
        return
    pace = context.first(min(60.0, planned + 3))
    while trainer.step < total:
        said = yield from probing.before_step(context, trainer, tokenizer, probe, pace)
        if said == "stop":
            return
        if said == "enough":
            break
        began = context.clock()
        if engine is not None:
            engine.refresh()
        given, made = step_rows(engine, tokenizer, data, batches[trainer.step], config, context, trainer.step)
        rolled = context.clock() - began
        result, norm = trainer.update(given + made, teaching)
        seconds = context.clock() - began
        pace.add(seconds)
        plain, wrote = sum(len(e.tokens) for e in given + made), sum(len(e.tokens) - e.prompt_length for e in made)
        told = {"plain_rows": plain, **{k: round(v, 6) for k, v in result.measures.items()}, **trainer.news()}
        if engine is not None:
            told |= {"on_policy_rows": len(made), "rollout_seconds": round(rolled, 3), "rollout_tokens": wrote}
        yield StepReport(
            context.stage, trainer.step, total, seconds, result.rows + wrote, result.predictions, loss=result.loss,
            grad_norm=norm, flops=cost(given, made, result.rows, result.predictions), extra=told,
        )  # fmt: skip
        if trainer.due(pace):
            yield trainer.save()
    yield from closeness.look("after", trainer)
    yield trainer.finish()
    meta = {"model": context.stage, "teacher": config.teacher, **closeness.found()}
    yield Artifact("weights", context.checkpoints / f"step-{trainer.step}", meta)


def _flops(
    config: Config, student: ModelShape, teacher: ModelShape
) -> Callable[[Sequence[Example], Sequence[Example], int, int], float]:
    """(given rows, rows that the student answered, rows computed, predictions) → FLOPs of a step."""

    def of(given: Sequence[Example], made: Sequence[Example], computed: int, predictions: int) -> float:
        lengths = [len(e.tokens) for e in (*given, *made)]
        both = config.training_flops(student, lengths, head_tokens=predictions) + forward_flops(teacher, lengths, predictions)
        own = sum(generation_flops(student, e.prompt_length, len(e.tokens) - e.prompt_length) for e in made)
        return both * computed / sum(lengths) + own

    return of
