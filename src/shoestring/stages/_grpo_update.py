"""GRPO's update: a step's rollouts become one or several optimiser steps, held to a reference, with a critic for PPO."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from shoestring.records import Example, Trace, UserError
from shoestring.stages._grpo_roll import learnable, to_example
from shoestring.stages.context import Context

if TYPE_CHECKING:
    import numpy as np

    from shoestring.stages.grpo import Config
    from shoestring.stages.trainer import Trainer
    from shoestring.train.step import StepResult


@dataclass
class Learnt:
    """What a step learnt. lengths: tokens of each example; scored: rows computed forward only, for the probabilities of
    `judged` tokens; norm: the largest of the step's gradients (None: none)."""

    result: StepResult
    norm: float | None
    lengths: list[int]
    flat: int
    flat_tokens: int
    scored: int
    judged: int
    told: dict[str, Any]


def parts_of(data: Sequence[Example], minibatches: int, seed: str) -> Iterator[list[int]]:
    """Indices of the examples of each minibatch: whole groups in an order drawn from `seed`, as even as groups allow."""
    if minibatches == 1:
        yield list(range(len(data)))
        return
    groups = [list(g) for _, g in groupby(range(len(data)), lambda i: data[i].problem_id)]
    random.Random(seed).shuffle(groups)
    count = min(minibatches, len(groups))
    for m in range(count):
        yield [i for g in groups[m::count] for i in g]


class Learner:
    """Updates `trainer` by the config's variant. reference and critic are there where the config asks for them."""

    def __init__(self, config: Config, context: Context, trainer: Trainer) -> None:
        from shoestring.train.policy import Policy

        self.config, self.context, self.trainer = config, context, trainer
        low, high = config.bounds()
        self.policy = Policy(
            low, high, config.temperature, config.variant, config.max_new, config.kl, config.kl_estimator
        )  # fmt: skip
        self.reference = self._reference() if config.kl else None
        self.critic = Criticism(config, context, trainer) if config.of().critic else None

    def _reference(self) -> Any:
        from shoestring.stages._grpo_reference import Reference
        from shoestring.stages.workbench import open_model

        trainer = self.trainer
        made = Reference(trainer.model, None if self.config.lora else {})
        trainer.join("reference", made)
        if made.copy == {}:
            if trainer.step == 0:
                made.replace(0)
            else:
                start = dict(open_model(self.context)[0].named_parameters())
                made.copy = {n: start[n].detach() for n in trainer.optimiser.parameters}
        return made

    def learn(self, groups: Sequence[Sequence[Trace]]) -> Learnt:
        """One step. UserError where the memory runs out beside the policy; the policy's own update takes smaller batches."""
        from shoestring.stages.trainer import out_of_memory

        try:
            return self._learn(groups)
        except (MemoryError, RuntimeError) as e:
            if not out_of_memory(e):
                raise
        raise UserError(
            f"stage {self.context.stage!r}, step {self.trainer.step + 1}: out of memory for the reference, the critic or the "
            "trainer's own log-probabilities; lower rows, or leave one of them out"
        )

    def _learn(self, groups: Sequence[Sequence[Trace]]) -> Learnt:
        from shoestring.data import packing
        from shoestring.train import policy

        config, trainer, step = self.config, self.trainer, self.trainer.step
        data, flat, flat_tokens = learnable(groups, config.scaling())
        scores: list[float] = []
        if self.critic is not None:  # a critic learns from every answer
            heard = [t for g in groups for t in g if t.score is not None and any(t.sampled)]
            data, scores = [to_example(t, 0.0) for t in heard], [t.score or 0.0 for t in heard]
            flat_tokens = 0  # none is thrown away
        told: dict[str, Any] = {"variant": config.variant}
        if self.reference is not None:
            if config.reference_every and step and step % config.reference_every == 0:
                self.reference.replace(step)
            told["reference_age"] = step - self.reference.since
        if not data:
            result, norm = trainer.skip()
            return Learnt(result, norm, [], flat, flat_tokens, 0, 0, told)
        columns: dict[str, list[np.ndarray]] = {}
        batches = []
        if self.reference is not None or self.critic is not None or config.old == "trainer":
            batches = packing.pack(data, trainer.rows)
        if config.old == "trainer":
            columns["old"] = policy.logprobs(trainer.model, batches, config.temperature, len(data))
            told |= self._mismatch(data, columns)
        if self.reference is not None:
            columns["reference"] = self.reference.logprobs(batches, config.temperature, len(data))
        if self.critic is not None:
            told |= self.critic.judge(batches, scores, columns)
        passes = sum((config.old == "trainer", self.reference is not None))
        scored = (passes + (self.critic is not None)) * sum(len(b.tokens) for b in batches)
        judged, lengths = passes * sum(len(b.target) for b in batches), [len(e.tokens) for e in data]
        result, norm, more = self._descend(data, columns)
        trainer.step += 1
        return Learnt(result, norm, lengths, flat, flat_tokens, scored, judged, told | more)

    def _mismatch(self, data: Sequence[Example], columns: dict[str, list[np.ndarray]]) -> dict[str, Any]:
        """How far the trainer's probabilities are from the engine's, and the weights that make up for it."""
        import numpy as np

        from shoestring.train import policy

        config = self.config
        engine = [np.array([p for p, w in zip(e.logprob or (), e.weight, strict=True) if w]) for e in data]
        old = np.concatenate(columns["old"])
        told: dict[str, Any] = {"mismatch": policy.distribution(np.exp(old.astype(np.float64) - np.concatenate(engine)))}
        if config.importance != "none":
            pairs = zip(columns["old"], engine, strict=True)
            made = [policy.importance(o, e, config.importance, config.importance_cap) for o, e in pairs]
            columns["importance"] = made
            every = np.concatenate(made)
            met = every == 0.0 if config.importance == "masked" else every >= np.float32(config.importance_cap)
            told |= {"importance_mean": round(float(every.mean()), 6), f"importance_{config.importance}": int(met.sum())}
        return told

    def _descend(
        self, data: Sequence[Example], columns: Mapping[str, Sequence[np.ndarray]]
    ) -> tuple[StepResult, float, dict[str, Any]]:
        """The step's optimiser steps: (sums and means over them, the largest norm, what is told)."""
        import numpy as np

        from shoestring.train import policy

        config, trainer = self.config, self.trainer
        done: list[tuple[StepResult, float]] = []
        seen: list[Any] | None = None if "old" in columns else []
        ours = {k: v for k, v in columns.items() if k in ("old", "reference", "importance", "advantage")}
        for u in range(config.updates):
            for part in parts_of(data, config.minibatches, f"{self.context.seed}/minibatches/{trainer.step}/{u}"):
                some = [data[i] for i in part] if config.minibatches > 1 else data
                own = {k: [v[i] for i in part] for k, v in ours.items()}
                goal = replace(self.policy, columns=own, seen=None if done else seen)
                done.append(trainer.descend(some, goal))
                if self.critic is not None:
                    self.critic.descend(some, {k: [v[i] for i in part] for k, v in columns.items()})
        result = merged([r for r, _ in done])
        told: dict[str, Any] = {"updates": len(done)} if len(done) > 1 else {}
        if seen:
            told["mismatch"] = policy.distribution(np.concatenate([r.float().cpu().numpy() for r in seen]))
        return result, max(n for _, n in done), told | (self.critic.take() if self.critic is not None else {})


