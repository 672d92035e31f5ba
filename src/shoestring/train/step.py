"""One optimiser step over packed micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from shoestring.records import Batch
from shoestring.train.losses import linear_cross_entropy


class Objective(Protocol):
    """What a step minimises where it is not cross-entropy: `policy.Policy`, `distillation.Teaching`."""

    def loss(
        self, batch: Batch, picked: torch.Tensor, weight: torch.Tensor, coefficient: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]: ...


@dataclass
class StepResult:
    """loss (nats a weighted token, or the surrogate), rows computed, predictions trained, and the loss's measures."""

    loss: float = 0.0
    rows: int = 0
    predictions: int = 0
    measures: dict[str, float] = field(default_factory=dict)


def accumulate(model: Any, batches: Sequence[Batch], objective: Objective | None = None) -> StepResult:
    """Forward and backward over the micro-batches of one step; gradients go where the parameters' hooks send them.

    objective: a policy loss or a teacher to come close to; without one the loss is cross-entropy.
    The loss is normalised by the weight sum of the whole step, so any split into micro-batches gives one gradient.
    """
    device = model.output_weight.device

    def there(array: Any) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    result = StepResult()
    weighted: dict[str, float] = {}
    for b in batches:
        if not len(b.target):  # nothing is trained here; the mean entropy of nothing would spoil the measures
            continue
        hidden = model.hidden(there(b.tokens), there(b.positions), b.documents)
        picked = hidden.index_select(0, there(b.source))
        coefficient = there(b.weight) / b.weight_sum
        measures: dict[str, float] = {}
        if objective is None:
            loss = linear_cross_entropy(picked, model.output_weight, there(b.target), coefficient)
        else:
            loss, measures = objective.loss(b, picked, model.output_weight, coefficient)
        for k, v in measures.items():
            weighted[k] = weighted.get(k, 0.0) + v * len(b.target)
        loss.backward()
        result.loss += float(loss.detach())
        result.rows += len(b.tokens)
        result.predictions += len(b.target)
    result.measures = {k: v / max(1, result.predictions) for k, v in weighted.items()}
    return result
