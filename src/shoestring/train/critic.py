"""The critic of PPO (Schulman et al. 2017): a second model with a value head, advantages by GAE, a clipped value loss.

It is here as the baseline that GRPO does without: the critic is a whole model with an optimiser of its own, so that it costs
what the policy costs once more (docs/grpo.md has the bytes).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from shoestring.records import Batch
from shoestring.train.policy import Column, column, scatter


def gae(rewards: Sequence[float], values: np.ndarray, gamma: float, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """(advantages, returns) of one answer's tokens (Schulman et al. 2015, equation 16).

    rewards [T]: what came after each token; values [T]: expected before it was chosen. After the last there is nothing.
    """
    out = np.zeros(len(rewards), np.float64)
    ahead = after = 0.0
    for t in range(len(rewards) - 1, -1, -1):
        delta = rewards[t] + gamma * after - values[t]
        ahead = delta + gamma * lam * ahead
        out[t], after = ahead, values[t]
    return out, out + values


def whiten(columns: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Mean 0 and deviation 1 over all tokens of the step."""
    every = np.concatenate(columns) if columns else np.zeros(0)
    mean, deviation = every.mean(), every.std(ddof=1) if len(every) > 1 else 0.0
    return [((c - mean) / (deviation + 1e-8)).astype(np.float32) for c in columns]


def value_loss(
    value: torch.Tensor, before: torch.Tensor, target: torch.Tensor, coefficient: torch.Tensor, clip: float
) -> tuple[torch.Tensor, float]:
    """(sum of coefficient · ½ max((v - R)², (v' - R)²), v' within `clip` of the value before; share held). All [M]."""
    near = before + (value - before).clamp(-clip, clip)
    plain, held = (value - target) ** 2, (near - target) ** 2
    loss = 0.5 * (torch.maximum(plain, held) * coefficient).sum()
    return loss, float((held > plain).float().mean().detach())


class Critic(nn.Module):
    """A decoder's hidden states and a linear head, which starts at zero: nothing is expected before anything is learnt."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk = trunk
        at = trunk.embedding.device
        self.value = nn.Parameter(torch.zeros(trunk.config.hidden, dtype=torch.float32, device=at))
        self.offset = nn.Parameter(torch.zeros((), dtype=torch.float32, device=at))
        if trunk.head is not None:
            trunk.head.requires_grad_(False)  # no token is predicted here

    def forward(self, batch: Batch) -> torch.Tensor:
        """The value before each trained token [M], fp32."""
        at = self.value.device
        tokens, positions, source = (torch.from_numpy(a).to(at) for a in (batch.tokens, batch.positions, batch.source))
        hidden = self.trunk.hidden(tokens, positions, batch.documents).index_select(0, source)
        return hidden.float() @ self.value + self.offset

    @torch.no_grad()
    def values(self, batches: Sequence[Batch], count: int) -> list[np.ndarray]:
        """By example."""
        out: list[np.ndarray] = [np.zeros(0, np.float32)] * count
        for b in batches:
            if len(b.target):
                scatter(b, self(b).cpu().numpy(), out)
        return out

    def accumulate(self, batches: Sequence[Batch], columns: Mapping[str, Column], clip: float) -> dict[str, float]:
        """Forward and backward over one step's micro-batches. columns: "value" (before the step) and "return"."""
        total = held = 0.0
        count = 0
        for b in batches:
            if not len(b.target):
                continue
            value = self(b)
            before, target = (torch.from_numpy(column(b, columns[k])).to(value) for k in ("value", "return"))
            coefficient = torch.from_numpy(b.weight).to(value) / b.weight_sum
            loss, share = value_loss(value, before, target, coefficient, clip)
            loss.backward()
            total += float(loss.detach())
            held += share * len(b.target)
            count += len(b.target)
        return {"value_loss": total, "value_clipped": held / max(1, count)}


def explained(values: Sequence[np.ndarray], returns: Sequence[np.ndarray]) -> float:
    """1 - Var(R - V) / Var(R) over the step's tokens: 1 is a critic that knows, 0 one that says the mean."""
    v, r = np.concatenate(values).astype(np.float64), np.concatenate(returns).astype(np.float64)
    spread = r.var()
    return float(1 - (r - v).var() / spread) if spread > 0 and math.isfinite(spread) else 0.0
