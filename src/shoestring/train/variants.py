"""The policy losses by name: what each is made of, and where it is from. No torch.

A loss is sum_t c_t · (-gain_t + kl · KL_t) over the trained tokens of a step. Three parts tell the variants apart: the ratio
of new to old probability that the gain is made of, how the gain is bounded (the gate), and the coefficients c_t (the mean).
`train.policy` computes them, docs/grpo.md works each one out for two tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ratio = Literal["token", "sequence"]
Gate = Literal["clip", "weight", "soft"]
Mean = Literal["tokens", "sequences", "length", "sums"]


@dataclass(frozen=True)
class Variant:
    """ratio: of each token, or of a sequence (the geometric mean of its tokens').

    gate "clip": min(r A, clip(r, 1 - low, 1 + high) A); "weight": min(r, 1 + high) A log p with the weight detached (cispo);
    "soft": 4/τ · σ(τ (r - 1)) A, τ = 1 where A > 0 and 1.05 elsewhere (sapo). A bound that is None is not read.
    mean "tokens": every token of the step alike; "sequences": every sequence alike, its tokens alike within it; "length":
    every token by 1 / (sequences · max_new); "sums": by 1 / sequences.
    scale: of the advantages, where the stage says nothing else. resample: draws that fill up a step's groups; overlong: the
    share of max_new over which a long answer loses up to one point. critic: whether values come from a model.
    """

    ratio: Ratio
    gate: Gate
    mean: Mean
    low: float | None
    high: float | None
    source: str
    scale: Literal["std", "none"] = "std"
    resample: int = 0
    overlong: float = 0.0
    critic: bool = False


SOFT = (1.0, 1.05)  # sapo's temperatures for advantages above zero, and for the others

VARIANTS: dict[str, Variant] = {
    "bnpo": Variant("token", "clip", "tokens", 0.2, 0.28, "token mean over the batch, as TRL's bnpo, with dapo's clip"),
    "grpo": Variant("token", "clip", "sequences", 0.2, 0.2, "Shao et al. 2024, equation 3"),
    "dr_grpo": Variant("token", "clip", "length", 0.2, 0.2, "Liu et al. 2025, section 3.2", scale="none"),
    "dapo": Variant("token", "clip", "tokens", 0.2, 0.28, "Yu et al. 2025, section 3", resample=2, overlong=0.2),
    "gspo": Variant("sequence", "clip", "sequences", 3e-4, 4e-4, "Zheng et al. 2025, equation 5"),
    "cispo": Variant("token", "weight", "tokens", None, 4.0, "MiniMax 2025 (M1), section 3.1"),
    "sapo": Variant("token", "soft", "sequences", None, None, "Gao et al. 2025, SAPO"),
    "luspo": Variant("sequence", "clip", "sums", 3e-4, 4e-4, "LUSPO, as in Liger: sequences weighted by their length"),
    "ppo": Variant("token", "clip", "tokens", 0.2, 0.2, "Schulman et al. 2017, equation 7, with a critic", critic=True),
}  # fmt: skip
ESTIMATORS = ("k1", "k2", "k3")  # of the KL to the reference: Schulman 2020, "Approximating KL divergence"
IMPORTANCE = ("none", "truncated", "masked")
