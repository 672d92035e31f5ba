"""The rows of the comparison: what is measured, in which unit, beside whom, and what it has to reach.

A family is measured by one group of workers, which is started for it and stopped after it, so that what sleeps in memory
is never more than two models. `H100` rows need a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TRL_BF16 = "TRL SFTTrainer, bf16 weights, no checkpointing"
TRL_DEFAULTS = "TRL SFTTrainer, its defaults (fp32 weights, bf16 autocast, checkpointing)"
TRL_GRPO = "TRL GRPOTrainer, bf16 weights"
TRL_LIGER = "TRL SFTTrainer with Liger kernels"
GENERATE = "transformers generate, bf16"
VLLM = "vLLM CPU, bf16"
FLOOR = "the time to read weights and cache once at the card's memory bandwidth"


@dataclass(frozen=True)
class Must:
    """What a row has to reach: a ratio to the peer, or a value of our own. None: no such demand."""

    ratio_at_least: float | None = None
    ours_at_most: float | None = None
    ours_at_least: float | None = None

    def __str__(self) -> str:
        if self.ratio_at_least is not None:
            return f"≥ {self.ratio_at_least:g}×"
        if self.ours_at_least is not None:
            return f"≥ {self.ours_at_least:g}"
        return f"≤ {self.ours_at_most:g}" if self.ours_at_most is not None else ""

    def to_dict(self) -> dict[str, float] | None:
        found = {k: v for k, v in vars(self).items() if v is not None}
        return found or None

    def reached(self, ours: float, ratio: float | None) -> bool | None:
        """None where nothing was demanded; nothing to compare with is not a pass."""
        if self.ratio_at_least is not None:
            return ratio is not None and ratio >= self.ratio_at_least
        if self.ours_at_most is not None:
            return ours <= self.ours_at_most
        if self.ours_at_least is not None:
            return ours >= self.ours_at_least
        return None


@dataclass(frozen=True)
class Spec:
    """One row, before it is measured. must: the least; aim: what would make us worth switching to."""

    what: str
    family: str
    unit: str
    better: Literal["higher", "lower"]
    peer_name: str = ""
    must: Must = Must()
    aim: Must = Must()


def _times(what: str, family: str, unit: str, peer: str, must: float, aim: float | None = None) -> Spec:
    better: Literal["higher", "lower"] = "higher" if unit.endswith("/s") else "lower"
    return Spec(what, family, unit, better, peer, Must(ratio_at_least=must), Must(ratio_at_least=aim))


def _gpu(what: str, unit: str, peer: str = "") -> Spec:
    return Spec(f"H100: {what}", "h100", unit, "lower" if unit in ("s/step", "GiB") else "higher", peer)


EQUAL = 0.98  # held-out losses within 2%: the roundings of one trajectory, not a difference in what was learned

SPECS: tuple[Spec, ...] = (
    *(
        Spec(f"start, shoestring {c}", "startup", "s", "lower", "", Must(ours_at_most=0.4), Must(ours_at_most=0.2))
        for c in ("--help", "plan", "bill")
    ),
    _times("SFT", "sft", "tokens/s", TRL_BF16, 3.2, 5),
    _times("SFT, held-out loss", "sft", "nats/token", TRL_BF16, EQUAL),
    Spec("SFT, MFU", "sft", "% of the matmul rate", "higher", "", Must(ours_at_least=20), Must(ours_at_least=35)),
    _times("SFT against the defaults", "sft-defaults", "tokens/s", TRL_DEFAULTS, 3.5, 5.5),
    _times("SFT against the defaults, held-out loss", "sft-defaults", "nats/token", TRL_DEFAULTS, EQUAL),
    Spec("SFT, peak memory", "sft-defaults", "GiB", "lower", TRL_DEFAULTS, Must(ours_at_most=4.5), Must(ours_at_most=3.2)),
    _times("decode, batch 8", "decode", "tokens/s", GENERATE, 1.5, 2.5),
    _times("decode, batch 32", "decode", "tokens/s", GENERATE, 1.5, 2.5),
    _times("decode, batch 32, against vLLM", "vllm", "tokens/s", VLLM, 0.9, 1.3),
    _times("GRPO step, 4 x 8 x 64", "grpo", "s/step", TRL_GRPO, 3, 5),
    _times("GRPO, by sampled token", "grpo", "s/1000 tokens", TRL_GRPO, 3, 5),
    Spec("GRPO, peak memory", "grpo", "GiB", "lower", TRL_GRPO),
    _gpu("SFT, 135M", "tokens/s", TRL_LIGER),
    _gpu("SFT MFU, 135M", "%"),
    _gpu("SFT, random weights of Qwen2.5-1.5B's shape", "tokens/s", TRL_LIGER),
    _gpu("SFT MFU, random weights of Qwen2.5-1.5B's shape", "%"),
    *(_gpu(f"decode, batch {b}", "% of the floor", FLOOR) for b in (1, 8, 64, 256)),
    _gpu("GRPO step", "s/step", TRL_GRPO),
    _gpu("GRPO, peak memory", "GiB", "PPO actor and critic of the same model"),
)  # fmt: skip

MEASURED = tuple(dict.fromkeys(s.family for s in SPECS if s.family != "h100"))  # families in the order of a run


def spec(what: str) -> Spec:
    return next(s for s in SPECS if s.what == what)


def of_family(family: str) -> list[Spec]:
    return [s for s in SPECS if s.family == family]
