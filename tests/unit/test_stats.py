import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.stats import (
    commonest_answer_baseline,
    macro_average,
    macro_interval,
    mcnemar,
    normal_interval,
    paired_macro_interval,
    pass_at_k,
    quantile,
    wilson_interval,
)


def test_wilson_by_hand() -> None:
    # 8 of 10: Newcombe's worked value
    low, high = wilson_interval(8, 10)
    assert low == pytest.approx(0.4901625, abs=1e-6)
    assert high == pytest.approx(0.9433178, abs=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    z2 = 1.959963984540054**2
    assert wilson_interval(0, 10) == (0.0, pytest.approx(z2 / (10 + z2)))
    assert wilson_interval(10, 10) == (pytest.approx(10 / (10 + z2)), 1.0)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share(n: int, data) -> None:
    correct = data.draw(st.integers(0, n))
    low, high = wilson_interval(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    mirror = wilson_interval(n - correct, n)
    assert mirror == (pytest.approx(1 - high), pytest.approx(1 - low))


@pytest.mark.parametrize(("correct", "n"), [(-1, 5), (6, 5), (0, -1)])
def test_wilson_refuses(correct: int, n: int) -> None:
    with pytest.raises(ValueError):
        wilson_interval(correct, n)


def test_normal_interval_by_hand() -> None:
    low, high = normal_interval([1.0, 2.0, 3.0])
    assert low == pytest.approx(2 - 1.959963984540054 / math.sqrt(3))
    assert high == pytest.approx(2 + 1.959963984540054 / math.sqrt(3))
    assert normal_interval([4.0]) == (4.0, 4.0)
    with pytest.raises(ValueError):
        normal_interval([])


def test_macro_weighs_families_alike() -> None:
    assert macro_average({"a": [1, 1, 1, 1], "b": [0]}) == 0.5
    with pytest.raises(ValueError, match="'b'"):
        macro_average({"a": [1], "b": []})
    with pytest.raises(ValueError):
        macro_average({})


def test_macro_interval() -> None:
    outcomes = {"a": [1] * 30 + [0] * 70, "b": [1] * 60 + [0] * 40}
    low, high = macro_interval(outcomes, seed=1)
    assert low < 0.45 < high
    # the deviation of the macro average: sqrt(p q / n summed) / 2
    sd = math.sqrt(0.3 * 0.7 / 100 + 0.6 * 0.4 / 100) / 2
    assert high - low == pytest.approx(2 * 1.96 * sd, rel=0.1)
    assert macro_interval(outcomes, seed=1) == (low, high)
    assert macro_interval(outcomes, seed=1, draws=37) != macro_interval(outcomes, seed=2, draws=37)
    assert macro_interval(dict(reversed(outcomes.items())), seed=1) == (low, high)


def test_the_interval_of_an_all_wrong_model_is_not_a_point() -> None:
    """Nothing right of 6 × 50 does not show that nothing is ever right: a bootstrap alone said 0 to 0."""
    families = {f: [0] * 50 for f in "abcdef"}
    low, high = macro_interval(families)
    assert low == 0.0 and high == pytest.approx(wilson_interval(0, 50)[1] / math.sqrt(6))
    right = {f: [1] * 50 for f in "abcdef"}
    assert macro_interval(right) == (pytest.approx(1 - high), 1.0)
    assert macro_interval({"a": [0] * 50}) == (0.0, pytest.approx(wilson_interval(0, 50)[1])), "one family: Wilson's own"
    low, high = macro_interval({"a": [1, 1], "b": [0, 0]})
    assert 0 < low < 0.5 < high < 1 and high - 0.5 == pytest.approx(0.5 - low)


def test_a_constant_family_widens_the_interval_of_the_others() -> None:
    varied = {"a": [1] * 30 + [0] * 70, "b": [1] * 60 + [0] * 40}
    alone = macro_interval(varied)
    with_constant = macro_interval({**varied, "c": [0] * 10})
    bootstrap_only = (alone[1] - alone[0]) * 2 / 3  # the third family weighs a third and adds no variance of its own
    assert with_constant[1] - with_constant[0] > bootstrap_only * 1.05
    assert macro_interval(varied) == alone


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=4), st.integers(0, 3))
def test_the_macro_interval_holds_the_average(values: list[list[int]], seed: int) -> None:
    outcomes = {str(i): v for i, v in enumerate(values)}
    low, high = macro_interval(outcomes, seed=seed, draws=50)
    assert 0 <= low <= high <= 1
    if all(min(v) == max(v) for v in values):
        assert low <= macro_average(outcomes) <= high and low < high


