"""The throughput prior: what it must reproduce, which way it must move, and where it must admit that it guesses."""

from __future__ import annotations

import ast
import math
from dataclasses import replace
from pathlib import Path

import pytest

from shoestring.estimate import throughput
from shoestring.estimate.gpus import gpu
from shoestring.estimate.job import LADDER, NAMED, Job, dimensions
from shoestring.estimate.known_shapes import known_shape
from shoestring.estimate.regression import quantile
from shoestring.estimate.throughput import decode_tokens_per_second, mfu, tokens_per_second
from shoestring.records import UserError

LLAMA = known_shape("llama3.1-8b")
assert LLAMA is not None
JOB = Job(LLAMA, LLAMA.parameters(), "H100", 8, 4096, micro_batch=4, sharding="full")


def test_leave_cell_out_errors_and_the_shipped_residuals() -> None:
    off = []
    for job, rate in throughput.foundry_rows():
        cell = throughput.cell(job.gpu, LADDER[NAMED[job.name]][0])
        off.append(math.log(tokens_per_second(job, frozenset({cell})).mid / rate))
    errors = [abs(math.expm1(r)) for r in off]
    assert len(off) == 180 and quantile(errors, 0.5) <= 0.04 and quantile(errors, 0.9) <= 0.10
    # the constants are what tools/fit_throughput.py prints: 1.2 times the residuals' 10% and 90%
    low, high = throughput.RESIDUALS
    assert (low, high) == pytest.approx((1.2 * quantile(off, 0.1), 1.2 * quantile(off, 0.9)), abs=0.001)
    assert sum(low <= r <= high for r in off) >= 0.8 * len(off)


def test_a_cell_is_left_out_whole() -> None:
    cell = throughput.cell("H100-80GB", 1.3e9)
    rows = [job for job, _ in throughput.foundry_rows() if throughput._left_out(job, frozenset({cell}))]
    assert {(job.gpu, job.name) for job in rows} == {("H100-80GB", "1b")} and len(rows) == 17
    assert throughput.coefficients(frozenset({cell})) != throughput.coefficients()


def test_a_card_that_no_row_has_seen() -> None:
    """Without any H100 row the rooflines still carry over from the A100s, within a quarter."""
    cells = frozenset(throughput.cell("H100", n) for n, *_ in LADDER)
    off = [
        abs(tokens_per_second(job, cells).mid / rate - 1)
        for job, rate in throughput.foundry_rows()
        if job.gpu.startswith("H100") and job.precision == "bf16"
    ]
    assert quantile(off, 0.5) < 0.15 and quantile(off, 0.9) < 0.25
    seen, unseen = tokens_per_second(JOB), tokens_per_second(replace(JOB, gpu="B200"))
    assert unseen.mid > 1.5 * seen.mid and unseen.high / unseen.low > 1.3 * seen.high / seen.low
    assert seen.basis == unseen.basis == "literature"


def test_which_way_it_moves() -> None:
    rate = tokens_per_second(JOB).mid
    assert tokens_per_second(replace(JOB, recompute="full")).mid < 0.85 * rate
    assert rate < tokens_per_second(replace(JOB, precision="fp8")).mid < 1.6 * rate
    assert tokens_per_second(replace(JOB, seq_len=32768, micro_batch=1)).mid < 0.75 * rate
    assert tokens_per_second(replace(JOB, gpus=512)).mid < rate
    assert tokens_per_second(replace(JOB, micro_batch=1, seq_len=512)).mid < rate
    assert tokens_per_second(replace(JOB, method="lora")).mid > 1.2 * rate
    alone = replace(JOB, gpus=1, sharding="none", micro_batch=1)
    assert tokens_per_second(replace(alone, method="qlora")).mid < tokens_per_second(replace(alone, method="lora")).mid
    assert tokens_per_second(replace(JOB, gpu="V100", precision="bf16")).mid < 0.5 * tokens_per_second(replace(JOB, gpu="V100", precision="fp16")).mid
    assert tokens_per_second(replace(JOB, compile=True)).mid > rate > tokens_per_second(replace(JOB, tensor=8)).mid


