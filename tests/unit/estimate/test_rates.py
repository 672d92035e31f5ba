"""Seconds of work on this machine and on a rented card: units, directions, intervals."""

from __future__ import annotations

import pytest

from shoestring.estimate.flops import ModelShape
from shoestring.estimate.machine import Profile, prior
from shoestring.estimate.rates import CpuRates, GpuRates, Work, added, rented_cpu
from shoestring.records import Quantity, UserError

SMOL = ModelShape(30, 576, 9, 3, 64, 1536, 49152, True)
SEVEN = ModelShape(28, 3584, 28, 4, 128, 18944, 152064, False)
WORK = Work(flops=1e12, tokens=1e6, length=1000, rows=4000, steps=10)


def measured(step: float | None = 0.3) -> CpuRates:
    def rate(x: float) -> Quantity:
        return Quantity(0.9 * x, x, 1.1 * x, "measured")

    made = Profile(
        rate(5e11), rate(1000), rate(3000), rate(1.0), rate(4e8), "measured",
        step_seconds=rate(step) if step is not None else None, start_seconds=rate(0.5),
    )  # fmt: skip
    return CpuRates(SMOL, made)


def test_training_is_products_and_the_optimisers_pass() -> None:
    assert measured().train(WORK).mid == pytest.approx(1e12 / 5e11 + 10 * 0.33, rel=0.01)
    assert measured(None).train(WORK).mid == pytest.approx(2 + 10 * 0.12)
    again = Work(**{**WORK.__dict__, "overhead": 0.3})
    assert measured().train(again).mid == pytest.approx(2.6 + 3.3, rel=0.01)
    adapter = Work(**{**WORK.__dict__, "method": "lora", "trained": 0.03})
    assert measured().train(adapter).mid < measured().train(WORK).mid


def test_decoding_few_rows_is_slower_a_token() -> None:
    r = measured()
    assert r.decode(1000, 64, 100).mid == pytest.approx(1.0)
    assert r.decode(1000, 8, 100).mid > 2 * r.decode(1000, 64, 100).mid
    assert r.prefill(3000, 60).mid == pytest.approx(1.0)


def test_a_prior_is_wider_than_a_measurement() -> None:
    guess = CpuRates(SMOL, prior(["avx512_bf16"], 2)).train(WORK)
    known = measured().train(WORK)
    assert guess.basis == "literature" and known.basis == "measured"
    assert guess.high / guess.low > 2 * known.high / known.low


def test_a_card_by_published_runs() -> None:
    one, eight = GpuRates(SEVEN, "H100", 1), GpuRates(SEVEN, "H100", 8)
    big = Work(flops=4.5e16, tokens=1e6, length=2048, rows=8192, steps=100)
    assert one.gpus == 1 and eight.train(big).mid < one.train(big).mid / 4
    seconds = eight.train(big)
    assert 0.15 < 6 * SEVEN.parameters() * 1e6 / (8 * 989e12 * seconds.mid) < 0.7, "the implied share of the peak"
    assert GpuRates(SEVEN, "A100", 8).train(big).mid > seconds.mid
    waits = Work(**{**big.__dict__, "waits": 1.8})
    assert eight.train(waits).mid == pytest.approx(1.8 * seconds.mid, rel=0.01)
    assert eight.decode(1e6, 64, 500).mid < one.decode(1e6, 64, 500).mid
    assert 0 < one.prefill(1e5, 500).mid < one.train(Work(**{**big.__dict__, "tokens": 1e5})).mid
    assert eight.memory_bytes == pytest.approx(80 * 2**30, rel=0.01)
    parts = eight.training_parts(big)
    assert parts is not None and parts["weights"] > 0 and sum(parts.values()) < 80 * 2**30
    with pytest.raises(UserError):
        GpuRates(SEVEN, "H1OO", 1).train(big)


def test_a_rented_machine_without_gpus() -> None:
    r = rented_cpu(SMOL, 8, 32.0, "m")
    assert r.gpus == 0 and r.memory_bytes == 32 * 2**30 and r.basis == "literature"
    assert r.train(WORK).mid < rented_cpu(SMOL, 2, 8.0, "m").train(WORK).mid


def test_sums_keep_the_weaker_basis_of_what_counts() -> None:
    a, b = Quantity(8, 10, 12, "measured"), Quantity(0.1, 0.2, 0.4, "literature")
    assert added(a, b) == Quantity(8.1, 10.2, 12.4, "measured")
    assert added(a, b.scaled(20)).basis == "literature"
