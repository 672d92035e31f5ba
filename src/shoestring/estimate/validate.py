"""Predicted against published: every row of a file, predicted from its settings alone. Standard library only.

A row of a throughput table is predicted without its own GPU × model cell, a run without itself: rows of the file that are
also shipped with the package cannot vouch for themselves. Rows whose own numbers need more than the card's peak are refused by
name; they are predicted like any other and left out of the errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shoestring.estimate import gpu_memory, published, runs, throughput
from shoestring.estimate.adapters import adapter_parameters
from shoestring.estimate.gpus import gpu
from shoestring.estimate.job import LADDER, NAMED, Job
from shoestring.estimate.known_shapes import UNGATED, known_shape
from shoestring.estimate.published import Row, Table, Unpredictable
from shoestring.estimate.regression import quantile
from shoestring.records import Quantity, UserError

UNITS = {"runs": "GPU-hours", "llm-foundry": "tokens/s/GPU", "torchtitan": "tokens/s/GPU", "litgpt": "GB"}
LONGEST = {True: 1304, False: 1044}  # tokens of Alpaca's longest item, by Llama's tokenizer and by the others' (litgpt's table)


def validate(path: str | Path) -> dict[str, Any]:
    """The file's report: {"rows", "median_error", "p90_error", "worst_error", "refused", …}, a row a line in its order.

    Errors are |predicted / actual - 1| over the rows that have both and are not refused; null where there is none. Also
    "within_factor_2" and "covered" (share of the rows whose 80% interval holds the actual), and for memory tables
    "verdicts" and "verdicts_right". UserError where the file is none of the known formats.
    """
    table = published.read(Path(path))
    rows, refused = [], []
    for row in table.rows:
        line = _line(table, row)
        if line.get("refused"):
            refused.append(line["name"])
        rows.append(line)
    counted = [r for r in rows if r["predicted"] is not None and r["actual"] and not r.get("refused")]
    errors = [abs(r["predicted"] / r["actual"] - 1) for r in counted]
    report: dict[str, Any] = {
        "format": table.format,
        "rows": rows,
        "median_error": quantile(errors, 0.5) if errors else None,
        "p90_error": quantile(errors, 0.9) if errors else None,
        "worst_error": max(errors) if errors else None,
        "refused": refused,
        "within_factor_2": _share([0.5 <= r["predicted"] / r["actual"] <= 2 for r in counted]),
        "covered": _share([r["low"] <= r["actual"] <= r["high"] for r in counted]),
    }
    judged = [r for r in rows if r.get("fits_actual") is not None and r.get("fits") is not None]
    if judged:
        report |= {"verdicts": len(judged), "verdicts_right": sum(r["fits"] == r["fits_actual"] for r in judged)}
    return report


def _share(marks: list[bool]) -> float | None:
    return sum(marks) / len(marks) if marks else None


def _line(table: Table, row: Row) -> dict[str, Any]:
    line: dict[str, Any] = {
        "name": published.row_name(table.format, row),
        "predicted": None,
        "low": None,
        "high": None,
        "actual": published.measured(table.format, row),
        "unit": UNITS[table.format],
        "basis": "literature",
    }
    try:
        if table.format == "litgpt":
            line |= _memory(published.settings(row))
            line["fits_actual"] = {"oom": False, "": None}.get(row.get("max_gpu_ram_gb", "").lower(), True)
            return line
        made = _predicted(table, row)
        line |= {"predicted": made.mid, "low": made.low, "high": made.high}
    except (Unpredictable, UserError) as e:
        line["reason"] = str(e)
    if why := published.refusal(table.format, row):
        line["refused"] = why
    return line


def _predicted(table: Table, row: Row) -> Quantity:
    if table.format == "runs":
        return runs.gpu_hours(published.run_of(row))
    job = published.job_of(table.format, row)
    size = LADDER[NAMED[job.name]][0] if job.name in NAMED else job.parameters
    return throughput.tokens_per_second(job, frozenset({throughput.cell(job.gpu, size)}))


def memory_job(row: Row) -> tuple[Job, str, int, bool]:
    """(job, method, rank, whether layers are gated) of a row of litgpt's table. The rank from the trained parameters."""
    for key in ("model", "params", "gpu", "micro_batch"):
        if not row.get(key):
            raise Unpredictable(f"{key} is not stated")
    named = known_shape(row["model"])
    shape = named or UNGATED.get(row["model"].lower())
    sharded = "fsdp" in row.get("method", "")
    job = Job(
        shape=shape,
        parameters=int(published.number(row, "params")),
        gpu=row["gpu"],
        gpus=int(published.number(row, "n_gpu")) or 1,
        seq_len=LONGEST[row["model"].lower().startswith(("llama", "mistral", "tinyllama"))],
        micro_batch=int(published.number(row, "micro_batch")),
        sharding="full" if sharded else "none",
        recompute="full" if sharded else "none",  # litgpt's FSDP runs recompute each block
    )
    job_shape = shape or gpu_memory.shape_of(job)
    one = adapter_parameters(job_shape, 1, ("q_proj", "v_proj"))
    rank = max(1, round(published.number(row, "trainable_params") / one)) if row.get("trainable_params") else 8
    method = "qlora" if row.get("quant", "none") not in ("", "none") else "lora"
    if row.get("method", "").startswith("full"):
        method = "full"
    return job, method, rank, named is not None or shape is None


def _memory(row: Row) -> dict[str, Any]:
    """Peak GB that the framework allocates (without the runtime), the verdict with it."""
    job, method, rank, gated = memory_job(row)
    parts = gpu_memory.training(job, method, rank, gated=gated, double_quantised="dq" in row.get("quant", ""))
    peak = sum(parts.values()) - parts["runtime"]
    if job.sharding == "full":
        peak = max(peak, gpu_memory.loading(job, method) + parts["activations"])
    gb = peak / 1e9
    fits = peak + parts["runtime"] <= gpu_memory.USABLE * gpu(job.gpu).memory_bytes
    return {"predicted": gb, "low": 0.85 * gb, "high": 1.15 * gb, "fits": fits, "parts": parts}