def test_paired_interval_is_narrower_for_the_same_problems() -> None:
    before = {"a": [1, 0] * 50}
    after = {"a": [1, 0] * 40 + [1, 1] * 10}
    gain, (low, high) = paired_macro_interval(before, after)
    assert gain == pytest.approx(0.1)
    assert 0 < low < 0.1 < high < 0.2
    with pytest.raises(ValueError, match="families"):
        paired_macro_interval(before, {"b": [1]})
    with pytest.raises(ValueError, match="100 outcomes"):
        paired_macro_interval(before, {"a": [1]})


def test_alike_in_every_family_is_not_certain() -> None:
    """Two models that are all wrong, or answer alike: what 0 gained and 0 lost of so many leave open, squared and added."""
    wrong = {"a": [0] * 30, "b": [0] * 30}
    gain, (low, high) = paired_macro_interval(wrong, wrong)
    assert gain == 0 and high == pytest.approx(wilson_interval(0, 30)[1] * math.sqrt(2) / 2) == -low
    assert high == pytest.approx(macro_interval(wrong)[1]), "as one all-wrong model against a constant"
    same = {"a": [1, 0] * 15, "b": [0, 1, 1] * 10}
    assert paired_macro_interval(same, same) == (0.0, (pytest.approx(low), pytest.approx(high)))
    assert paired_macro_interval({"a": [0] * 900}, {"a": [0] * 900})[1][1] < 0.005
    gain, (low, high) = paired_macro_interval({"a": [0] * 5, "b": [1] * 5}, {"a": [1] * 5, "b": [1] * 5})
    assert gain == 0.5 and low < 0.5 < high
    assert paired_macro_interval({"a": [0] * 2}, {"a": [1] * 2})[1][1] == 1.0, "ends stay within [-1, 1]"


def test_an_alike_family_widens_the_paired_interval_of_the_others() -> None:
    before, after = {"a": [1, 0] * 50}, {"a": [1, 0] * 40 + [1, 1] * 10}
    gain, (low, high) = paired_macro_interval(before, after)
    half, (lower, upper) = paired_macro_interval(before | {"b": [0] * 10}, after | {"b": [0] * 10})
    b = wilson_interval(0, 10)[1]
    assert half == pytest.approx(gain / 2)
    assert half - lower == pytest.approx(math.hypot(gain - low, b) / 2) and upper - half == pytest.approx(math.hypot(high - gain, b) / 2)


@given(st.lists(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=8), min_size=1, max_size=3))
def test_the_paired_interval_has_a_width(pairs: list[list[tuple[int, int]]]) -> None:
    """Wherever at least one family is alike in itself, the interval holds the gain between its ends."""
    before, after = ({str(i): [p[k] for p in ps] for i, ps in enumerate(pairs)} for k in (0, 1))
    gain, (low, high) = paired_macro_interval(before, after, draws=60)
    assert -1 <= low <= high <= 1 and low < high
    if any(len({b - a for a, b in ps}) == 1 for ps in pairs):
        assert low - 1e-9 <= gain <= high + 1e-9


def test_mcnemar_by_hand() -> None:
    # 6 gained, 1 lost: 2 * (C(7,0) + C(7,1)) / 2^7 = 16/128
    before = [0] * 6 + [1] + [1] * 5
    after = [1] * 6 + [0] + [1] * 5
    assert mcnemar(before, after) == pytest.approx(0.125)
    assert mcnemar(after, before) == pytest.approx(0.125)
    assert mcnemar([1, 0], [1, 0]) == 1.0
    assert mcnemar([0, 1], [1, 0]) == 1.0
    assert mcnemar([0] * 10, [1] * 10) == pytest.approx(2 / 1024)
    with pytest.raises(ValueError):
        mcnemar([0.5], [1])
    with pytest.raises(ValueError):
        mcnemar([0], [1, 1])


def test_commonest_answer() -> None:
    assert commonest_answer_baseline(["1", "2", "1", "3"]) == ("1", 0.5)
    assert commonest_answer_baseline(["b", "a"]) == ("a", 0.5)
    assert commonest_answer_baseline([]) == ("", 0.0)


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(5, 2, 1) == pytest.approx(0.4)
    assert pass_at_k(5, 2, 2) == pytest.approx(1 - 3 / 10)
    assert pass_at_k(5, 2, 4) == 1.0
    assert pass_at_k(5, 0, 5) == 0.0
    for n, c, k in ((5, 2, 6), (5, 6, 1), (5, 2, 0), (5, -1, 1)):
        with pytest.raises(ValueError):
            pass_at_k(n, c, k)


def test_quantile() -> None:
    assert quantile([0, 10], 0.25) == 2.5
    assert quantile([7], 0.9) == 7
    with pytest.raises(ValueError):
        quantile([], 0.5)
