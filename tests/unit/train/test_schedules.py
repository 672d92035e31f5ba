"""Schedules: the warm-up, the peak, the floor, and the shape between them, for every length of run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.train.schedules import SCHEDULES, rate

runs = st.tuples(st.sampled_from(SCHEDULES), st.integers(1, 200), st.integers(0, 30), st.floats(0.01, 1), st.floats(0, 1))


@given(runs)
def test_rises_to_one_and_never_rises_again(run: tuple) -> None:
    schedule, total, warmup, decay, floor = run
    values = [rate(schedule, s, total, warmup, decay, floor) for s in range(total)]
    up, down = values[:warmup], values[warmup:]
    assert up == pytest.approx([(s + 1) / warmup for s in range(len(up))])
    assert all(a >= b - 1e-12 for a, b in zip(down, down[1:], strict=False))
    assert all(floor - 1e-12 <= v <= 1 for v in down)
    if down:
        assert down[0] == pytest.approx(1.0) or schedule == "wsd" and warmup > total * (1 - decay) - 1
    if schedule == "constant":
        assert set(down) <= {1.0}


@given(runs)
def test_the_end_is_the_floor(run: tuple) -> None:
    schedule, total, warmup, decay, floor = run
    if schedule != "constant" and total > warmup:
        assert rate(schedule, total, total, warmup, decay, floor) == pytest.approx(floor, abs=1e-9)
        assert rate(schedule, total + 5, total, warmup, decay, floor) == pytest.approx(floor, abs=1e-9)


@given(st.integers(10, 500), st.floats(0.05, 0.9))
def test_wsd_is_stable_until_its_decay(total: int, decay: float) -> None:
    begin = total * (1 - decay)
    for s in range(total):
        value = rate("wsd", s, total, 0, decay)
        assert value == 1.0 if s <= begin else 1 - (s - begin) / (total - begin) == pytest.approx(value)


def test_by_hand() -> None:
    assert rate("cosine", 55, 100, 10) == pytest.approx(0.5)
    assert rate("linear", 55, 100, 10) == pytest.approx(0.5)
    assert rate("linear", 32, 100, 10, floor=0.2) == pytest.approx(0.2 + 0.8 * 68 / 90)
    assert rate("wsd", 95, 100, 10, 0.1) == pytest.approx(0.5)
    assert rate("cosine", 0, 1, 0) == rate("cosine", 0, 1, 1) == 1.0
    assert [rate("constant", s, 24, 2) for s in range(4)] == [0.5, 1.0, 1.0, 1.0]
