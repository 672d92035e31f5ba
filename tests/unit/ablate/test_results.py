"""Means, intervals and paired gains over problems and seeds, against slow, obvious twins."""

from __future__ import annotations

import itertools
import random
from statistics import fmean

import pytest

from shoestring.ablate import results
from shoestring.report import ablation


def every_resample(made: results.Cells) -> list[float]:
    """The twin: all draws of S - 1 seeds and of each family's problems, one by one, each as likely as any other."""
    seeds = len(next(iter(made.values())))
    out = []
    for drawn in itertools.product(range(seeds), repeat=max(1, seeds - 1)):
        per_family = []
        for rows in made.values():
            n = len(rows[0])
            per_family.append([
                fmean(fmean(rows[s][i] for s in drawn) for i in problems) for problems in itertools.product(range(n), repeat=n)
            ])  # fmt: skip
        out += [fmean(x) for x in itertools.product(*per_family)]
    return sorted(out)


def random_cells(seed: int, seeds: int, sizes: tuple[int, ...]) -> results.Cells:
    rng = random.Random(seed)
    return {f"f{k}": [[float(rng.random() < 0.5) for _ in range(n)] for _ in range(seeds)] for k, n in enumerate(sizes)}


@pytest.mark.parametrize(("seeds", "sizes"), [(1, (4,)), (2, (3, 2)), (3, (4,)), (3, (2, 3))])
def test_the_bootstrap_is_the_twin_drawn_at_random(seeds: int, sizes: tuple[int, ...]) -> None:
    made, twin = random_cells(5, seeds, sizes), None
    twin, drawn = every_resample(made), results.crossed(made, 20_000)
    assert fmean(drawn) == pytest.approx(fmean(twin), abs=0.01)
    for value in sorted(set(round(x, 9) for x in twin)):
        share = [sum(x <= value + 1e-9 for x in many) / len(many) for many in (twin, drawn)]
        assert share[0] == pytest.approx(share[1], abs=0.015)


def test_paired_gain_is_the_twins() -> None:
    before, after = random_cells(1, 3, (3,)), random_cells(2, 3, (3,))
    apart = {f: [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(after[f], before[f], strict=True)] for f in after}
    twin, found = every_resample(apart), results.gain(before, after, 20_000)
    below, above = (sum(t) / len(twin) for t in ([x <= 0 for x in twin], [x >= 0 for x in twin]))
    assert found["gain"] == pytest.approx(fmean(v for row in apart["f0"] for v in row))
    assert found["seeds"] == pytest.approx([fmean(row) for row in apart["f0"]])
    assert found["p_value"] == pytest.approx(min(1.0, 2 * min(below, above)), abs=0.02)
    assert found["ci95"] == pytest.approx([twin[int(0.025 * len(twin))], twin[int(0.975 * len(twin))]], abs=0.12)


def test_seeds_that_disagree_widen_the_interval() -> None:
    """What problems alone would not see: the same mean, once alike for every seed, once far apart."""
    n = 60
    alike = {"f": [[float(i % 2) for i in range(n)] for _ in range(3)]}
    apart = {"f": [[float(i % 10 < k) for i in range(n)] for k in (1, 5, 9)]}
    widths = [results.level(c, 2000)["ci95"] for c in (alike, apart)]
    assert results.macro(alike) == pytest.approx(results.macro(apart))
    assert widths[1][1] - widths[1][0] > 1.5 * (widths[0][1] - widths[0][0])


def test_coverage_of_the_interval_with_three_seeds() -> None:
    """Seeds and problems drawn anew many times: the interval of the mean holds the truth about as often as three seeds can."""
    rng, hits, tries = random.Random(0), 0, 150
    for _ in range(tries):
        hard = [rng.random() for _ in range(40)]
        skill = [rng.gauss(0, 0.05) for _ in range(3)]
        made = {"f": [[float(rng.random() < min(1, max(0, h + s))) for h in hard] for s in skill]}
        low, high = results.level(made, 300)["ci95"]
        hits += low <= 0.5 <= high
    assert hits / tries > 0.85


def test_arms_that_are_all_right_or_all_wrong() -> None:
    made = {"f": [[1.0] * 20] * 2}
    assert results.level(made, 200)["ci95"][0] < 0.9  # not certain after 20 problems
    nothing = results.gain(made, made, 200)
    assert nothing["gain"] == 0 and nothing["ci95"] == [0, 0] and nothing["p_value"] == 1.0


def test_only_problems_that_all_answered_count() -> None:
    a, b = {("f", "1"): 1.0, ("f", "2"): 0.0}, {("f", "2"): 1.0, ("f", "3"): 1.0}
    assert results.cells([a, b]) == {"f": [[0.0], [1.0]]}
    with pytest.raises(ValueError, match="same problems"):
        results.less({"f": [[1.0]]}, {"f": [[1.0, 0.0]]})


def test_over_the_base_by_family_and_their_median() -> None:
    """The base was asked once; an arm's models stand against the same verdicts, on the problems that all of them answered."""
    base = {("a", "1"): 0.0, ("a", "2"): 1.0, ("b", "1"): 0.0, ("c", "1"): 0.0, ("c", "9"): 1.0}
    models = [{("a", "1"): 1.0, ("a", "2"): 1.0, ("b", "1"): 0.0, ("c", "1"): x} for x in (0.0, 1.0)]
    found = results.over_base(base, models, 500)
    rows = {f: (r["base"], r["mean"], r["gain"]) for f, r in found["families"].items()}
    assert rows == {"a": (0.5, 1.0, 0.5), "b": (0.0, 0.0, 0.0), "c": (0.0, 0.5, 0.5)}
    assert found["median"] == 0.5 and found["gain"] == pytest.approx(1 / 3) and found["seeds"] == pytest.approx([1 / 6, 0.5])
    assert results.over_base(base, [{("d", "1"): 1.0}]) == {}


def test_tables_of_the_base_and_the_families() -> None:
    over = {
        "gain": 0.3, "ci95": [0.2, 0.4], "median": 0.25,
        "families": {"a": {"base": 0.5, "mean": 0.9, "gain": 0.4, "ci95": [0, 1]}, "b": {"base": 0.1, "mean": 0.2, "gain": 0.1, "ci95": [0, 1]}},
    }  # fmt: skip
    data = {"arms": [{"name": "x", "over_base": over}, {"name": "y", "over_base": None}]}
    head, rows = ablation.by_family(data)
    assert head == ["arm", "a", "b", "median gain"]
    assert rows == [["base", "50.0%", "10.0%", "–"], ["x", "90.0% (+40.0)", "20.0% (+10.0)", "+25.0"]]
    assert ablation.said_of(data)[-2:] == ["x against the base: +30.0 (+20.0 to +40.0), median of 2 families +25.0", ""]
    assert ablation.by_family({"arms": [{"name": "y"}]})[1] == []
