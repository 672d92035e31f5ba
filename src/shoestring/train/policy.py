"""The policy losses of `variants.VARIANTS` on per-token log-probabilities, as plain functions and as a step's objective.

Every coefficient is global: it depends on the whole step and never on the micro-batch, so that any split, packing or
accumulation gives one loss and one gradient. A sequence is never cut by the packing, so its own sums stand in its batch.
All tensors are [M], one entry a trained token, fp32 (the losses keep whatever type they are given).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from shoestring.records import Batch
from shoestring.train.losses import linear_logprobs
from shoestring.train.variants import SOFT, VARIANTS, Mean, Variant

Column = Sequence[np.ndarray]  # one array an example of the step, one entry a trained token
NEAR = (0.9, 1.1)  # ratios between these count as close


def _sums(value: torch.Tensor, sequence: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(sums of value [M] over each sequence [S], place of every token's sequence among them [M])."""
    _, place = torch.unique(sequence, return_inverse=True)
    count = int(place.max()) + 1 if len(place) else 0
    return value.new_zeros(count).index_add(0, place, value), place


def coefficients(
    mean: Mean, weight: torch.Tensor, sequence: torch.Tensor, weight_sum: float, sequences: int, max_new: int
) -> torch.Tensor:
    """What each token's loss counts. weight: the tokens' loss weights; weight_sum and sequences: those of the whole step;
    max_new: the most tokens that an answer may have, for "length"."""
    if mean == "tokens":
        return weight / weight_sum
    if mean == "sequences":
        total, place = _sums(weight, sequence)
        return weight / (total[place] * sequences)
    return weight / (sequences * max_new) if mean == "length" else weight / sequences


def log_ratio(
    kind: str, logprob: torch.Tensor, old: torch.Tensor, weight: torch.Tensor, sequence: torch.Tensor
) -> torch.Tensor:
    """log of new over old probability: a token's, or the mean over its sequence (GSPO, equation 7)."""
    by_token = logprob - old
    if kind == "token":
        return by_token
    total, place = _sums(by_token * weight, sequence)
    length, _ = _sums(weight, sequence)
    return (total / length)[place]


def gains(
    v: Variant, logprob: torch.Tensor, ratio: torch.Tensor, advantage: torch.Tensor, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(what each token gains, which tokens the gate holds) at a ratio."""
    over = (ratio > 1 + high) & (advantage > 0)
    if v.gate == "weight":
        return ratio.clamp(max=1 + high).detach() * advantage * logprob, over
    if v.gate == "soft":
        up, down = (torch.sigmoid(t * (ratio - 1)) * (4 / t) for t in SOFT)
        return torch.where(advantage > 0, up, down) * advantage, torch.zeros_like(over)
    clipped = ratio.clamp(1 - low, 1 + high)
    return torch.minimum(ratio * advantage, clipped * advantage), over | ((ratio < 1 - low) & (advantage < 0))


def kl_penalty(estimator: str, logprob: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """An estimate of KL(policy || reference) a token, from tokens that the policy sampled (Schulman 2020).

    k1: log p - log q. k2: half its square. k3: q/p - 1 - log q/p. The gradient of k1 itself is zero in expectation and would
    hold nothing; k1 has its own value and k2's gradient, which is that of the true KL on the policy's own samples.
    """
    above = logprob - reference
    if estimator == "k3":
        return torch.exp(-above) + above - 1.0
    half = 0.5 * above * above
    return half if estimator == "k2" else half + (above - half).detach()


def importance(old: np.ndarray, engine: np.ndarray, how: str, cap: float) -> np.ndarray:
    """Weights p_trainer / p_engine of tokens that the engine sampled: "truncated" at `cap` (Yao et al. 2025, TIS), or
    "masked", 0 where the ratio is outside [1 / cap, cap] and the ratio elsewhere."""
    ratio = np.exp(old.astype(np.float64) - engine)
    if how == "truncated":
        return np.minimum(ratio, cap).astype(np.float32)
    return np.where((ratio > cap) | (ratio < 1 / cap), 0.0, ratio).astype(np.float32)


def distribution(ratio: np.ndarray) -> dict[str, float]:
    """Of ratios of two probabilities for the same tokens: the share outside [0.9, 1.1], mean, extremes and quantiles."""
    if not len(ratio):
        return {}
    r = ratio.astype(np.float64)
    q = np.quantile(r, (0.01, 0.5, 0.99))
    outside = float(((r < NEAR[0]) | (r > NEAR[1])).mean())
    told = {"outside": outside, "mean": r.mean(), "min": r.min(), "max": r.max(), "q01": q[0], "q50": q[1], "q99": q[2]}
    return {k: round(float(x), 6) for k, x in told.items()}


def column(batch: Batch, values: Column) -> np.ndarray:
    """A column of the step for the tokens of one batch [M]: its examples stand one after another, each whole."""
    s = batch.sequence
    first = np.flatnonzero(np.r_[True, s[1:] != s[:-1]]) if len(s) else []
    return np.concatenate([values[int(s[i])] for i in first]) if len(s) else np.zeros(0, np.float32)


@dataclass(frozen=True)
class Policy:
    """The objective of a step: variant, bounds of the gate, temperature of the rollout, and what is added to the gain.

    columns: the step's own values, one array an example: "old" (log-probabilities in place of the engine's), "reference",
    "advantage" (a token's own, in place of its example's), "importance". seen: where given, the first pass's ratios of
    policy to engine are appended to it.
    """

    low: float = 0.2
    high: float = 0.28
    temperature: float = 1.0
    variant: str = "bnpo"
    max_new: int = 1
    kl: float = 0.0
    estimator: str = "k3"
    columns: Mapping[str, Column] = field(default_factory=dict)
    seen: list[torch.Tensor] | None = None

    def loss(
        self, batch: Batch, picked: torch.Tensor, weight: torch.Tensor, coefficient: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """picked [M, D]: the hidden states that predict; coefficient: of the mean over tokens. The measures are means over
        the batch's tokens."""

        def there(array: Any) -> torch.Tensor:
            return torch.from_numpy(array).to(picked.device)

        def own(name: str) -> torch.Tensor | None:
            return there(column(batch, self.columns[name])) if name in self.columns else None

        logprob, entropy = linear_logprobs(picked, weight, there(batch.target), self.temperature)
        old, advantage = own("old"), own("advantage")
        behaviour = there(batch.logprob)
        if self.seen is not None:
            self.seen.append((logprob.detach() - behaviour).exp())
        mean = VARIANTS[self.variant].mean
        if mean != "tokens":
            coefficient = coefficients(
                mean, there(batch.weight), there(batch.sequence), batch.weight_sum, batch.sequence_count, self.max_new
            )  # fmt: skip
        loss, measures = policy_loss(
            logprob, behaviour if old is None else old, there(batch.advantage) if advantage is None else advantage,
            coefficient, self.low, self.high, self.variant, there(batch.weight), there(batch.sequence),
            own("importance"), own("reference"), self.kl, self.estimator,
        )  # fmt: skip
        measures["entropy"] = float(entropy.mean())
        return loss, measures


