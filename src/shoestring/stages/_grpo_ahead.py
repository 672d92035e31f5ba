"""Rollouts of GRPO's steps, made with the weights of that step or, for `off_policy` = k, with those of k steps before it.

Which weights a step's rollouts are made with is a function of the step alone: version max(0, step - k). So it makes no
difference to the result whether rollouts and update overlapped (`overlap`), or whether the run was killed and resumed: what
was rolled ahead of a checkpoint stands in files (`ahead-N.jsonl`, log-probabilities exact), written before the checkpoint.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.records import Problem, Trace, UserError, to_json
from shoestring.stages import _grpo_draw, _grpo_roll
from shoestring.stages.context import Context, read_lines

if TYPE_CHECKING:
    from shoestring.generate.engine import Engine
    from shoestring.generate.request import Event, Request
    from shoestring.models.tokenizer import Tokenizer
    from shoestring.stages._grpo_watch import Listening
    from shoestring.stages.grpo import Config
    from shoestring.stages.trainer import Trainer

AGAIN = 1 << 32  # what sets the noise of a group that replaces another apart from a step's own


@dataclass
class Rolled:
    """The rollouts of a step. step: steps done before it; version: steps that the weights had then; parts: what each part
    of the reward paid; draws: rounds that replaced groups without variance; long: answers that paid for their length."""

    step: int
    version: int
    questions: list[Problem]
    groups: list[list[Trace]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    parts: dict[str, list[float]] = field(default_factory=dict)
    draws: int = 0
    long: int = 0
    seconds: float = 0.0

    def traces(self) -> list[Trace]:
        return [t for g in self.groups for t in g]

    def tokens(self) -> int:
        return sum(len(t.tokens) for t in self.traces())


def flat(group: Sequence[Trace]) -> bool:
    """Whether a group has nothing to teach: all its scores are one."""
    return len({t.score for t in group if t.score is not None}) < 2


class Asker:
    """Draws a step's problems and has them answered by an engine."""

    def __init__(
        self, pool: Mapping[str, Sequence[Problem]], config: Config, context: Context, tokenizer: Tokenizer,
        reward: Listening | None, lately: _grpo_draw.Lately,
    ) -> None:  # fmt: skip
        self.pool, self.config, self.context, self.tokenizer = pool, config, context, tokenizer
        self.reward, self.lately = reward, lately

    def questions(self, step: int) -> list[Problem]:
        return _grpo_draw.draw(self.pool, self.config, self.context.seed, step, self.lately)

    def ask(self, engine: Engine, rolled: Rolled) -> Rolled:
        """Fill `rolled` with the answers to its questions; with `resample`, replace groups without variance by others."""
        from shoestring.generate.sampling import request_seed

        began = self.context.clock()
        self._roll(engine, rolled, rolled.questions, self.context)
        config = self.config
        for attempt in range(config.draws()):
            missing = config.prompts - sum(not flat(g) for g in rolled.groups)
            if missing <= 0:
                break
            seed = request_seed(self.context.seed, AGAIN + attempt)
            some, drawn = replace(config, prompts=missing, minibatches=1), {p.id for p in rolled.questions}
            more = _grpo_draw.others(self.pool, some, seed, rolled.step, self.lately, drawn)
            self._roll(engine, rolled, more, replace(self.context, seed=seed))
            rolled.questions = [*rolled.questions, *more]
            rolled.draws += 1
        if self.reward is not None:
            rolled.parts, self.reward.parts = self.reward.parts, {}
        rolled.seconds = self.context.clock() - began
        return rolled

    def _roll(self, engine: Engine, rolled: Rolled, questions: Sequence[Problem], context: Context) -> None:
        groups = _grpo_roll.roll(
            engine, self.tokenizer, questions, self.config, context, rolled.step, self.reward, rolled.reasons
        )
        buffer = self.config.overlong_tokens(self.config.max_new)
        every = self.config.of().critic  # a critic learns from all groups; else, as in DAPO, what is right and wrong decides
        for g in groups:  # whether a group teaches, not who wrote more
            made, long = shaped(g, self.config.max_new, buffer) if buffer and (every or not flat(g)) else (list(g), 0)
            rolled.groups.append(made)
            rolled.long += long


def shaped(group: Sequence[Trace], max_new: int, buffer: int) -> tuple[list[Trace], int]:
    """DAPO's soft overlong punishment (Yu et al. 2025, equation 13) on top of what was paid: up to one point less over the
    last `buffer` of `max_new` sampled tokens; and the number of answers that it met."""
    from shoestring.rewards import overlong

    bounds = Problem.make("", "", grader_args={"max": max_new, "buffer": buffer})
    out, long = [], 0
    for t in group:
        off = overlong.of_length(sum(t.sampled), bounds) - 1.0
        long += off < 0
        out.append(t if t.score is None or not off else replace(t, score=t.score + off))
    return out, long


class Halted(BaseException):
    """Nobody waits for the rollouts any more. Raised in their own thread, and never out of it."""


def stoppable(model: Any, slots: int, halt: threading.Event) -> Engine:
    """An engine that raises `Halted` at the next token once `halt` is set."""
    from shoestring.generate.engine import Engine

    class Stoppable(Engine):
        def tokens(self, requests: Sequence[Request]) -> Iterator[Event]:
            for event in super().tokens(requests):
                if halt.is_set():
                    raise Halted
                yield event

    return Stoppable(model, slots)


