"""Seconds of work on what a recipe rents: this machine by its measured profile, a GPU by the published-run priors.

Both kinds answer the same questions with a `Quantity` of wall seconds, so that a stage's forecast knows no machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from shoestring.estimate.flops import ModelShape, flops_per_token
from shoestring.estimate.lengths import Basis
from shoestring.estimate.machine import Profile, prior
from shoestring.records import Quantity

if TYPE_CHECKING:
    from shoestring.estimate.throughput import Job

# Of a rented GPU machine, literature or expectation; each is small beside the run that makes a rental worth while.
GPU_START = (40.0, 90.0, 240.0)  # imports, CUDA, kernels; the machine's own boot is before the lease
STORE = (0.5e9, 2e9, 6e9)  # bytes a second of weights, from a local disk or the network
PREFILL_MFU = (0.25, 0.4, 0.55)  # share of a GPU's peak that the forward pass of prompts reaches
CPU_FLAGS = ("avx512_bf16",)  # a rented CPU machine's processor, whose own flags are not in a price list


@dataclass(frozen=True)
class Work:
    """One stage's training. flops, tokens: useful ones over the whole stage; length, rows: tokens of a row on average, and
    of a micro-batch; method: "full", "lora" or "qlora"; waits: the slowest rank's rows over the mean; overhead: the share
    of FLOPs that recomputation adds; trained: share of the weights that the optimiser moves."""

    flops: float
    tokens: float
    length: float
    rows: float
    steps: int
    method: str = "full"
    rank: int = 0
    waits: float = 1.0
    recompute: str = "none"
    overhead: float = 0.0
    optimiser: str = "adamw"
    trained: float = 1.0
    targets: tuple[str, ...] = ()


class Rates(Protocol):
    """What a forecast asks. `gpus`: of the whole lease, 0 for a machine without; `memory_bytes`: of one GPU or of the host."""

    @property
    def gpus(self) -> int: ...
    @property
    def basis(self) -> Basis: ...
    @property
    def memory_bytes(self) -> int | None: ...
    @property
    def where(self) -> str: ...
    def start(self) -> Quantity: ...
    def load(self, copies: float = 1.0) -> Quantity: ...
    def store(self, size: float) -> Quantity: ...
    def train(self, work: Work) -> Quantity: ...
    def around(self, size: float, copies: float, seconds: float) -> Quantity: ...
    def decode(self, tokens: float, sequences: int, context: float) -> Quantity: ...
    def prefill(self, tokens: float, length: float) -> Quantity: ...
    def training_parts(self, work: Work) -> Mapping[str, int] | None: ...
    def decoding_parts(self, sequences: int, context: float) -> Mapping[str, int] | None: ...


def _over(amount: float, rate: Quantity, low: float = 1.0, high: float = 1.0) -> Quantity:
    """amount / rate: the fast end is the low one."""
    return Quantity(low * amount / rate.high, amount / rate.mid, high * amount / rate.low, rate.basis)


def added(*parts: Quantity) -> Quantity:
    """Sums of ends and middles: errors of one machine's rates go together. The weaker basis of those that count."""
    most = max((p.mid for p in parts), default=0.0)
    counted = [p for p in parts if p.mid >= 0.1 * most] or list(parts)
    bases = [p.basis for p in counted]
    basis: Basis = "literature" if "literature" in bases else "simulated" if "simulated" in bases else "measured"
    return Quantity(sum(p.low for p in parts), sum(p.mid for p in parts), sum(p.high for p in parts), basis)


def widened(q: Quantity, low: float, high: float) -> Quantity:
    return Quantity(q.low * low, q.mid, q.high * high, q.basis)


def fixed(low: float, mid: float, high: float) -> Quantity:
    return Quantity(low, mid, high, "literature")


