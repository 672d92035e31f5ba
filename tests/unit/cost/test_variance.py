"""The variance: by hand, and summing exactly whatever the plan and the bill hold."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shoestring.cost import bill
from shoestring.cost.prices import SECOND, TOKEN, Price, PriceBook, per_second
from shoestring.cost.variance import OTHER, PARTS, of, work_done
from shoestring.records import OUTCOMES, PriceRef, Usage

D = Decimal
REF = PriceRef("a test", "2026-01-01")
SKU = "this/machine-second"
TEACHER = "teacher:c/m/out"


def book(hourly: str = "3600") -> PriceBook:
    return PriceBook([(SKU, Price(per_second(D(hourly)), SECOND, REF)), (TEACHER, Price(D("0.000002"), TOKEN, REF))])


def billed(*usages: Usage, hourly: str = "3600", unknown: bool = False) -> dict[str, Any]:
    return bill.to_dict(bill.price(usages, book(hourly), D(100), allow_unknown=unknown))


def seconds(stage: str, quantity: float, outcome: str = "useful") -> Usage:
    return Usage(SKU, quantity, SECOND, stage, outcome=outcome)  # type: ignore[arg-type]


def q(mid: float) -> dict[str, Any]:
    return {"low": mid / 2, "mid": mid, "high": mid * 2, "basis": "measured"}


def plan(*stages: tuple[str, str, float, float, float], hourly: str = "3600") -> dict[str, Any]:
    """(use, name, tokens, seconds, dollars)"""
    rows = [{"use": u, "name": n, "tokens": q(t), "minutes": q(s / 60), "usd": q(d)} for u, n, t, s, d in stages]
    total = sum(d for *_, d in stages)
    return {"stages": rows, "total": {"usd": q(total)}, "machine": {"sku": SKU, "usd_per_hour": hourly}}


def test_each_part_by_hand() -> None:
    """Planned: 100 s at a dollar. Used: 66 s useful and 6 idle at two dollars, for 60% of the work."""
    found = of(plan(("sft", "sft", 1000, 100, 100)), billed(seconds("sft", 66), seconds("sft", 6, "idle"), hourly="7200"),
               {"sft": (0.6, "tokens")})  # fmt: skip
    (line,) = found["lines"]
    assert (line["planned"], line["actual"], line["difference"]) == ("100.000000", "144.000000", "44.000000")
    assert line["volume"] == "-40.000000", "40% of the work was not done"
    assert line["efficiency"] == "6.000000", "60 s would have been as planned"
    assert line["waste"] == "6.000000" and line["rate"] == "72.000000"
    assert line["work"] == 0.6 and line["work_measure"] == "tokens" and line["kind"] == "both"
    assert found["outside"] == "inside"


def test_the_same_price_gives_no_rate_variance() -> None:
    """The plan's figures are rounded to six digits; its machine's price is not."""
    made = plan(("sft", "sft", 0, 36.6633, 0.00102657), hourly="0.1008")
    found = of(made, billed(seconds("sft", 37.7), hourly="0.1008"))
    assert found["parts"]["rate"] == "0.000000" and "-0.000000" not in str(found)


def test_lines_that_one_side_lacks() -> None:
    made = plan(("start", "start", 0, 10, 10), ("grpo", "grpo", 0, 50, 50))
    found = {line["stage"]: line for line in of(made, billed(seconds("start", 10), seconds("export", 3)))["lines"]}
    assert found["export"]["kind"] == "not planned" and found["export"]["volume"] == "3.000000"
    assert found["export"]["planned_quantity"] is None
    assert found["grpo"]["kind"] == "not used" and found["grpo"]["volume"] == "-50.000000"
    assert found["start"]["difference"] == "0.000000"
    assert list(found) == ["start", "grpo", "export"], "the plan's order, then what it did not have"


def test_dollars_beside_the_machine() -> None:
    """A plan that prices teacher tokens names no sku for them; one resource that was used beside the machine is meant."""
    made = plan(("distill", "distill", 0, 10, 12))
    tokens = Usage(TEACHER, 2_000_000, TOKEN, "distill")
    lines = {line["resource"]: line for line in of(made, billed(seconds("distill", 10), tokens))["lines"]}
    assert lines[TEACHER]["planned"] == "2.000000" and lines[TEACHER]["actual"] == "4.000000"
    assert lines[TEACHER]["volume"] == "2.000000" and lines[SKU]["difference"] == "0.000000"
    alone = {line["resource"]: line for line in of(made, billed(seconds("distill", 10)))["lines"]}
    assert alone[OTHER]["kind"] == "not used" and alone[OTHER]["difference"] == "-2.000000"


def test_another_machine_is_the_same_line_at_another_rate() -> None:
    made = plan(("sft", "sft", 0, 10, 5), hourly="1800")
    made["machine"]["sku"] = "this:aws/m7i.large/us-east-1/-/on-demand/machine-second"
    (line,) = of(made, billed(seconds("sft", 10)))["lines"]
    assert line["rate"] == "5.000000" == line["difference"]


def test_an_unknown_price_stands_in_no_sum() -> None:
    data = billed(seconds("sft", 10), Usage("x/machine-second", 5, SECOND, "sft"), unknown=True)
    found = of(plan(("sft", "sft", 0, 10, 10)), data)
    assert found["difference"] == "0.000000" and found["lines"][-1]["kind"] == "no price"
    assert found["lines"][-1]["actual"] is None


def test_work_done() -> None:
    made = plan(("sft", "sft", 200, 1, 1), ("evaluate", "score", 500, 1, 1), ("curate", "curate", 5, 1, 1))
    steps = {"sft": [{"step": 1, "total": 4, "tokens": 50}], "score": [{"step": 1, "total": 4, "tokens": 9},
             {"step": 3, "total": 4, "tokens": 9}], "curate": []}  # fmt: skip
    assert work_done(made, steps) == {"sft": (0.25, "tokens"), "score": (0.75, "steps")}


AMOUNT = st.floats(0, 1e4, allow_nan=False).map(lambda x: round(x, 6))
USED = st.lists(
    st.builds(
        lambda sku, n, stage, outcome: Usage(sku, n, TOKEN if sku == TEACHER else SECOND, stage, outcome=outcome),
        st.sampled_from([SKU, TEACHER]), AMOUNT, st.sampled_from(["a", "b", "c"]), st.sampled_from(OUTCOMES),
    ),
    max_size=12,
)  # fmt: skip
PLANNED = st.lists(st.tuples(AMOUNT, AMOUNT), max_size=3).map(
    lambda v: plan(*(("sft", "abc"[i], 0.0, s, d) for i, (s, d) in enumerate(v)), hourly="7.77")
)
WORK = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.tuples(st.floats(0, 5), st.just("steps")))


@given(PLANNED, USED, WORK)
def test_it_sums_exactly(made: dict[str, Any], usages: list[Usage], work: dict[str, tuple[float, str]]) -> None:
    data = billed(*usages, hourly="0.1008")
    found = of(made, data, work)
    for line in found["lines"]:
        assert sum(D(line[p]) for p in PARTS) == D(line["difference"]) == D(line["actual"]) - D(line["planned"])
    assert sum(D(found["parts"][p]) for p in PARTS) == D(found["difference"]) == D(found["actual"]) - D(found["planned"])
    assert D(found["actual"]) == D(data["marginal"]["total"])
    total = sum((D(repr(s["usd"]["mid"])) for s in made["stages"]), D(0))
    assert abs(D(found["planned"]) - total) <= D("0.000002") * max(1, len(made["stages"]))
