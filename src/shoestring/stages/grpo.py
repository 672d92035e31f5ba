"""Group relative policy optimisation (Shao et al. 2024; DeepSeek-R1, 2025) with a verifiable reward, no critic.

A step: `prompts` problems, `group` answers each from the current weights, reward by the problem's grader, advantage
against the group's own mean, one clipped update. Groups whose answers all score alike teach nothing: they are left out
of the update, counted and priced. Prompt tokens and tokens that the machine forced carry no loss.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shoestring.estimate.flops import ModelShape, generation_flops, training_flops
from shoestring.estimate.lengths import grown, written
from shoestring.estimate.memory import MemoryForecast, rollout_bytes
from shoestring.estimate.rates import added
from shoestring.records import Artifact, Example, Problem, StepReport, Trace, UserError
from shoestring.stages import forecasts, probing, scoring
from shoestring.stages.context import Context, Events, Facts, Forecast, read_lines, write_lines
from shoestring.stages.trainer import Trainer, TrainerConfig

if TYPE_CHECKING:
    from shoestring.generate.engine import Engine
    from shoestring.models.tokenizer import Tokenizer
    from shoestring.rewards._mixture import Mixture

VARIED = 0.6  # expected share of groups with variance: only the forecast reads it
PROMPT = 64  # tokens of a prompt that room is kept for beside the answers


@dataclass(frozen=True)
class Config(TrainerConfig):
    """steps of `prompts` problems with `group` answers each, at most `max_new` tokens, at `temperature`.

    scale: "std" divides advantages by the group's deviation (grpo), "none" does not (dr_grpo). The ratio is clipped to
    [1 - clip_low, 1 + clip_high] (dapo's clip-higher). lr is reached after `warmup` steps and, unless `schedule` says
    otherwise, held. rewards: what is paid, name → weight ("grader", a reward's name, "file.py:function"; rewards/_mixture.py);
    each problem's own grader without it. The keys of every stage that trains (`TrainerConfig`) belong to it too.
    """

    steps: int = 24
    prompts: int = 8
    group: int = 8
    lr: float = 2e-5
    warmup: int = 2
    max_new: int = 48
    temperature: float = 1.0
    scale: str = "std"
    clip_low: float = 0.2
    clip_high: float = 0.28
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "constant"
    rewards: dict[str, float] | None = None

    def __post_init__(self) -> None:
        for key in ("steps", "prompts", "lr", "max_new", "temperature", "rows"):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key} = {getattr(self, key)} must be above zero")
        if self.group < 2:
            raise ValueError(f"group = {self.group}: an advantage needs at least two answers a problem")
        if self.scale not in ("std", "none"):
            raise ValueError(f"scale = {self.scale!r} must be 'std' or 'none'")
        if self.warmup < 0:
            raise ValueError(f"warmup = {self.warmup} is a number of steps, 0 or more")
        if self.rewards is not None and not self.rewards:
            raise ValueError("rewards is empty: name at least one, such as { grader = 1.0 }, or leave it out")
        self.check()

    def mixture(self) -> Mixture | None:
        """What is paid; None for each problem's own grader. Raises UserError for a reward that cannot be loaded."""
        from shoestring.rewards._mixture import Mixture

        return Mixture(self.rewards) if self.rewards else None

    def memory_beside_rollouts(self, shape: ModelShape, available: int | None = None) -> MemoryForecast:
        """As `memory`, with the engine in the same process."""
        return self.memory(shape, rollout_bytes(shape, self.prompts * self.group, PROMPT + self.max_new), available)


def check(config: Config, base: str) -> None:
    """UserError, before anything is spent, for a reward that cannot be loaded. `base` is not asked for anything."""
    config.mixture()


def forecast(config: Config, facts: Facts) -> Forecast:
    """Rollouts, their scoring and the update. Answers grow over a run; behaviour log-probabilities come with the rollouts
    and there is no reference model, so that scoring costs no forward pass, only the logits made again in the update."""
    sizes, shape, answers = facts.sizes, facts.shape, config.prompts * config.group
    prompt = max(1, round(sizes.prompt))
    new = grown(written(sizes, config.max_new, facts.trained), config.steps, config.max_new)
    groups = config.prompts * VARIED
    row = prompt + new * config.group  # a group's answers share their prompt's rows
    once = max(2, round(prompt + new))  # attention is each answer's own
    heads = max(1, round(new * config.group))
    each = config.training_flops(shape, [once], head_tokens=max(1, round(new))) * config.group * row / (once * config.group)
    again = training_flops(shape, [1], head_tokens=heads) / 3
    update, scored = config.steps * groups * each, config.steps * groups * again
    rolled, rollout, _, _ = forecasts.answering(
        facts, config.steps * answers, new, config.steps * config.prompts * sizes.prompt, config.max_new, answers
    )
    beside = rollout_bytes(shape, answers, prompt + config.max_new)
    done = forecasts.training(
        config, facts, update, config.steps * groups * row, prompt + new, groups * config.group, config.steps, scored, beside,
        prompt + config.max_new,
    )  # fmt: skip
    rates, size = facts.rates(), config.checkpoint_bytes(shape)
    around = rates.around(size, 4.0 if config.lora else 2.0, rolled.mid + done.seconds.mid)
    if facts.trained and not rates.gpus:
        around = added(around, rates.store(0.5 * size))  # the stage before left its masters on the disk
    tokens = config.steps * (answers * new + groups * row)
    return facts.forecast(
        added(rolled, done.seconds, around), tokens=round(tokens), flops=update + rollout,
        parts={"rollouts": rollout, "scoring": 0.0, "update": update}, hardware_flops=rollout + done.hardware,
        memory_bytes=sum(done.memory.values()), memory=done.memory, fits=done.fits, trains=True, steps=config.steps,
        notes=(f"answers of {new:.0f} tokens on average, at most {config.max_new}",),
    )  # fmt: skip


def advantages(rewards: Sequence[float], scale: str) -> list[float]:
    """reward - mean of the group, over the group's sample deviation for scale "std". All zero without variance."""
    mean = sum(rewards) / len(rewards)
    centred = [r - mean for r in rewards]
    if scale == "none":
        return centred
    deviation = math.sqrt(sum(c * c for c in centred) / (len(rewards) - 1))
    return [c / (deviation + 1e-4) if deviation else 0.0 for c in centred]


def to_example(trace: Trace, advantage: float) -> Example:
    """Loss on sampled tokens only; prompt and forced tokens have weight 0."""
    n = len(trace.prompt_tokens)
    return Example(
        tokens=trace.prompt_tokens + trace.tokens,
        weight=(0.0,) * n + tuple(float(s) for s in trace.sampled),
        prompt_length=n,
        advantage=advantage,
        logprob=(0.0,) * n + trace.logprobs,
        problem_id=trace.problem_id,
    )


def draw(pool: Mapping[str, Sequence[Problem]], config: Config, seed: int, step: int) -> list[Problem]:
    """The problems of a step: families in turn, inside a family shuffled epochs. A function of (seed, step) alone."""
    families = sorted(pool)
    out = []
    for place in range(step * config.prompts, (step + 1) * config.prompts):
        turn, which = divmod(place, len(families))
        members = pool[families[which]]
        epoch, at = divmod(turn, len(members))
        order = list(range(len(members)))
        random.Random(f"{seed}/{families[which]}/{epoch}").shuffle(order)
        out.append(members[order[at]])
    return out


def gather_rollouts(context: Context) -> None:
    """traces/<stage>.jsonl from the steps' own files (a replayed step overwrites its file, so none stands twice)."""
    steps = sorted(context.folder.glob("step-*.jsonl"))
    write_lines(context.run_dir / "traces" / f"{context.stage}.jsonl", (r for p in steps for r in read_lines(p)))


def roll(
    engine: Engine, tokenizer: Tokenizer, questions: Sequence[Problem], config: Config, context: Context, step: int,
    reward: Mixture | None, reasons: Counter[str],
) -> list[list[Trace]]:  # fmt: skip
    """One group of graded answers a question; the noise is a function of (run seed, step, place, answer). The verdicts'
    reasons are counted into `reasons`."""
    from shoestring.generate.engine import Request
    from shoestring.generate.sampling import request_seed
    from shoestring.stages.prompts import plain
    from shoestring.stages.workbench import sample

    stop = frozenset([tokenizer.end])
    requests, problems = [], []
    for place, p in enumerate(questions):
        prompt = tokenizer.chat(plain(p))
        for k in range(config.group):
            seed = request_seed(context.seed, step, place, k)
            requests.append(Request(prompt, config.max_new, config.temperature, seed, stop))
            problems.append(p)
    traces = sample(engine, requests, problems, tokenizer, context.stage, reward, reasons)
    return [traces[i : i + config.group] for i in range(0, len(traces), config.group)]


def learnable(groups: Sequence[Sequence[Trace]], scale: str) -> tuple[list[Example], int, int]:
    """(examples of the groups with variance, number of groups without, tokens spent on those). An answer without a score,
    on which no reward has an opinion, takes no part in its group."""
    data: list[Example] = []
    flat = flat_tokens = 0
    for g in groups:
        heard = [(t, t.score) for t in g if t.score is not None]
        values = [score for _, score in heard]
        if len(set(values)) < 2:
            flat += 1
            flat_tokens += sum(len(t.tokens) for t in g)
        else:
            data += [to_example(t, a) for (t, _), a in zip(heard, advantages(values, scale), strict=True)]
    return data, flat, flat_tokens


def read_pool(inputs: Mapping[str, Path], stage: str) -> dict[str, list[Problem]]:
    """Problems by family that SFT has not seen. UserError when none is left."""
    from shoestring.stages.prompts import from_row
    from shoestring.stages.workbench import need

    pool: dict[str, list[Problem]] = {}
    chosen = {r["id"] for r in read_lines(inputs["problems"])} if "problems" in inputs else set()
    for row in read_lines(need(inputs, "pool", stage, "curate")):
        if row["id"] not in chosen:
            pool.setdefault(row["domain"], []).append(from_row(row))
    if not pool:
        raise UserError(f"stage {stage!r}: no problems are left for reinforcement learning; curate fewer")
    return pool


def told(
    groups: Sequence[Sequence[Trace]],
    flat: int,
    usd: float,
    rolled: float,
    measures: Mapping[str, float],
    reasons: Mapping[str, int],
) -> dict[str, Any]:
    """The report's own measures of a step."""
    traces = [t for g in groups for t in g]
    return {
        "groups": len(groups), "groups_without_variance": flat, "usd_without_variance": usd,
        "rollout_seconds": round(rolled, 3), "mean_length": sum(len(t.tokens) for t in traces) / len(traces),
        "verdicts": dict(reasons),
        **{k: round(v, 5) for k, v in measures.items()},
    }  # fmt: skip


def run(config: Config, inputs: Mapping[str, Path], context: Context) -> Events:
    from shoestring.stages.workbench import trace_row

    probe = probing.of(context, inputs, config.steps, config.max_new)
    pool = probing.without(read_pool(inputs, context.stage), probe)
    reward = config.mixture()
    scoring.self_test([p for problems in pool.values() for p in problems], reward, " + ".join(config.rewards or ()))
    from shoestring.generate.engine import Engine
    from shoestring.models.device import free_bytes
    from shoestring.models.tokenizer import Tokenizer
    from shoestring.train.step import Clip

    tokenizer = Tokenizer(context.base)
    memory = config.memory_beside_rollouts(context.shape, free_bytes())
    trainer = Trainer(config, context, config.steps, config.warmup, config.lr, memory)
    engine = Engine(trainer.model, config.prompts * config.group)
    clip = Clip(config.clip_low, config.clip_high, config.temperature)
    pace = context.first(60.0)
    while trainer.step < config.steps:
        if probe is not None and (said := (yield from probe.look(trainer, tokenizer))) != "go":
            if said == "enough":
                break
            gather_rollouts(context)
            yield trainer.stop()
            return
        if (yield context.intent(trainer.step + 1, pace.upper())) == "stop":
            gather_rollouts(context)
            yield trainer.stop()
            return
        began = context.clock()
        engine.refresh()
        questions = draw(pool, config, context.seed, trainer.step)
        reasons: Counter[str] = Counter()
        groups = roll(engine, tokenizer, questions, config, context, trainer.step, reward, reasons)
        rolled = context.clock() - began
        traces = [t for g in groups for t in g]
        path = context.folder / f"step-{trainer.step + 1:06d}.jsonl"
        write_lines(path, [trace_row(t, step=trainer.step + 1) for t in traces])
        data, flat, flat_tokens = learnable(groups, config.scale)
        tokens = sum(len(t.tokens) for t in traces)
        result, norm = trainer.update(data, clip) if data else trainer.skip()
        seconds = context.clock() - began
        pace.add(seconds)
        flops = sum(generation_flops(context.shape, len(g[0].prompt_tokens), 1 + len(g[0].tokens), len(g)) for g in groups)
        if result.rows:
            flops += config.training_flops(context.shape, [result.rows], head_tokens=result.predictions)
        wasted = context.usd(rolled * flat_tokens / max(1, tokens))
        yield StepReport(
            context.stage, trainer.step, config.steps, seconds, tokens + result.rows, result.predictions,
            loss=result.loss if data else None, reward=sum(t.score or 0.0 for t in traces) / len(traces), grad_norm=norm,
            flops=flops, extra={**told(groups, flat, wasted, rolled, result.measures, reasons), **trainer.news()},
        )  # fmt: skip
        if trainer.due(pace):
            yield trainer.save()
    gather_rollouts(context)
    yield trainer.finish()
    yield Artifact("weights", context.checkpoints / f"step-{trainer.step}", {"model": context.stage})
