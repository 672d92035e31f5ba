"""Tokens a second a GPU, before anything is run: a sum of roofline times fitted to published tables. Standard library only.

The seconds of one token on one GPU are a sum of parts, each a physical amount over a peak of the card, times a
coefficient: matrix products (6N over the bf16 peak), attention (12·L·d·s, the full square, as published tables count),
element-wise passes over the activations (L·d over the memory bandwidth), the logits, the sharded weights that travel once
a micro-batch, and the optimiser's pass. Recomputation adds a third forward to what it repeats. The coefficients are fitted at
call time to the rows of `data/throughput_llmfoundry.csv` (some 20 ms, then kept); card, size, length, batch, number of GPUs and
precision enter through the amounts, so a card that is in no table still gets a number, with a wider interval.

What another training stack does (torchtitan: compilation, tensor, pipeline and context parallelism) is a factor on top,
fitted to `data/throughput_torchtitan.csv`. The intervals are the 80% of the residuals of rows predicted without their own
GPU × model cell (`tools/fit_throughput.py` recomputes every constant below).
"""

from __future__ import annotations

import csv
import functools
import math
from dataclasses import replace
from pathlib import Path

from shoestring.estimate.flops import ModelShape, decode_flops
from shoestring.estimate.gpus import Gpu, gpu
from shoestring.estimate.job import LADDER, NAMED, Job, dimensions, foundry_job, torchtitan_job
from shoestring.estimate.memory import kv_cache_bytes
from shoestring.estimate.regression import nonnegative, ridge
from shoestring.records import Quantity, UserError

DATA = Path(__file__).parent / "data"
Cell = tuple[str, int]  # card and parameters of rows that a fit must not see

# bytes a second that one GPU exchanges: inside a machine (NVLink, one direction; else PCIe 4), and between machines
NVLINK = {"V100": 150e9, "A100-SXM": 300e9, "H100-SXM": 450e9, "H800": 200e9, "H200": 450e9, "GH200": 450e9, "H20": 450e9}
NVLINK |= {"B200": 900e9, "B300": 900e9, "GB200": 900e9, "MI300X": 448e9, "H100-NVL": 300e9}
PCIE, SLOW_NET, NET, FAST_NET = 25e9, 12.5e9, 25e9, 50e9  # the last two: 1,600 and 3,200 Gbit/s a machine of eight
MACHINE = 8  # GPUs that share the fast links

# Where the rows say nothing. Round figures: 80 to 87% of the peak is the best matrix product measured (gpu_peaks.csv).
PRIOR = {
    "matmul": 1.2, "matmul, fast card": 0.1, "saved by fp8": 0.4, "attention": 2.0, "attention, fast card": 1.0,
    "element-wise": 50.0, "element-wise, fast card": 10.0, "logits": 5.0, "sharding inside": 3.0,
    "sharding between": 1.0, "optimiser": 3.0, "many GPUs": 0.02,
}  # fmt: skip
FAST_CARD = 5e14  # bf16 FLOP/s from which kernels of 2023 reach a smaller share of the peak (H100 and later)
LAUNCH = 4e-4  # seconds that one layer's kernels take to launch, forwards and backwards: small batches are bound by it
QLORA_BYTES = 20.0  # bytes a weight that dequantising NF4 moves in a micro-batch: four pairs of litgpt's table

# log residuals (predicted over measured) of rows without their own cell: 10% and 90%; see tools/fit_throughput.py
RESIDUALS = (-0.081, 0.062)
UNSEEN_CARD, UNSEEN_STACK, UNSEEN_METHOD = 0.20, 0.15, 0.20  # half-widths added in quadrature outside the tables


def flops_per_token(job: Job) -> float:
    """Useful training FLOPs a token as published tables count them: 6N + 12·L·d·s, the full square of attention."""
    layers, width, _ = dimensions(job)
    return 6.0 * job.computed + 12.0 * layers * width * job.seq_len


def links(card: Gpu, gpus: int) -> float:
    """Bytes a second between a GPU and its peers, by the card and by whether they share a machine."""
    inside = next((v for k, v in NVLINK.items() if card.name.startswith(k)), PCIE)
    if gpus <= MACHINE:
        return inside
    if inside == PCIE:
        return SLOW_NET
    return FAST_NET if card.bf16_flops >= FAST_CARD else NET