def policy_loss(
    logprob: torch.Tensor,
    old: torch.Tensor,
    advantage: torch.Tensor,
    coefficient: torch.Tensor,
    low: float,
    high: float,
    variant: str = "bnpo",
    weight: torch.Tensor | None = None,
    sequence: torch.Tensor | None = None,
    correction: torch.Tensor | None = None,
    reference: torch.Tensor | None = None,
    kl: float = 0.0,
    estimator: str = "k3",
) -> tuple[torch.Tensor, dict[str, float]]:
    """(sum over tokens of coefficient · (-correction · gain + kl · KL), measures).

    weight and sequence are read by a ratio of sequences; correction (1 without one) and reference where they are given.
    The measures: share of tokens that the gate holds, share with a ratio outside [0.9, 1.1], the KL a token.
    """
    v = VARIANTS[variant]
    if v.ratio == "token":
        ratio = (logprob - old).exp()
    else:
        assert weight is not None and sequence is not None
        ratio = log_ratio(v.ratio, logprob, old, weight, sequence).exp()
    gain, held = gains(v, logprob, ratio, advantage, low, high)
    if correction is not None:
        gain = gain * correction
    each = -gain
    measures: dict[str, float] = {}
    if reference is not None:
        penalty = kl_penalty(estimator, logprob, reference)
        each = each + kl * penalty
        measures["kl"] = float(penalty.detach().mean())
    loss = (each * coefficient).sum()
    with torch.no_grad():
        n = max(1, ratio.numel())
        measures["clip_fraction"] = float(held.sum()) / n
        measures["ratio_outside"] = float(((ratio < NEAR[0]) | (ratio > NEAR[1])).sum()) / n
    return loss, measures


@torch.no_grad()
def logprobs(model: Any, batches: Sequence[Batch], temperature: float, count: int) -> list[np.ndarray]:
    """The model's log-probabilities of the trained tokens, by example (`count` of them), nothing trained."""
    out: list[np.ndarray] = [np.zeros(0, np.float32)] * count
    head = model.output_weight
    for b in batches:
        if not len(b.target):
            continue
        tokens, positions, source, target = (
            torch.from_numpy(a).to(head.device) for a in (b.tokens, b.positions, b.source, b.target)
        )
        hidden = model.hidden(tokens, positions, b.documents).index_select(0, source)
        found, _ = linear_logprobs(hidden, head, target, temperature)
        scatter(b, found.cpu().numpy(), out)
    return out


def scatter(batch: Batch, values: np.ndarray, out: list[np.ndarray]) -> None:
    """The inverse of `column`: values [M] of a batch to the examples that they belong to."""
    s = batch.sequence
    cuts = np.flatnonzero(s[1:] != s[:-1]) + 1
    for part, at in zip(np.split(values, cuts), np.r_[0, cuts], strict=True):
        out[int(s[at])] = part