@dataclass(frozen=True)
class CpuRates:
    """This machine, or a rented one without GPUs, by a profile."""

    shape: ModelShape
    profile: Profile
    memory_bytes: int | None = None
    where: str = "this machine"
    gpus: int = 0

    @property
    def basis(self) -> Basis:
        return self.profile.basis

    def _spread(self, seconds: float) -> Quantity:
        """A measurement holds within 15% to 30% over a run; a prior within a factor of two to three."""
        low, high = (0.8, 1.35) if self.basis == "measured" else (0.42, 2.6)
        return Quantity(seconds * low, seconds, seconds * high, self.basis)

    def start(self) -> Quantity:
        found = self.profile.start_seconds
        if found is None:
            return fixed(0.4 * START, START, 2.2 * START)
        return Quantity(0.7 * found.mid, found.mid, 2.5 * found.mid, found.basis)

    def load(self, copies: float = 1.0) -> Quantity:
        scale = self.shape.parameters() / max(self.profile.parameters, 1)
        return self._spread(copies * self.profile.load_seconds.mid * max(1.0, scale))

    def store(self, size: float) -> Quantity:
        return self._spread(size / self.profile.disk_bytes_per_second.mid)

    def train(self, work: Work) -> Quantity:
        rate = self.profile.train_flops.mid
        seconds = work.flops * (1 + work.overhead) / rate
        if work.method == "qlora":  # dequantising twice a micro-batch costs about what the frozen weights' copy does
            seconds *= 1.3
        update = self.profile.step_seconds
        scale = work.trained * self.shape.parameters() / max(self.profile.parameters, 1)
        each = update.mid * scale + 0.03 if update is not None else 0.12
        return self._spread(seconds + work.steps * each)

    def decode(self, tokens: float, sequences: int, context: float) -> Quantity:
        rate = self.profile.tokens_for(self.profile.decode_tokens, self.shape.parameters()).mid
        # few rows at once read all weights for few tokens: half the rate at 16 rows of the 64 that were measured
        few = 1.0 if sequences >= 48 else 1.0 + (48 - max(1, sequences)) / 32
        return self._spread(tokens * few / rate)

    def prefill(self, tokens: float, length: float) -> Quantity:
        rate = self.profile.tokens_for(self.profile.prefill_tokens, self.shape.parameters()).mid
        return self._spread(tokens / rate)

    def around(self, size: float, copies: float, seconds: float) -> Quantity:
        """Opening the model, the last checkpoint, and of those on the way (every 50 seconds, written beside the steps) the
        part that the steps wait for."""
        return added(self.load(copies), self.store(size * (1 + 0.15 * seconds / 50)))

    def training_parts(self, work: Work) -> Mapping[str, int] | None:
        return None  # the stage's own forecast knows more: its packs and its policy

    def decoding_parts(self, sequences: int, context: float) -> Mapping[str, int] | None:
        return None


START = 6.0  # of a machine that was never measured: imports and the base model's first reading


@dataclass(frozen=True)
class GpuRates:
    """`gpus` cards of one kind over `machines` machines, by the priors of published runs (estimate.throughput)."""

    shape: ModelShape
    gpu: str
    gpus: int
    machines: int = 1
    basis: Basis = "literature"
    where: str = ""
    without: tuple[str, ...] = ()  # names of published runs that the fit leaves out: a published run is planned blind

    @property
    def memory_bytes(self) -> int:
        from shoestring.estimate.gpus import gpu

        return gpu(self.gpu).memory_bytes

    def start(self) -> Quantity:
        return fixed(*GPU_START)

    def load(self, copies: float = 1.0) -> Quantity:
        return self.store(2.0 * copies * self.shape.parameters())

    def store(self, size: float) -> Quantity:
        low, mid, high = STORE
        return fixed(size / high, size / mid, size / low)

    def job(self, work: Work) -> Job:
        from shoestring.estimate.throughput import Job

        return Job(
            shape=self.shape, parameters=self.shape.parameters(), gpu=self.gpu, gpus=self.gpus,
            seq_len=max(1, round(work.length)), micro_batch=max(1, round(work.rows / max(1.0, work.length))),
            recompute=work.recompute, sharding="full" if self.gpus > 1 else "none", method=work.method,
            active=self.shape.active_parameters() if self.shape.experts else 0,
        )  # fmt: skip

    def train(self, work: Work) -> Quantity:
        """All in: steady state by the tables, waiting for the longest row of each step, and what published runs lost beside."""
        from shoestring.estimate.runs import Run, gpu_hours

        job = self.job(work)
        hours = gpu_hours(Run(job, work.tokens * work.waits, "sft"), without=self.without)
        return hours.scaled(3600 / self.gpus)

    def around(self, size: float, copies: float, seconds: float) -> Quantity:
        return fixed(0.0, 0.0, 0.0)  # is in the hours of the published runs

    def decode(self, tokens: float, sequences: int, context: float) -> Quantity:
        from shoestring.estimate.throughput import decode_tokens_per_second

        each = max(1, -(-sequences // self.gpus))
        rate = decode_tokens_per_second(self.shape, self.gpu, each, max(1, round(context)))
        return _over(tokens, rate.scaled(float(min(self.gpus, max(1, sequences)))))

    def prefill(self, tokens: float, length: float) -> Quantity:
        from shoestring.estimate.gpus import gpu

        work = tokens * flops_per_token(self.shape, max(1.0, length), head_share=0.0)
        peak = gpu(self.gpu).bf16_flops * self.gpus
        low, mid, high = (peak * m for m in PREFILL_MFU)
        return _over(work, fixed(low, mid, high))

    def training_parts(self, work: Work) -> Mapping[str, int] | None:
        from shoestring.estimate import gpu_memory

        known = work.optimiser if work.optimiser in gpu_memory.STATE else "adamw"
        targets = work.targets or ("q_proj", "v_proj")
        return gpu_memory.training(self.job(work), work.method, work.rank or 16, known, targets)

    def decoding_parts(self, sequences: int, context: float) -> Mapping[str, int] | None:
        from shoestring.estimate import gpu_memory

        each = max(1, -(-sequences // self.gpus))
        return gpu_memory.decoding(self.shape, self.gpu, each, max(1, round(context)))


def rented_cpu(shape: ModelShape, vcpus: int, memory_gib: float, where: str) -> CpuRates:
    """A rented machine without GPUs: the prior of its core count (two hardware threads a core)."""
    return CpuRates(shape, prior(CPU_FLAGS, max(1, vcpus)), int(memory_gib * 2**30) or None, where)
