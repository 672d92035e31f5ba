"""GPU-hours of a whole run from its tokens: steady state, waiting for the longest item, and what runs lose all in all.

A run takes longer than its tokens over the table's rate: items of unequal length make every GPU wait for the longest of
the step, and restarts, evaluation, start-up and less tuned code are in the hours. The first is computed, the rest is a factor
fitted to the shipped published runs (`data/runs.csv`) by stage and generation of card. A run is predicted without itself.
Standard library only.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

from shoestring.estimate.gpus import gpu
from shoestring.estimate.job import Job
from shoestring.estimate.known_shapes import known_shape
from shoestring.estimate.regression import quantile, ridge
from shoestring.estimate.throughput import FAST_CARD, seconds_per_token, spread
from shoestring.records import Quantity

FEATURES = ("any run", "fast card", "few GPUs", "sft", "rl", "distilled")
# Log factors before any run is seen. RL: each token is also sampled (a decoder reaches a few percent of the peak) and scored.
PRIOR = (0.2, 0.1, -0.2, 0.2, math.log(5.0), 0.7)
PENALTY = (0.5, 1.0, 1.0, 3.0, 2.0, 1.0)  # what a prior weighs, in runs
FEW = 16  # GPUs of two machines: little network, few failures
# Of the logarithm of the lengths of reasoning traces. s1K: a mean of 4,700 tokens, and 74% of the items longer than 4,096
# (Muennighoff et al. 2025, tables of the data and of the training length): 0.2 if both count the same tokens, 0.32 if the
# question comes on top.
LENGTH_SIGMA = 0.35
UNKNOWN_LENGTH = 0.6  # half-width of log(hours) where only a cap on the length is known

FEW_ROWS = 0.3  # the same, for fine-tuning and RL, of which the table has hardly a run with stated tokens


@dataclass(frozen=True)
class Run:
    """A run to predict. tokens: trained, over all epochs. stage: pretrain, sft, dpo, rl and their sums ("pretrain+sft").

    packed: items are packed to full sequences; else each is a sequence of its own. lengths_known: false where the tokens
    are a guess from a cap on the length.
    """

    job: Job
    tokens: float
    stage: str = "pretrain"
    packed: bool = True
    lengths_known: bool = True
    name: str = ""

    @property
    def features(self) -> list[float]:
        stage = self.stage.lower()
        return [
            1.0,
            1.0 if gpu(self.job.gpu).bf16_flops >= FAST_CARD else 0.0,
            1.0 if self.job.gpus <= FEW else 0.0,
            1.0 if stage.startswith(("sft", "dpo")) else 0.0,
            1.0 if stage.startswith("rl") or "grpo" in stage else 0.0,
            1.0 if "distil" in stage else 0.0,
        ]


def waiting(ranks: int, sigma: float = LENGTH_SIGMA) -> float:
    """Longest over mean of `ranks` items with log-normal lengths: what a synchronous step of unpacked items takes.

    The expected maximum by Blom's plotting position.
    """
    if ranks < 2:
        return 1.0
    return math.exp(sigma * NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25)) - sigma * sigma / 2)


def mean_length(cap: int) -> int:
    """A guess at the mean length of reasoning traces under a cap, where nobody states it: 26·√cap (32,768 → 4,700, s1K's)."""
    return max(1, min(cap, round(26 * math.sqrt(cap))))


def steady_hours(run: Run) -> float:
    """GPU-hours of the tokens, with waiting, without the all-in factor."""
    wait = 1.0 if run.packed else waiting(run.job.gpus * run.job.micro_batch)
    reference = 4 / 3 if run.stage.lower().startswith("dpo") else 1.0  # one more forward pass, of the reference
    return run.tokens * seconds_per_token(run.job) * wait * reference / 3600


def _same(a: Run, b: Run) -> bool:
    """The same run, told by what is known before it ran: its name, or its card, size and tokens."""
    if a.name and a.name.strip().lower() == b.name.strip().lower():
        return True
    card = gpu(a.job.gpu).name == gpu(b.job.gpu).name
    return card and all(abs(x / y - 1) < 0.02 for x, y in ((a.job.parameters, b.job.parameters), (a.tokens, b.tokens)))


@functools.cache
def _observations() -> tuple[tuple[Run, float], ...]:
    """(run, log of published hours over steady hours) of the shipped rows which can be predicted and are not refused.

    A row whose tokens are guessed from a cap says nothing about speed: it is predicted and teaches nothing.
    """
    from shoestring.estimate.published import shipped_runs  # published reads files into the nouns of this module

    return tuple((run, math.log(hours / steady_hours(run))) for run, hours in shipped_runs())


def _factors(rows: Iterable[tuple[Run, float]]) -> list[float]:
    listed = [r for r in rows if r[0].lengths_known]
    features = [run.features for run, _ in listed]
    left = [y - sum(p * f for p, f in zip(PRIOR, x, strict=True)) for x, (_, y) in zip(features, listed, strict=True)]
    return [p + w for p, w in zip(PRIOR, ridge(features, left, PENALTY), strict=True)]


def all_in() -> list[float]:
    """The log factors of FEATURES, fitted to every shipped run."""
    return _factors(_observations())


def _mean(factors: Iterable[float], run: Run) -> float:
    return sum(w * f for w, f in zip(factors, run.features, strict=True))


def _family(run: Run) -> str:
    """The first word of a run's name: "Llama-3.1-8B" and "Llama-2-7B" are one family of runs."""
    found = re.match(r"[a-z]+", run.name.strip().lower())
    return found[0] if found else run.name


@functools.cache
def _half_width() -> float:
    """80% of the absolute log residuals of the shipped runs, each predicted without its family, with (n + 1) / n for a new one.

    Without the family, not only without itself: a run to plan has no siblings in the table.
    """
    seen = [o for o in _observations() if o[0].lengths_known]
    off = []
    for run, y in seen:
        off.append(abs(y - _mean(_factors(o for o in seen if _family(o[0]) != _family(run)), run)))
    return quantile(off, min(1.0, 0.8 * (len(off) + 1) / len(off)))


def gpu_hours(run: Run, without: tuple[str, ...] = ()) -> Quantity:
    """GPU-hours of the run with an 80% interval, fitted without itself and without runs whose name has one of `without`."""
    kept = [o for o in _observations() if not _same(o[0], run) and not any(w.lower() in o[0].name.lower() for w in without)]
    mid = steady_hours(run) * math.exp(_mean(_factors(kept), run))
    low, high = spread(run.job)
    more = (FEW_ROWS if any(run.features[3:5]) or not run.packed else 0.0, 0.0 if run.lengths_known else UNKNOWN_LENGTH)
    wide = [math.hypot(_half_width(), s, *more) for s in (low, high)]
    return Quantity(mid * math.exp(-wide[0]), mid, mid * math.exp(wide[1]), "literature")


def s1(gpus: int = 16, mean_tokens: int = 4700, items: int = 1000, epochs: int = 5, recompute: str = "full") -> Quantity:
    """GPU-hours of s1-32B's own training (Muennighoff et al. 2025, section 3 and appendix D), s1's rows left out of the fit.

    Qwen2.5-32B-Instruct, 1,000 traces with 4.7M tokens in all (the paper's table of s1K), 5 epochs, batch 16: one unpacked
    item a GPU, all weights sharded over 16 H100, activations recomputed as the repository's script for two machines does
    (simplescaling/s1@31a10f2 train/sft_multinode.sh). The paper says 26 minutes, 6.9 GPU-hours; the repository's log of a
    run on 8 GPUs 11.7.
    """
    shape = known_shape("Qwen2.5-32B-Instruct")
    assert shape is not None
    job = Job(shape, shape.parameters(), "H100", gpus, mean_tokens, recompute=recompute, sharding="full")
    return gpu_hours(Run(job, float(items * epochs * mean_tokens), "sft", packed=False, name="s1-32B (s1K)"), without=("s1",))