def test_mfu_is_possible() -> None:
    for card in ("H100", "A100-40GB", "L4", "RTX4090", "B200", "MI300X", "V100"):
        for seq in (512, 4096, 65536):
            job = replace(JOB, gpu=card, seq_len=seq, micro_batch=1, sharding="none", gpus=1)
            q = mfu(job)
            assert 0 < q.low <= q.mid <= q.high < 1, (card, seq, q)


def test_mfu_is_the_tables_own_count() -> None:
    job, rate = next((j, r) for j, r in throughput.foundry_rows() if j.name == "7b" and j.gpus == 8 and j.seq_len == 2048 and j.gpu == "H100-80GB")
    assert rate * throughput.flops_per_token(job) / gpu(job.gpu).bf16_flops == pytest.approx(0.4644, rel=0.003)  # as the row states
    assert mfu(job).mid / tokens_per_second(job).mid == pytest.approx(throughput.flops_per_token(job) / 989e12)


def test_dimensions_between_known_sizes() -> None:
    layers, width, _ = dimensions(Job(None, 10**9, "H100", 1, 2048))
    assert 20 <= layers <= 26 and 1500 < width < 2100
    assert dimensions(Job(None, 10**6, "H100", 1, 2048))[:2] == (12, 768)


def test_experts_count_what_a_token_uses() -> None:
    moe = Job(None, 671 * 10**9, "H800", 2048, 4096, micro_batch=4, sharding="full", active=37 * 10**9)
    dense = replace(moe, parameters=37 * 10**9, active=0)
    assert tokens_per_second(moe).mid == pytest.approx(tokens_per_second(dense).mid, rel=2e-3)


def test_dequantising_takes_what_litgpt_measured() -> None:
    """Minutes per 1,000 iterations of micro-batch 1, nf4 less plain."""
    for name, plain, nf4 in (("Llama 2 7B", 2.36, 3.68), ("Llama 2 13B", 3.19, 6.38)):
        shape = known_shape(name)
        assert shape is not None
        job = Job(shape, shape.parameters(), "A100-40GB", 1, 1000, method="qlora")
        more = 1000 * (throughput.seconds_per_token(job) - throughput.seconds_per_token(replace(job, method="lora")))
        assert more == pytest.approx((nf4 - plain) * 60 / 1000, rel=0.2)


def test_decoding_stays_under_its_roofline() -> None:
    assert LLAMA is not None
    one = decode_tokens_per_second(LLAMA, "H100", 1, 1000)
    assert one.high < 3.35e12 / (2 * LLAMA.parameters()) and one.mid == pytest.approx(0.6 * 208, rel=0.02)
    many = decode_tokens_per_second(LLAMA, "H100", 256, 1000)
    assert 50 * one.mid < many.mid < 256 * one.mid
    assert decode_tokens_per_second(LLAMA, "H100", 256, 16000).mid < 0.3 * many.mid
    assert decode_tokens_per_second(LLAMA, "L4", 8, 500, bytes_per_weight=0.5).mid > decode_tokens_per_second(LLAMA, "L4", 8, 500).mid
    with pytest.raises(UserError, match="at least 1"):
        decode_tokens_per_second(LLAMA, "H100", 0, 1)


def test_bad_input() -> None:
    with pytest.raises(UserError, match="gpus must be at least 1"):
        replace(JOB, gpus=0)
    with pytest.raises(UserError, match="recompute must be one of"):
        replace(JOB, recompute="some")
    with pytest.raises(UserError, match="unknown GPU"):
        tokens_per_second(replace(JOB, gpu="TPU9"))


def test_the_standard_library_is_enough() -> None:
    folder = Path(throughput.__file__).parent
    for name in ("gpus", "job", "throughput", "regression", "runs", "published", "validate", "gpu_memory", "known_shapes"):
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {m.split(".")[0] for m in modules} & {"numpy", "torch", "scipy", "pandas"}
