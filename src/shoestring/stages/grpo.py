"""Group relative policy optimisation (Shao et al. 2024; DeepSeek-R1, 2025) with a verifiable reward, no critic.

A step: `prompts` problems, `group` answers each from the current weights, reward by the problem's grader, advantage
against the group's own mean, one clipped update. Groups whose answers all score alike teach nothing: they are left out
of the update, counted and priced. Prompt tokens and tokens that the machine forced carry no loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shoestring.estimate import adapters
from shoestring.estimate.flops import ModelShape, forward_flops, generation_flops, training_flops
from shoestring.estimate.lengths import grown, written
from shoestring.estimate.memory import MemoryForecast, rollout_bytes, state_bytes
from shoestring.estimate.rates import added
from shoestring.records import Artifact, StepReport, UserError
from shoestring.stages import forecasts, probing, scoring
from shoestring.stages._grpo_ahead import Asker, Rolled, Rollouts
from shoestring.stages._grpo_draw import DrawConfig, draw, read_pool, step_file
from shoestring.stages._grpo_policy import PolicyConfig
from shoestring.stages._grpo_roll import Past, RollConfig, advantages, learnable, refuse_too_long, roll, to_example
from shoestring.stages._grpo_update import Learner, Learnt
from shoestring.stages._grpo_watch import listening, together
from shoestring.stages.context import Context, Events, Facts, Forecast, read_lines, write_lines
from shoestring.stages.trainer import Trainer, TrainerConfig

if TYPE_CHECKING:
    from shoestring.rewards._mixture import Mixture

__all__ = ["Config", "advantages", "check", "draw", "forecast", "learnable", "read_pool", "roll", "run", "to_example"]

VARIED = 0.6  # expected share of groups with variance: only the forecast reads it
LOUD = 0.1  # share of tokens whose probabilities differ between engine and trainer, from which the live line says so
PROMPT = 64  # tokens of a prompt that room is kept for beside the answers


@dataclass(frozen=True)
class Config(DrawConfig, RollConfig, PolicyConfig, TrainerConfig):
    """steps of `prompts` problems with `group` answers each, at most `max_new` tokens, at `temperature`.

    lr is reached after `warmup` steps and, unless `schedule` says
    otherwise, held. rewards: what is paid, name → weight ("grader", a reward's name, "file.py:function"; rewards/_mixture.py);
    each problem's own grader without it. The keys of the draw, the rollouts and the update (`DrawConfig`, `RollConfig`,
    `PolicyConfig`) and those of every stage that trains (`TrainerConfig`) belong to it too.
    """

    steps: int = 24
    prompts: int = 8
    group: int = 8
    lr: float = 2e-5
    warmup: int = 2
    max_new: int = 48
    temperature: float = 1.0
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "constant"
    rewards: dict[str, float] | None = None

    def __post_init__(self) -> None:
        for key in ("steps", "prompts", "lr", "max_new", "temperature", "rows"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"{key} = {getattr(self, key)} must be above zero")
        if self.group < 2:
            raise ValueError(f"group = {self.group}: an advantage needs at least two answers a problem")
        if self.warmup < 0:
            raise ValueError(f"warmup = {self.warmup} is a number of steps, 0 or more")
        if self.rewards is not None and not self.rewards:
            raise ValueError("rewards is empty: name at least one, such as { grader = 1.0 }, or leave it out")
        self.check_draw()
        self.check_roll()
        self.check_policy((self.prompts, self.max_new, self.lora))
        self.check()

    def mixture(self) -> Mixture | None:
        """What is paid; None for each problem's own grader. Raises UserError for a reward that cannot be loaded."""
        from shoestring.rewards._mixture import Mixture

        return Mixture(self.rewards) if self.rewards else None

    def memory_beside_rollouts(self, shape: ModelShape, available: int | None = None) -> MemoryForecast:
        """As `memory`, with the engine in the same process, and what the update holds beside the policy."""
        context = PROMPT + self.max_new + sum(self.forced())
        beside = rollout_bytes(shape, self.prompts * self.group, context) | self.beside(shape)
        return self.memory(shape, beside, available)

    def beside(self, shape: ModelShape) -> dict[str, int]:
        """Bytes by part of a reference's copy, of the weights that rollouts lag behind with, and of a critic."""
        n = shape.parameters()
        out: dict[str, int] = {}
        if self.kl and (not self.lora or self.reference_every):
            out["reference"] = 2 * (adapters.adapter_parameters(shape, self.lora, self.targets()) if self.lora else n)
        if self.off_policy:
            out["rollout weights"] = 2 * n
        if self.of().critic:  # masters, moments, gradients (fp32 sum) and the copy that computes
            out["critic"] = (4 + 4 + 2) * n + state_bytes(shape, "adamw" if self.optimiser == "muon" else self.optimiser)
        return out

    def checkpoint_bytes(self, shape: ModelShape) -> int:
        """With the critic's masters and state, and a reference that was replaced."""
        held = self.beside(shape)
        critic = held["critic"] - 6 * shape.parameters() if "critic" in held else 0  # without gradients and what computes
        return super().checkpoint_bytes(shape) + critic + (held["reference"] if self.reference_every else 0)

    def refuse_what_does_not_fit(self, stage: str, shape: ModelShape, memory: MemoryForecast) -> None:
        """UserError where it is the reference, the lagging weights or the critic that the memory has no room for."""
        held = self.beside(shape)
        if held and not memory.fits:
            said = ", ".join(f"{k} {v / 2**30:.2f} GiB" for k, v in held.items())
            raise UserError(
                f"stage {stage!r}: about {memory.total / 2**30:.1f} GiB are needed and {(memory.available or 0) / 2**30:.1f} "
                f"are there, with {said}; leave out kl, off_policy or variant = 'ppo', train an adapter (lora), or lower rows"
            )