class Rollouts:
    """`take` a step's rollouts; `beside` its update, those that its weights are for are made."""

    def __init__(self, asker: Asker, trainer: Trainer, slots: int) -> None:
        config = asker.config
        self.asker, self.trainer, self.lag, self.steps = asker, trainer, config.off_policy, config.steps
        self.overlap = config.overlap
        self.source = Snapshot(trainer.model) if self.lag else None
        self._halt = threading.Event()
        self.engine = stoppable(self.source.model if self.source else trainer.model, slots, self._halt)
        self._thread: threading.Thread | None = None
        self._made: list[Rolled] = []
        self._failure: BaseException | None = None
        self.waiting: dict[int, Rolled] = {}
        if self.lag:
            for step in range(trainer.step, min(trainer.step + self.lag, self.steps)):
                if trainer.step and not (path := self._file(step)).exists():
                    raise UserError(f"{path}: rollouts made ahead of the checkpoint are gone; start the stage anew")
                if trainer.step:
                    self.waiting[step] = read(self._file(step))

    def _file(self, step: int) -> Path:
        return self.asker.context.folder / f"ahead-{step:06d}.jsonl"

    def _fresh(self) -> None:
        if self.source is not None:
            self.source.refresh(self.trainer.model)
        self.engine.refresh()

    def take(self, step: int) -> Rolled:
        """The rollouts of a step, `step` of which are done."""
        if step in self.waiting:
            return self.waiting.pop(step)
        self._fresh()
        return self.asker.ask(self.engine, Rolled(step, step, self.asker.questions(step)))

    @contextmanager
    def beside(self, step: int) -> Iterator[None]:
        """With `step` steps done and its rollouts taken: while the body runs, those are made that are for these weights; they
        are on disk afterwards. No thread is left, however the body ends: what it raises ends the rollouts at the next token
        (answers that are being graded are graded first) and comes out as it was raised."""
        try:
            self._begin(step)
            yield
            self._finish()
        except BaseException:
            self._halt.set()
            if self._thread is not None and self._thread.ident is not None:
                self._thread.join()
            raise

    def _begin(self, step: int) -> None:
        if not self.lag:
            return
        due = [s for s in (range(1, self.lag + 1) if step == 0 else [step + self.lag]) if s < self.steps]
        jobs = [Rolled(s, step, self.asker.questions(s)) for s in due]
        if not jobs:
            return
        if step:  # before the first step the weights were read by `take`
            self._fresh()
        if not self.overlap:
            self._made = [self.asker.ask(self.engine, j) for j in jobs]
            return

        def work() -> None:
            try:
                for j in jobs:
                    self._made.append(self.asker.ask(self.engine, j))
            except BaseException as e:  # handed to the training thread by `_finish`
                self._failure = e

        self._thread = threading.Thread(target=work, name="rollouts-ahead", daemon=True)
        self._thread.start()

    def _finish(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            raise self._failure
        for rolled in self._made:
            write(self._file(rolled.step), rolled)
            self.waiting[rolled.step] = rolled
        self._made = []
        if self.lag and (latest := self.trainer.saves.latest()) is not None:
            self.clear(latest.step)

    def clear(self, before: int) -> None:
        """Remove what was rolled ahead for the steps up to `before`, which no checkpoint goes on from."""
        for old in self.asker.context.folder.glob("ahead-*.jsonl"):
            if int(old.stem[6:]) < before:
                old.unlink(missing_ok=True)


class Snapshot:
    """A plain copy of a decoder's weights, adapters merged, that stays as it is while the decoder trains."""

    def __init__(self, model: Any) -> None:
        import torch

        from shoestring.models.decoder import Decoder

        with torch.device("meta"):
            made = Decoder(model.config)
        self.model = made.to(model.embedding.dtype).to_empty(device=model.embedding.device).requires_grad_(False)

    def refresh(self, model: Any) -> None:
        import torch

        from shoestring.models.lora import FUSED

        with torch.no_grad():
            for name, p in self.model.named_parameters():
                kind = name.rpartition(".")[2]
                block = model.blocks[int(name.split(".")[1])] if name.startswith("blocks.") else None
                p.copy_(model.weight(block, kind) if block is not None and kind in FUSED else model.get_parameter(name))


def write(path: Path, rolled: Rolled) -> None:
    """Whole or not at all, and on the disk when this returns."""
    head = {
        "step": rolled.step, "version": rolled.version, "reasons": dict(rolled.reasons), "parts": rolled.parts,
        "draws": rolled.draws, "long": rolled.long, "seconds": rolled.seconds, "group": len(rolled.groups[0]),
    }  # fmt: skip
    part = path.with_suffix(".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with open(part, "w", encoding="utf-8") as f:
        f.write(json.dumps(head) + "\n")
        for record in (*rolled.questions, *rolled.traces()):
            f.write(to_json(record) + "\n")
        f.flush()
        os.fsync(f.fileno())
    os.replace(part, path)


def read(path: Path) -> Rolled:
    head, *rows = read_lines(path)
    size = head.pop("group")
    questions = [Problem(**r) for r in rows if "prompt_tokens" not in r]
    lists = ("prompt_tokens", "tokens", "sampled", "logprobs")
    answers: list[dict[str, Any]] = [r for r in rows if "prompt_tokens" in r]
    traces = [Trace(**{**r, **{k: tuple(r[k]) for k in lists}}) for r in answers]
    head["reasons"] = Counter(head["reasons"])
    return Rolled(questions=questions, groups=[traces[i : i + size] for i in range(0, len(traces), size)], **head)
