"""Published runs and tables as jobs to predict, with what was measured kept apart. Standard library only.

Four formats, told by their columns: whole runs (`runs.csv`), llm-foundry's and torchtitan's throughput tables, litgpt's
memory table. A prediction reads a row's settings and never its outcomes; only `refusal` looks at both.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shoestring.estimate.gpus import gpu
from shoestring.estimate.job import LADDER, NAMED, Job, dimensions, foundry_job, torchtitan_job
from shoestring.estimate.known_shapes import known_shape
from shoestring.estimate.runs import Run, mean_length
from shoestring.records import UserError

Format = Literal["runs", "llm-foundry", "torchtitan", "litgpt"]
Row = Mapping[str, str]
FORMATS: dict[Format, frozenset[str]] = {
    "runs": frozenset({"name", "stage", "params_total", "tokens", "gpu"}),
    "llm-foundry": frozenset({"model", "params", "gpu", "n_gpu", "seq_len", "micro_batch", "act_ckpt"}),
    "torchtitan": frozenset({"model", "params", "gpu", "n_gpu", "seq_len", "local_batch", "parallelism", "float8"}),
    "litgpt": frozenset({"method", "model", "params", "quant", "micro_batch", "trainable_params", "gpu"}),
}
# What a run or a measurement brought out. `settings` takes these away before anything is predicted.
OUTCOMES = frozenset(
    {
        *("hours", "gpu_hours", "train_flops_reported", "mfu_reported", "hfu_reported", "mfu_pct", "hfu_pct", "mfu", "hfu"),
        *("cost_amount", "currency", "cost_scope", "implied_usd_per_gpu_hour", "implied_allin_mfu_6nd", "tok_s", "tok_s_gpu"),
        *("mem_gib", "max_gpu_ram_gb", "minutes_per_1k_iter", "notes", "note", "flags", "evidence", "source", "date"),
    }
)
TUNED = ("sft", "dpo", "rl", "grpo", "ppo", "orpo", "kto", "qat", "lora", "qlora", "distil")  # stages of items, not of a stream
MICRO_TOKENS = 16_384  # tokens of a GPU's micro-batch in pretraining, where a run does not state it
RECOMPUTED = 1e10  # parameters from which a run that does not say so is taken to recompute


class Unpredictable(ValueError):
    """A row that lacks what a prediction needs. The message says what."""


@dataclass(frozen=True)
class Table:
    path: Path
    format: Format
    rows: tuple[Row, ...]


def read(path: Path) -> Table:
    """A CSV file in one of the formats. UserError where it cannot be read or its columns are those of none."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as f:
            reader = csv.DictReader(f)
            columns = {c.strip() for c in reader.fieldnames or () if c}
            rows = tuple(_row(row) for row in reader)
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({(e.strerror or str(e)).lower()})") from e
    except (UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({e})") from e
    for name, wanted in FORMATS.items():
        if wanted <= columns:
            return Table(path, name, rows)
    nearest, wanted = min(FORMATS.items(), key=lambda f: len(f[1] - columns))
    missing = ", ".join(sorted(wanted - columns))
    raise UserError(
        f"{path}: columns of no known format; the nearest is {nearest}, which also has {missing} (docs/planner.md lists them)"
    )


def _row(raw: Mapping[str | None, object]) -> dict[str, str]:
    """Names and cells without blanks; what stands beyond the last column is dropped."""
    return {k.strip(): str(v or "").strip() for k, v in raw.items() if k is not None}


def settings(row: Row) -> dict[str, str]:
    """The row without its outcomes."""
    return {k: v for k, v in row.items() if k not in OUTCOMES}


def number(row: Row, key: str) -> float:
    """A column's number, 0 where it is blank. Unpredictable where it is not a number, or negative."""
    text = row.get(key, "").replace(",", "")
    try:
        value = float(text) if text else 0.0
    except ValueError:
        raise Unpredictable(f"{key} is no number: {text!r}") from None
    if not 0 <= value < 1e40:
        raise Unpredictable(f"{key} is no quantity: {text!r}")
    return value


def row_name(format: Format, row: Row) -> str:
    """How a row is called in messages."""
    if format == "runs":
        return row.get("name", "") or "unnamed run"
    extra = (
        "seq_len",
        "n_gpu",
        "micro_batch",
        "local_batch",
        "parallelism",
        "act_ckpt",
        "precision",
        "float8",
        "quant",
        "method",
    )
    return " ".join([row.get("model", ""), row.get("gpu", ""), *(f"{k}={row[k]}" for k in extra if row.get(k))])


def run_of(row: Row) -> Run:
    """A row of runs.csv as a run, from its settings alone. Unpredictable names what is missing; UserError an unknown card.

    Tokens as stated; else samples × length: full length in pretraining, the guess of `mean_length` for items under a cap.
    Fine-tuning that states its samples is taken not to be packed: then a step waits for its longest item.
    """
    row = settings(row)
    stage = (row.get("stage") or "pretrain").lower()
    tokens, samples, cap = number(row, "tokens"), number(row, "samples"), int(number(row, "seq_len"))
    total, active = number(row, "params_total"), number(row, "params_active")
    tuned = stage.startswith(TUNED)
    packed = not (tuned and samples)
    lengths_known = bool(tokens)
    if not tokens:
        if not samples or not cap:
            raise Unpredictable("neither tokens nor samples and their length are stated")
        tokens = samples * (cap if packed else mean_length(cap))
        lengths_known = packed
    if total < 1:
        raise Unpredictable("the parameters are not stated")
    if not row.get("gpu"):
        raise Unpredictable("the GPU is not stated")
    gpus = int(number(row, "n_gpu")) or _gpus(tuned, total)
    length = cap or (4096 if tuned else 2048)
    if not packed:
        length = min(cap or 10**9, max(1, round(tokens / samples)))
    return Run(
        Job(
            shape=None if active else known_shape(row.get("base") or row.get("name", "")),
            parameters=int(total),
            active=int(active),
            gpu=row["gpu"],
            gpus=gpus,
            seq_len=length,
            micro_batch=max(1, MICRO_TOKENS // length) if packed else 1,
            recompute="full" if (active or total) >= RECOMPUTED else "none",
            sharding="full" if total > 1e9 else "none",
            method="qlora" if "qlora" in stage else "lora" if "lora" in stage else "full",
        ),
        tokens,
        stage,
        packed,
        lengths_known,
        row.get("name", ""),
    )


def _gpus(tuned: bool, parameters: float) -> int:
    """A run's GPUs where it does not state them: what runs of its kind use."""
    if tuned:
        return 16 if parameters > 1e10 else 8
    return 512 if parameters > 3e9 else 64


def job_of(format: Format, row: Row) -> Job:
    """A row of a throughput table as a job, from its settings alone."""
    row = settings(row)
    name = row.get("model", "").strip().lower()
    if not row.get("params") and (named := known_shape(name)):
        row["params"] = str(named.parameters())
    elif not row.get("params") and name in NAMED:
        row["params"] = str(LADDER[NAMED[name]][0])
    for key in sorted(FORMATS[format] - {"act_ckpt", "float8", "parallelism", "model"}):
        if not row.get(key):
            raise Unpredictable(f"{key} is not stated")
    try:
        return foundry_job(row) if format == "llm-foundry" else torchtitan_job(row)
    except (KeyError, ValueError) as e:
        raise Unpredictable(f"a setting cannot be read: {e}") from None


def measured(format: Format, row: Row) -> float | None:
    """What the row measured: GPU-hours, tokens/s/GPU or memory; None where it is blank or no number (OOM)."""
    try:
        if format == "runs":
            return number(row, "gpu_hours") or number(row, "hours") * number(row, "n_gpu") or None
        if format == "litgpt":
            return number(row, "max_gpu_ram_gb") or None
        rate = number(row, "tok_s_gpu")
        return rate or (number(row, "tok_s") / number(row, "n_gpu") if number(row, "n_gpu") else 0.0) or None
    except Unpredictable:
        return None


def refusal(format: Format, row: Row) -> str:
    """Why the row's own numbers cannot be true, "" where they can: more FLOPs than the card has at its peak.

    Counted low on purpose (6N a token; in tables the causal half of attention too), against the fp8 peak where parts
    ran in fp8. Runs without stated tokens cannot be checked: a cap on the length is not a length.
    """
    actual = measured(format, row)
    try:
        if not actual or format == "litgpt" or not row.get("gpu"):
            return ""
        card = gpu(row["gpu"])
        if format == "runs":
            size = number(row, "params_active") or number(row, "params_total")
            done = number(row, "train_flops_reported") or 6 * size * number(row, "tokens")
            share = done / (actual * 3600)
            in_fp8 = "fp8" in row.get("flags", "") or "fp8" in row.get("name", "").lower()
        else:
            job = job_of(format, row)
            layers, width, _ = dimensions(job)
            share = actual * (6 * job.computed + 6 * layers * width * job.seq_len)
            in_fp8 = job.precision.startswith("fp8")
    except (Unpredictable, UserError):
        return ""
    best = card.fp8_flops if in_fp8 and card.fp8_flops else max(card.bf16_flops, card.fp16_flops)
    return f"its numbers need {share / best:.0%} of the card's peak" if share > best else ""


@functools.cache
def shipped_runs() -> tuple[tuple[Run, float], ...]:
    """(run, GPU-hours) of the shipped rows that can be predicted and whose numbers can be true."""
    table = read(Path(__file__).parent / "data" / "runs.csv")
    found = []
    for row in table.rows:
        hours = measured("runs", row)
        try:
            if hours and not refusal("runs", row):
                found.append((run_of(row), hours))
        except (Unpredictable, UserError):
            continue
    return tuple(found)
