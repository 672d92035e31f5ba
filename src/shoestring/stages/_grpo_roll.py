"""The rollouts of a step of GRPO: groups of graded answers, with tools where the recipe has some, and the examples that
they make. What was asked and answered is kept for the next draw and for the watch over the reward (`Past`)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoestring import rewards
from shoestring.estimate.rates import fixed
from shoestring.records import Example, Problem, Quantity, Trace, UserError
from shoestring.stages import _grpo_draw, _grpo_tools
from shoestring.stages._grpo_draw import Lately
from shoestring.stages._grpo_watch import Listening, Watch
from shoestring.stages.context import Context
from shoestring.stages.prompts import QUESTION, Ask, ask_tokens, check_ask, plain

if TYPE_CHECKING:
    from shoestring.generate.engine import Engine
    from shoestring.models.tokenizer import Tokenizer
    from shoestring.stages.grpo import Config

RULES_TOKENS, CALLED = 48, 0.5  # tokens of the paragraph about tools; chances of a call that are taken: of the plan only
# Seconds of one call, (mid, high): calls run one after another while nothing is decoded. Measured on one machine, which was
# busy beside: 15 short programs in the sandbox, whose start is nearly all of it, took 0.036 to 0.040 of processor time, and
# 0.039 to 0.074 on the clock; 2000 expressions 15 microseconds each. A program that never ends takes longer: not expected.
CALL_SECONDS = {"python": (0.04, 0.074), "calculator": (1.5e-5, 6e-5)}


@dataclass(frozen=True)
class RollConfig:
    """Keys of the rollouts, part of the stage's `Config`.

    ask: what the user says, with {question} where the problem's text goes: how to answer, for a model that was never shown it
    (DeepSeek-R1, 2025, table 1); or a list of turns, the user's and the model's, which shows it. They are prompt: no loss.
    The stage that scores the model needs the same.

    tools: what the model may call while it answers, "calculator" and "python" (docs/r1.md says how it writes a call); turns:
    how often it speaks in one answer, the last time without a tool. `max_new` bounds what it writes in all of them.
    """

    ask: Ask = QUESTION
    tools: tuple[str, ...] = ()
    turns: int = 3

    def check_roll(self) -> None:
        """ValueError that names the key."""
        check_ask(self.ask)
        for t in self.tools:
            if t not in _grpo_tools.TOOLS:
                raise ValueError(f"tools: unknown tool {t!r}; there are {', '.join(_grpo_tools.TOOLS)}")
        if len(set(self.tools)) < len(self.tools):
            raise ValueError(f"tools = {list(self.tools)} names one twice")
        if self.turns < 2:
            raise ValueError(f"turns = {self.turns}: a call and an answer are two")
        if not self.tools and self.turns != 3:
            raise ValueError("turns is for answers with tools; without tools leave it out")

    def check_tools(self) -> None:
        """UserError where a tool cannot be run here."""
        _grpo_tools.check(self.tools)

    def forced(self) -> tuple[int, int]:
        """The most tokens that `ask` and tools add: (to a prompt, to an answer)."""
        asked = ask_tokens(self.ask)
        return (asked + RULES_TOKENS, (self.turns - 1) * _grpo_tools.OUTPUT_TOKENS) if self.tools else (asked, 0)

    def read_again(self, prompt: float, new: float) -> float:
        """Tokens an answer that the engine reads once more, since each turn begins with what was said; of the plan, which
        expects every second chance of a call to be taken."""
        return CALLED * (self.turns - 1) * (prompt + new) if self.tools else 0.0

    def tool_seconds(self, answers: float) -> Quantity:
        """Wall seconds of the tools for so many answers; of the plan. As if every call were of the slowest tool there is.

        The basis is "literature": nobody has measured this machine, and how often a model calls is expected. Between no call
        and one at every chance.
        """
        if not self.tools:
            return fixed(0.0, 0.0, 0.0)
        mid, high = max(CALL_SECONDS[t] for t in self.tools)
        chances = answers * (self.turns - 1)
        return fixed(0.0, CALLED * chances * mid, chances * high)


@dataclass
class Past:
    """What the steps so far were like: `lately` for the draw, `watch` over the reward. A function of the steps' files."""

    lately: Lately
    watch: Watch
    reward: Listening | None

    @classmethod
    def read(cls, context: Context, step: int, reward: Listening | None) -> Past:
        """step: steps done."""
        if reward:
            reward.take()  # what the self-test's known answers were paid
        most = sum(max(0.0, w) for w in reward.inner.weights.values()) if reward else 1.0
        watch = Watch(context.folder / "watch.jsonl", context.stage, step)
        return cls(Lately.read(context.folder, step, most or 1.0), watch, reward)

    def look(self, step: int, questions: Sequence[Problem], groups: Sequence[Sequence[Trace]]) -> dict[str, Any]:
        """Take in the rollouts of step `step`, which counts from 1; the report's own measures of them."""
        traces = [t for g in groups for t in g]
        out = _grpo_draw.told(questions, self.lately, step - 1)
        self.lately.add(step, traces)
        parts = self.reward.take() if self.reward else None
        out |= self.watch.look(step, traces, parts)
        if parts:
            out["parts"] = {k: round(v, 5) for k, v in parts.items()}
        if forced := sum(not s for t in traces for s in t.sampled):
            out |= {"forced_tokens": forced, "tool_calls": sum(map(_calls, traces))}
        return out