def merged(results: Sequence[StepResult]) -> StepResult:
    """Rows and predictions in all; loss and measures by prediction."""
    from shoestring.train.step import StepResult

    if len(results) == 1:
        return results[0]
    n = max(1, sum(r.predictions for r in results))
    keys = {k: None for r in results for k in r.measures}
    return StepResult(
        sum(r.loss * r.predictions for r in results) / n, sum(r.rows for r in results), sum(r.predictions for r in results),
        {k: sum(r.measures.get(k, 0.0) * r.predictions for r in results) / n for k in keys},
    )  # fmt: skip


class Criticism:
    """PPO's critic, with an optimiser of its own that is saved and restored with the trainer's."""

    def __init__(self, config: Config, context: Context, trainer: Trainer) -> None:
        from shoestring.stages.workbench import open_trainable
        from shoestring.train.critic import Critic
        from shoestring.train.optimiser import make

        trunk, masters = open_trainable(context)
        trunk.wrap = trainer.model.wrap
        self.config, self.trainer = config, trainer
        self.critic = Critic(trunk)
        kind = "adamw" if config.optimiser == "muon" else config.optimiser
        wide = {f"trunk.{n}": m for n, m in masters.items()}
        self.optimiser = make(kind, self.critic, config.critic_lr, masters=wide)
        trainer.join("critic", self.optimiser)
        self._told: list[dict[str, float]] = []

    def judge(self, batches: Sequence[Any], scores: Sequence[float], columns: dict[str, list[np.ndarray]]) -> dict[str, Any]:
        """Values before the step, and the advantages and returns that follow from the answers' scores, paid at their ends."""
        import numpy as np

        from shoestring.train import critic

        config = self.config
        values = self.critic.values(batches, len(scores))
        paid = [[0.0] * (len(v) - 1) + [s] for v, s in zip(values, scores, strict=True)]
        made = [critic.gae(r, v, config.gamma, config.gae_lambda) for r, v in zip(paid, values, strict=True)]
        columns["value"], columns["return"] = values, [r.astype(np.float32) for _, r in made]
        columns["advantage"] = critic.whiten([a for a, _ in made])
        return {"explained_variance": round(critic.explained(values, columns["return"]), 5)}

    def descend(self, data: Sequence[Example], columns: Mapping[str, Sequence[np.ndarray]]) -> None:
        from shoestring.data import packing

        found = self.critic.accumulate(packing.pack(data, self.trainer.rows), columns, self.config.value_clip)
        found["value_norm"] = self.optimiser.step(self.trainer.factor(), self.config.max_norm)
        self._told.append(found)

    def take(self) -> dict[str, float]:
        told, self._told = self._told, []
        return {k: round(sum(t[k] for t in told) / len(told), 6) for k in told[0]} if told else {}