def peak(card: Gpu, precision: str) -> float:
    """FLOP/s that the count is divided by: the bf16 peak also for fp8, whose gain is a part of its own."""
    return {"fp16": card.fp16_flops, "fp32": card.fp32_flops}.get(precision, card.bf16_flops)


def amounts(job: Job) -> list[float]:
    """Seconds a token at full peak, part by part, in the order of PRIOR."""
    card = gpu(job.gpu)
    layers, width, vocab = dimensions(job)
    flops = peak(card, job.precision)
    again = 4 / 3 if job.recompute == "full" else 1.0
    # torchtitan's selective policy repeats every other matrix product, ours none
    repeated = 7 / 6 if job.recompute == "selective" and job.stack == "torchtitan" else again
    fast = 1.0 if card.bf16_flops >= FAST_CARD else 0.0
    tokens = job.micro_batch * job.seq_len
    # a frozen weight needs no gradient of its own: two products of three
    matmul = 6.0 * job.computed * (repeated if job.method == "full" else repeated - 1 / 3) / flops
    attention = 12.0 * layers * width * job.seq_len * again / flops
    passes = layers * width * 6 * again / card.bytes_per_second
    # experts stay where they are and tokens travel to them: what is gathered is about what a token uses
    travel = 2.0 * job.computed / tokens / links(card, job.gpus) if job.gpus > 1 and job.sharding != "none" else 0.0
    if job.method == "qlora":
        travel /= 4
    step = tokens * job.grad_accum
    pass_bytes = 16.0 * job.parameters if job.method == "full" else 0.0
    owners = job.gpus if job.sharding != "none" else 1
    far = job.gpus > MACHINE
    return [
        matmul,
        matmul * fast,
        -matmul if job.precision == "fp8" else 0.0,
        attention,
        attention * fast,
        passes,
        passes * fast,
        vocab * 10 / card.bytes_per_second,
        0.0 if far else travel,
        travel if far else 0.0,
        pass_bytes / owners / step / card.bytes_per_second,
        matmul * math.log2(max(job.gpus / MACHINE, 1.0)),
    ]


def seconds_per_token(job: Job, without: frozenset[Cell] = frozenset()) -> float:
    """GPU-seconds a token, fitted without the rows of these cells."""
    made = sum(c * a for c, a in zip(coefficients(without), amounts(job), strict=True))
    tokens = job.micro_batch * job.seq_len
    made = max(made, dimensions(job)[0] * LAUNCH / tokens)
    if job.method == "qlora":
        made += QLORA_BYTES * job.parameters / tokens / gpu(job.gpu).bytes_per_second
    if job.stack != "llm-foundry" or job.compile or max(job.tensor, job.context, job.pipeline) > 1:
        made *= bubble(job) * math.exp(sum(c * f for c, f in zip(stack_factors(without), stack_features(job), strict=True)))
    return made


def bubble(job: Job) -> float:
    """Time over busy time of a 1F1B pipeline whose micro-batches are single sequences (Narayanan et al. 2021, section 2.2)."""
    return 1.0 + (job.pipeline - 1) / job.micro_batch


def spread(job: Job) -> tuple[float, float]:
    """80% of log(predicted over measured), widened where the job stands outside the tables that were fitted."""
    wider = 0.0
    if not any(gpu(job.gpu).name == gpu(r.gpu).name for r, _ in foundry_rows()):
        wider += UNSEEN_CARD**2
    if job.stack != "llm-foundry" or job.compile or max(job.tensor, job.context, job.pipeline) > 1:
        wider += UNSEEN_STACK**2
    if job.method != "full" or job.precision not in ("bf16",) or job.computed != job.parameters:
        wider += UNSEEN_METHOD**2
    low, high = RESIDUALS
    return -math.sqrt(low * low + wider), math.sqrt(high * high + wider)


def tokens_per_second(job: Job, without: frozenset[Cell] = frozenset()) -> Quantity:
    """Tokens a second on each GPU, steady state: no start, no evaluation, no waiting for the longest item.

    without: cells (see `cell`) whose rows the fit leaves out. UserError for an unknown card.
    """
    mid = 1.0 / seconds_per_token(job, without)
    low, high = spread(job)
    return Quantity(mid * math.exp(-high), mid, mid * math.exp(-low), "literature")