def _calls(trace: Trace) -> int:
    """Stretches of forced tokens: each is one tool's output."""
    return sum(not here and before for before, here in zip(trace.sampled, trace.sampled[1:], strict=False))


def roll(
    engine: Engine, tokenizer: Tokenizer, questions: Sequence[Problem], config: Config, context: Context, step: int,
    reward: rewards.Reward | None, reasons: Counter[str],
) -> list[list[Trace]]:  # fmt: skip
    """One group of graded answers a question; the noise is a function of (run seed, step, place, answer). The verdicts'
    reasons are counted into `reasons`."""
    from shoestring.generate.engine import Request
    from shoestring.generate.sampling import request_seed
    from shoestring.stages.workbench import sample

    asked = [(place, p, k) for place, p in enumerate(questions) for k in range(config.group)]
    if config.tools:
        seeds = [(context.seed, step, place, k) for place, _, k in asked]
        traces = talk(engine, tokenizer, [p for _, p, _ in asked], seeds, config, context.stage, reward, reasons)
    else:
        stop, prompts = tokenizer.ends, [tokenizer.chat(plain(p, config.ask)) for p in questions]
        requests = [
            Request(
                prompts[place], config.max_new, config.temperature, request_seed(context.seed, step, place, k), stop
            )
            for place, _, k in asked
        ]  # fmt: skip
        traces = sample(engine, requests, [p for _, p, _ in asked], tokenizer, context.stage, reward, reasons)
    return [traces[i : i + config.group] for i in range(0, len(traces), config.group)]


def refuse_too_long(
    pool: Mapping[str, Sequence[Problem]], config: Config, tokenizer: Tokenizer, window: int, stage: str
) -> None:
    """UserError, before a step is paid for, where the longest prompts (by characters, 8 of them) with an answer, and what
    tools add to it, are more than the model's window of so many tokens."""
    longest = sorted((p for problems in pool.values() for p in problems), key=lambda p: len(p.prompt))[-8:]
    form, (_, forced) = _grpo_tools.form_of(tokenizer, config.tools) if config.tools else None, config.forced()
    prompt = max(len(form.prompt(tokenizer, m) if form else tokenizer.chat(m)) for m in (plain(p, config.ask) for p in longest))
    if prompt + config.max_new + forced > window:
        tools = f" and {forced} of tools" if forced else ""
        raise UserError(
            f"stage {stage!r}: a prompt of {prompt} tokens, an answer of {config.max_new}{tools} are more than the model's "
            f"window of {window}: lower max_new or leave the longest problems out"
        )


def talk(
    engine: Any, tokenizer: Any, problems: Sequence[Problem], seeds: Sequence[tuple[int, ...]], config: Config, model: str,
    reward: rewards.Reward | None, reasons: Counter[str],
) -> list[Trace]:  # fmt: skip
    """One graded conversation with tools a problem. Its last turn is graded; the text is the whole of it."""
    from shoestring.generate.sampling import request_seed
    from shoestring.stages.workbench import clean

    engine.text = tokenizer.decode  # a call ends in a string, not in a token
    form = _grpo_tools.form_of(tokenizer, config.tools)

    def noise(i: int, turn: int) -> int:
        return request_seed(*seeds[i], turn) if turn else request_seed(*seeds[i])

    try:
        chats = [plain(p, config.ask) for p in problems]
        talks = _grpo_tools.converse(
            engine, tokenizer, form, chats, noise, config.turns, config.max_new, config.temperature
        )
    except UserError as e:
        raise UserError(f"stage {model!r}: {e}") from None
    texts, lengths = [t.turn for t in talks], [t.used for t in talks]
    if reward is None:
        verdicts = rewards.score_all(texts, problems, lengths=lengths)
    else:
        verdicts = rewards.score(reward, texts, problems, lengths=lengths)
    reasons.update(rewards.tally(verdicts))
    return [
        Trace(
            problem_id=p.id, prompt_tokens=t.prompt, tokens=tuple(t.tokens), sampled=tuple(t.sampled),
            logprobs=tuple(t.logprobs), stop_reason=t.reason, model=model, text=clean(t.tokens, tokenizer),
            score=verdict.score,
        )
        for p, t, verdict in zip(problems, talks, verdicts, strict=True)
    ]  # fmt: skip


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
