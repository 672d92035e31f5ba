"""One optimiser step over packed micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from shoestring.records import Batch
from shoestring.train.losses import linear_cross_entropy, linear_logprobs, policy_loss


@dataclass(frozen=True)
class Clip:
    """The policy loss's settings; without one the loss is cross-entropy. temperature is the rollout's."""

    low: float = 0.2
    high: float = 0.28
    temperature: float = 1.0


@dataclass
class StepResult:
    """loss (nats a weighted token, or the surrogate), rows computed, predictions trained, and the loss's measures."""

    loss: float = 0.0
    rows: int = 0
    predictions: int = 0
    measures: dict[str, float] = field(default_factory=dict)


def accumulate(model: Any, batches: Sequence[Batch], clip: Clip | None = None) -> StepResult:
    """Forward and backward over the micro-batches of one step; gradients go where the parameters' hooks send them.

    The loss is normalised by the weight sum of the whole step, so any split into micro-batches gives one gradient.
    """
    result = StepResult()
    weighted: dict[str, float] = {}
    for b in batches:
        if not len(b.target):  # nothing is trained here; the mean entropy of nothing would spoil the measures
            continue
        hidden = model.hidden(torch.from_numpy(b.tokens), torch.from_numpy(b.positions), b.documents)
        picked = hidden.index_select(0, torch.from_numpy(b.source))
        target = torch.from_numpy(b.target)
        coefficient = torch.from_numpy(b.weight) / b.weight_sum
        if clip is None:
            loss = linear_cross_entropy(picked, model.output_weight, target, coefficient)
        else:
            logprob, entropy = linear_logprobs(picked, model.output_weight, target, clip.temperature)
            behaviour, advantage = torch.from_numpy(b.logprob), torch.from_numpy(b.advantage)
            loss, measures = policy_loss(logprob, behaviour, advantage, coefficient, clip.low, clip.high)
            measures["entropy"] = float(entropy.mean())
            for k, v in measures.items():
                weighted[k] = weighted.get(k, 0.0) + v * len(b.target)
        loss.backward()
        result.loss += float(loss.detach())
        result.rows += len(b.tokens)
        result.predictions += len(b.target)
    result.measures = {k: v / max(1, result.predictions) for k, v in weighted.items()}
    return result