def mfu(job: Job, without: frozenset[Cell] = frozenset()) -> Quantity:
    """Useful FLOPs over the peak of the precision's type (fp8 counts against the bf16 peak), by `flops_per_token`."""
    return tokens_per_second(job, without).scaled(flops_per_token(job) / peak(gpu(job.gpu), job.precision))


def cell(card: str, parameters: float) -> Cell:
    """The cell of a row: its card and its size. Sizes within 15% are one model (position embeddings grow with length)."""
    return gpu(card).name, int(parameters)


def _left_out(job: Job, without: frozenset[Cell]) -> bool:
    name = gpu(job.gpu).name
    nominal = LADDER[NAMED[job.name]][0] if job.name in NAMED else job.parameters
    return any(
        name == card and min(abs(math.log(n / p)) for p in (job.parameters, nominal)) < math.log(1.15) for card, n in without
    )


@functools.cache
def foundry_rows() -> tuple[tuple[Job, float], ...]:
    """(job, tokens/s/GPU) of llm-foundry's table."""
    with (DATA / "throughput_llmfoundry.csv").open(encoding="utf-8", newline="") as f:
        return tuple((foundry_job(row), float(row["tok_s_gpu"])) for row in csv.DictReader(f))


@functools.cache
def coefficients(without: frozenset[Cell] = frozenset()) -> tuple[float, ...]:
    """The parts' coefficients (order of PRIOR), fitted to llm-foundry's rows that are in none of these cells."""
    kept = [(job, rate) for job, rate in foundry_rows() if not _left_out(job, without)]
    return tuple(nonnegative([[a * rate for a in amounts(job)] for job, rate in kept], list(PRIOR.values())))


# Where torchtitan's rows say nothing: the stack, compilation, a doubling of tensor, context and pipeline ranks
STACK_PRIOR = (0.1, -0.15, 0.08, 0.02, 0.05)


def stack_features(job: Job) -> list[float]:
    """What torchtitan adds: the stack itself, compilation, parallelism by its base-2 logarithm, selective recomputation."""
    return [
        1.0 if job.stack == "torchtitan" else 0.0,
        1.0 if job.compile else 0.0,
        math.log2(job.tensor),
        math.log2(job.context),
        math.log2(job.pipeline),
    ]


@functools.cache
def stack_factors(without: frozenset[Cell] = frozenset()) -> tuple[float, ...]:
    """Log factors on the time for `stack_features`, fitted to torchtitan's rows that are in none of these cells."""
    rows, targets = [], []
    with (DATA / "throughput_torchtitan.csv").open(encoding="utf-8", newline="") as f:
        for row in csv.DictReader(f):
            job = torchtitan_job(row)
            if _left_out(job, without):
                continue
            base = replace(job, stack="llm-foundry", compile=False, tensor=1, context=1, pipeline=1)
            rows.append(stack_features(job))
            expected = sum(p * f for p, f in zip(STACK_PRIOR, rows[-1], strict=True))
            targets.append(-math.log(float(row["tok_s_gpu"]) * seconds_per_token(base) * bubble(job)) - expected)
    return tuple(p + c for p, c in zip(STACK_PRIOR, ridge(rows, targets, [0.5] * len(STACK_PRIOR)), strict=True))


# Share of the roofline that engines reach: bandwidth tests of 80 to 90%, less scheduling and sampling
DECODING = (0.35, 0.6, 0.85)


def decode_tokens_per_second(
    shape: ModelShape, card: str, sequences: int, context: int, bytes_per_weight: float = 2.0
) -> Quantity:
    """Tokens a second that one GPU decodes over all sequences, each seeing `context` tokens: a roofline times an efficiency.

    A step reads every weight once and each sequence's cache, and computes 2 FLOPs a weight and sequence: it takes the longer
    of bytes over bandwidth and FLOPs over the peak. The efficiency (0.35 to 0.85, middle 0.6) is a judgement from
    literature, not fitted to a table.
    """
    if sequences < 1 or context < 1:
        raise UserError(f"sequences and context must be at least 1, not {sequences} and {context}")
    found = gpu(card)
    read = bytes_per_weight * shape.parameters() + kv_cache_bytes(shape, sequences * context)
    seconds = max(read / found.bytes_per_second, sequences * decode_flops(shape, context) / found.bf16_flops)
    low, mid, high = (share * sequences / seconds for share in DECODING)
    return Quantity(low, mid, high, "literature")