def check(config: Config, base: str) -> None:
    """UserError, before anything is spent, for a reward that cannot be loaded. `base` is not asked for anything."""
    config.mixture()
    config.check_tools()


def forecast(config: Config, facts: Facts) -> Forecast:
    """Rollouts, their scoring and the update. Answers grow over a run. Behaviour log-probabilities come with the rollouts, so
    that scoring costs no forward pass unless a reference, a critic or `old` asks for one; groups without variance that are
    replaced (`resample`) are asked for again, and a critic, which learns from every answer, costs the update once more."""
    sizes, shape, answers = facts.sizes, facts.shape, config.prompts * config.group
    rules, forced = config.forced()  # of `ask` and tools
    prompt = max(1, round(sizes.prompt)) + rules
    new = grown(written(sizes, config.max_new, facts.trained), config.steps, config.max_new)
    critic = config.of().critic
    draws = sum((1 - VARIED) ** i for i in range(1 + config.draws()))  # rounds of rollouts, each smaller than the one before
    answers_in_all, questions = config.steps * answers * draws, config.steps * config.prompts * draws
    groups = config.prompts * (1.0 if critic else VARIED * draws)
    row = prompt + new * config.group  # a group's answers share their prompt's rows
    once = max(2, round(prompt + new))  # attention is each answer's own
    heads = max(1, round(new * config.group))
    each = config.training_flops(shape, [once], head_tokens=max(1, round(new))) * config.group * row / (once * config.group)
    again = training_flops(shape, [1], head_tokens=heads) / 3
    update, scored = config.steps * groups * each * config.updates, config.steps * groups * again * config.updates
    passes = config.steps * groups * sum((config.kl > 0, config.old == "trainer", critic))  # forward over a step's groups
    judged = passes * forward_flops(shape, [once], head_tokens=max(1, round(new))) * row / once
    trained = (2 if critic else 1) * update + judged
    rolled, rollout, _, _ = forecasts.answering(
        facts, answers_in_all, new, questions * (sizes.prompt + rules) + answers_in_all * config.read_again(prompt, new),
        config.max_new, answers,
    )  # fmt: skip
    beside = rollout_bytes(shape, answers, prompt + config.max_new + forced) | config.beside(shape)
    done = forecasts.training(
        config, facts, trained, config.updates * config.steps * groups * row, prompt + new, groups * config.group,
        config.updates * config.minibatches * config.steps * (2 if critic else 1), scored, beside,
        prompt + config.max_new + forced,
    )  # fmt: skip
    rates, size = facts.rates(), config.checkpoint_bytes(shape)
    around = rates.around(size, (4.0 if config.lora else 2.0) * (2 if critic else 1), rolled.mid + done.seconds.mid)
    if facts.trained and not rates.gpus:
        # the stage before left its masters on the disk
        around = added(around, rates.store(0.5 * TrainerConfig.checkpoint_bytes(config, shape)))
    tokens = answers_in_all * new + config.updates * config.steps * groups * row
    return facts.forecast(
        added(rolled, done.seconds, around, config.tool_seconds(answers_in_all)), tokens=round(tokens), flops=trained + rollout,
        parts={"rollouts": rollout, "scoring": judged, "update": trained - judged}, hardware_flops=rollout + done.hardware,
        memory_bytes=sum(done.memory.values()), memory=done.memory, fits=done.fits, trains=True, steps=config.steps,
        notes=(f"answers of {new:.0f} tokens on average, at most {config.max_new}",),
    )  # fmt: skip


def gather_rollouts(context: Context) -> None:
    """traces/<stage>.jsonl from the steps' own files (a replayed step overwrites its file, so none stands twice)."""
    steps = sorted(context.folder.glob("step-*.jsonl"))
    write_lines(context.run_dir / "traces" / f"{context.stage}.jsonl", (r for p in steps for r in read_lines(p)))


