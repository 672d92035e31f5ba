"""What trains on what: the settings that decide a training job's speed and memory, and the tables that state them.

Standard library only. A reader takes a row's settings and never its outcomes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shoestring.estimate.flops import ModelShape
from shoestring.estimate.known_shapes import known_shape
from shoestring.records import UserError

Precision = Literal["bf16", "fp16", "fp32", "fp8", "fp8-rowwise"]

# layers and width by parameters: MPT's and Llama's ladders (llm-foundry, llama-models); between them by logarithms
LADDER = (
    (125e6, 12, 768), (355e6, 24, 1024), (760e6, 24, 1536), (1.3e9, 24, 2048), (2.65e9, 32, 2560), (6.7e9, 32, 4096),
    (12.9e9, 40, 5120), (30e9, 48, 7168), (65e9, 80, 8192), (405e9, 126, 16384),
)  # fmt: skip
NAMED = {"125m": 0, "350m": 1, "760m": 2, "1b": 3, "3b": 4, "7b": 5, "13b": 6, "30b": 7, "70b": 8}  # llm-foundry's names
VOCABULARY = 50_368  # llm-foundry's


@dataclass(frozen=True)
class Job:
    """What trains on what. `parameters` decides the FLOPs; a shape sharpens them; `active` is what experts use a token.

    seq_len: tokens of one packed sequence, all of which attend to one another at worst. micro_batch: sequences a GPU
    at once. recompute: none, selective or full. sharding: none, optimiser, gradients or full. method: full, lora, qlora.
    compile, tensor, context, pipeline: what the stack adds (torchtitan's terms). name: a model's name, for its shape.
    """

    shape: ModelShape | None
    parameters: int
    gpu: str
    gpus: int
    seq_len: int
    micro_batch: int = 1
    precision: Precision = "bf16"
    recompute: str = "none"
    sharding: str = "none"
    grad_accum: int = 1
    method: str = "full"
    active: int = 0
    tensor: int = 1
    context: int = 1
    pipeline: int = 1
    compile: bool = False
    stack: str = "llm-foundry"
    name: str = ""

    def __post_init__(self) -> None:
        for key in ("parameters", "gpus", "seq_len", "micro_batch", "grad_accum", "tensor", "context", "pipeline"):
            if getattr(self, key) < 1:
                raise UserError(f"{key} must be at least 1, not {getattr(self, key)}")
        for key, allowed in (("recompute", ("none", "selective", "full")), ("method", ("full", "lora", "qlora"))):
            if getattr(self, key) not in allowed:
                raise UserError(f"{key} must be one of {', '.join(allowed)}, not {getattr(self, key)!r}")

    @property
    def computed(self) -> int:
        """Parameters that a token passes through."""
        return self.active or self.parameters


def dimensions(job: Job) -> tuple[float, float, float]:
    """(layers, attention width, vocabulary) of the job's model: its shape, its name, or its size between known ones."""
    if job.shape is not None:
        return job.shape.layers, job.shape.q_width, job.shape.vocab
    if job.name in NAMED:
        _, layers, width = LADDER[NAMED[job.name]]
        return layers, width, VOCABULARY
    n = min(max(job.computed, LADDER[0][0]), LADDER[-1][0])
    for (n0, l0, d0), (n1, l1, d1) in zip(LADDER, LADDER[1:], strict=False):
        if n <= n1:
            share = math.log(n / n0) / math.log(n1 / n0)
            return l0 * (l1 / l0) ** share, d0 * (d1 / d0) ** share, VOCABULARY
    raise AssertionError("the ladder covers every size")


def foundry_job(row: Mapping[str, str]) -> Job:
    """A row's job in llm-foundry's columns; its outcomes are not read. ValueError or KeyError where a setting is missing."""
    precision = row.get("precision", "").lower()
    return Job(
        shape=None,
        parameters=int(float(row["params"])),
        gpu=row["gpu"],
        gpus=int(row["n_gpu"]),
        seq_len=int(row["seq_len"]),
        micro_batch=int(row["micro_batch"]),
        precision="fp8" if "fp8" in precision else "fp16" if "fp16" in precision else "bf16",
        recompute="full" if row["act_ckpt"].strip().lower() in ("true", "1") else "none",
        sharding={"FULL_SHARD": "full", "SHARD_GRAD_OP": "gradients", "NO_SHARD": "none"}.get(row.get("sharding", ""), "full"),
        grad_accum=int(row.get("grad_accum") or 1),
        name=row["model"].strip().lower(),
    )


def torchtitan_job(row: Mapping[str, str]) -> Job:
    """A row's job in the columns of torchtitan's benchmarks; its outcomes are not read.

    `local_batch` is a data-parallel rank's; "FSDP32 TP8" and the like give the degrees of parallelism. Row-wise float8 gains
    nothing in this table and is a precision of its own.
    """

    def degree(kind: str) -> int:
        found = re.search(rf"\b{kind}(\d+)", row["parallelism"])
        return int(found[1]) if found else 1

    float8 = row["float8"].strip().lower()
    if "row" in float8:
        precision: Precision = "fp8-rowwise"
    else:
        precision = "fp8" if float8 in ("1", "true") or "float8" in float8 else "bf16"
    return Job(
        shape=known_shape(row["model"]),
        parameters=int(float(row["params"])),
        gpu=row["gpu"],
        gpus=int(row["n_gpu"]),
        seq_len=int(row["seq_len"]),
        micro_batch=int(row["local_batch"]),
        precision=precision,
        recompute={"full": "full", "selective": "selective"}.get(row["act_ckpt"].strip().lower(), "none"),
        sharding="full",
        tensor=degree("TP"),
        context=degree("CP"),
        pipeline=degree("PP"),
        compile=row["compile"].strip().lower() in ("1", "true"),
        stack="torchtitan",
    )