def told(config: Config, rolled: Rolled, learnt: Learnt, usd: float) -> dict[str, Any]:
    """The report's own measures of a step."""
    traces = rolled.traces()
    out = {
        "groups": len(rolled.groups), "groups_without_variance": learnt.flat, "usd_without_variance": usd,
        "rollout_seconds": round(rolled.seconds, 3), "mean_length": rolled.tokens() / len(traces),
        "verdicts": dict(rolled.reasons), **{k: round(v, 5) for k, v in learnt.result.measures.items()}, **learnt.told,
    }  # fmt: skip
    if (seen := learnt.told.get("mismatch")) and (config.old == "trainer" or config.off_policy or seen["outside"] > LOUD):
        out["live"] = f"p/q {seen['q01']:.2f}–{seen['q99']:.2f} ({seen['outside']:.1%} out)"
    if rolled.draws:
        out["draws"] = 1 + rolled.draws
    if rolled.long:
        out["overlong"] = rolled.long
    return out


def step_flops(config: Config, shape: ModelShape, rolled: Rolled, learnt: Learnt) -> float:
    """FLOPs of the rollouts, of what was scored forward, and of the update (a critic's too)."""
    flops = 0.0
    for g in rolled.groups:  # the prompt once, each answer at its own length
        prompt = len(g[0].prompt_tokens)
        once = generation_flops(shape, prompt, 1)
        flops += once + sum(generation_flops(shape, prompt, len(t.tokens)) - once for t in g if t.tokens)
    if lengths := learnt.lengths:  # a row attends inside its example alone, however many a batch holds
        rows = 1 / sum(lengths)  # examples share rows: so many of them stand for a token
        body = config.training_flops(shape, lengths, head_tokens=0)
        head = config.training_flops(shape, lengths, head_tokens=learnt.result.predictions) - body
        flops += (body * rows * learnt.result.rows + head) * (2 if config.of().critic else 1)
        forward = forward_flops(shape, lengths, head_tokens=0)
        flops += forward * rows * learnt.scored + forward_flops(shape, lengths, head_tokens=learnt.judged) - forward
    return flops


def run(config: Config, inputs: Mapping[str, Path], context: Context) -> Events:
    from shoestring.stages.workbench import trace_row

    probe = probing.of(context, inputs, config.steps, config.max_new, config.ask)
    pool = probing.without(read_pool(inputs, context.stage, config.mix), probe)
    reward = listening(config.mixture())
    scoring.self_test([p for problems in pool.values() for p in problems], reward, " + ".join(config.rewards or ()))
    from shoestring.models.device import free_bytes
    from shoestring.models.tokenizer import Tokenizer

    tokenizer = Tokenizer(context.base)
    memory = config.memory_beside_rollouts(context.shape, free_bytes())
    config.refuse_what_does_not_fit(context.stage, context.shape, memory)
    trainer = Trainer(config, context, config.steps, config.warmup, config.lr, memory)
    refuse_too_long(pool, config, tokenizer, trainer.model.config.max_positions, context.stage)
    past, pace = Past.read(context, trainer.step, reward), context.first(60.0)
    learner = Learner(config, context, trainer)
    asker = Asker(pool, config, context, tokenizer, reward, past.lately)
    rollouts = Rollouts(asker, trainer, config.prompts * config.group)
    while trainer.step < config.steps:
        said = yield from probing.before_step(context, trainer, tokenizer, probe, pace, lambda: gather_rollouts(context))
        if said == "stop":
            return
        if said == "enough":
            break
        began, step = context.clock(), trainer.step
        rolled = rollouts.take(step)
        write_lines(step_file(context.folder, step + 1), [trace_row(t, step=step + 1) for t in rolled.traces()])
        if reward is not None:
            reward.parts = rolled.parts
        seen = past.look(step + 1, rolled.questions, rolled.groups)
        with rollouts.beside(step):
            learnt = learner.learn(rolled.groups)
        seconds = context.clock() - began
        pace.add(seconds)
        tokens, result = rolled.tokens(), learnt.result
        paid = [t.score for t in rolled.traces() if t.score is not None]  # of the others no reward has an opinion
        wasted = context.usd(rolled.seconds * learnt.flat_tokens / max(1, tokens))
        behind = {"weights_behind": step - rolled.version} if config.off_policy else {}
        yield StepReport(
            context.stage, trainer.step, config.steps, seconds, tokens + result.rows, result.predictions,
            loss=result.loss if learnt.lengths else None, reward=sum(paid) / len(paid) if paid else None,
            grad_norm=learnt.norm, flops=step_flops(config, context.shape, rolled, learnt),
            extra=together(told(config, rolled, learnt, wasted), behind, seen, trainer.news()),
        )  # fmt: skip
        if trainer.due(pace):
            yield trainer.save()
    gather_rollouts(context)
    yield trainer.finish()
    rollouts.clear(config.steps)
    yield Artifact("weights", context.checkpoints / f"step-{trainer.step}", {"model": context.stage})
