"""The forecast: what is essential, what is the least that makes sense, what stopping safely takes."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from shoestring import plan, recipe, stages
from shoestring.cost.prices import PriceBook
from shoestring.estimate.flops import ModelShape
from shoestring.estimate.machine import Profile, prior
from shoestring.records import Quantity, UserError

SHAPE = ModelShape(layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, intermediate=1536, vocab=49152, tied=True)
CURATE = '[[stage]]\nuse = "curate"\nsources = ["bundled:chain_sum"]\n'
EVALUATE = '[[stage]]\nuse = "evaluate"\nname = "{}"\nsources = ["bundled:chain_sum"]\n'
DISTILL, SFT, GRPO = (f'[[stage]]\nuse = "{use}"\n' for use in ("distill", "sft", "grpo"))
WHOLE = EVALUATE.format("first") + CURATE + DISTILL + SFT + EVALUATE.format("between") + GRPO + EVALUATE.format("last")


def profile(basis: Any = "measured", speed: float = 1.0) -> Profile:
    def rate(x: float) -> Quantity:
        return Quantity(x * 0.85, x, x * 1.15, basis)

    return Profile(rate(4e11 * speed), rate(600 * speed), rate(1500 * speed), rate(2.0), rate(1e9), basis)


def make(text: str = WHOLE, budget: str = "0.05 USD", rate: str = "0.10 USD/hour", **rest: Any) -> plan.Plan:
    top = f'name = "x"\nbudget = "{budget}"\nrate = "{rate}"\nbase = "smollm2-135m-instruct"\n'
    made = recipe.loads(top + text, stages.configs())
    book = PriceBook.default()
    return plan.make(made, book, book.machine_sku(made.machine, made.rate), SHAPE, rest.get("profile", profile()))


def test_a_row_a_stage_and_they_add_up() -> None:
    p = make()
    assert [s.name for s in p.stages] == ["start", "first", "curate", "distill", "sft", "between", "grpo", "last"]
    assert p.total_usd().mid == pytest.approx(sum(s.seconds.mid for s in p.stages) * 0.10 / 3600)
    for s in p.stages:
        assert 0 < s.seconds.low < s.seconds.mid < s.seconds.high
        assert s.usd.mid == pytest.approx(s.seconds.mid * 0.10 / 3600)
    assert p.final_evaluation() is p.stage("last")


def test_a_score_between_stages_is_not_essential() -> None:
    essential = {s.name for s in make().stages if s.forecast.essential}
    assert essential == {"start", "first", "curate", "distill", "last"}
    only = make(CURATE + DISTILL + SFT + EVALUATE.format("last"))
    assert only.stage("last").forecast.essential


def test_the_least_is_less_than_the_whole_and_more_than_its_parts() -> None:
    p = make()
    essential = sum(s.usd.mid for s in p.stages if s.forecast.essential)
    assert essential < float(p.least_usd()) < p.total_usd().mid
    untrained = make(EVALUATE.format("first"))
    assert float(untrained.least_usd()) == pytest.approx(
        untrained.total_usd().mid + plan.EXPORT_SECONDS * 0.10 / 3600
    )


def test_stopping_safely_holds_the_last_score_at_its_high_end() -> None:
    p = make()
    assert p.safe_stop_seconds() > p.stage("last").seconds.high + plan.EXPORT_SECONDS
    slow_disk = replace(p, profile=replace(p.profile, disk_bytes_per_second=Quantity(5e7, 1e8, 2e8, "measured")))
    assert slow_disk.safe_stop_seconds() > p.safe_stop_seconds() + 10
    blind = make(CURATE + DISTILL + SFT)
    assert blind.final_evaluation() is None
    assert blind.safe_stop_seconds() == pytest.approx(blind.checkpoint_seconds() + plan.EXPORT_SECONDS)


def test_counts_flow_from_stage_to_stage() -> None:
    p = make(WHOLE.replace('use = "curate"', 'use = "curate"\ncount = 50\ncandidates = 60'))
    assert p.stage("distill").facts.problems == 50
    assert 50 <= p.stage("sft").facts.traces <= 60
    assert [p.stage(n).facts.trained for n in ("first", "sft", "between", "last")] == [False, False, True, True]
    longer = make(WHOLE.replace('use = "sft"', 'use = "sft"\nepochs = 8'))
    assert longer.stage("sft").seconds.mid > 2 * make().stage("sft").seconds.mid
    assert longer.stage("grpo").seconds == make().stage("grpo").seconds


def test_a_guess_has_wider_intervals_than_a_measurement() -> None:
    measured, guessed = make(), make(profile=profile("literature"))
    assert measured.stages[0].seconds.basis == "literature", "the start-up is a typed figure on every machine"
    for a, b in zip(measured.stages[1:], guessed.stages[1:], strict=True):
        assert b.seconds.low < a.seconds.low < a.seconds.mid == b.seconds.mid < a.seconds.high < b.seconds.high
    assert guessed.total_usd().basis == "literature"
    assert make(profile=prior(["avx512_bf16"], 2)).total_usd().mid > 0


def test_a_faster_machine_is_cheaper() -> None:
    assert make(profile=profile(speed=4.0)).total_usd().mid < make().total_usd().mid


@pytest.mark.parametrize("slack", ["0.9", "1.1"])
def test_refused_when_too_small(slack: str) -> None:
    p = make()
    p = replace(p, recipe=replace(p.recipe, budget=p.least_usd() * Decimal(slack)))
    if slack == "1.1":
        plan.refuse_if_too_small(p)
        return
    with pytest.raises(UserError, match="too small") as caught:
        plan.refuse_if_too_small(p)
    assert "\n" not in str(caught.value) and f"{p.least_usd():.4f}" in str(caught.value)


def test_more_than_one_machine_is_refused() -> None:
    """The lease meters one machine: a second one would run unbilled."""
    made = make()
    machine = replace(made.recipe.machine, kind="cloud", provider="aws", sku="c7i.large", count=2)
    with pytest.raises(UserError, match="count = 2"):
        plan.make(replace(made.recipe, machine=machine), PriceBook.default(), made.machine, SHAPE, profile())


def test_inputs_are_read_before_a_dollar_is_spent(tmp_path: Path) -> None:
    plan.check_inputs(make())
    (tmp_path / "pool.jsonl").write_text('{"prompt": "1 + 1", "answer": "2", "split": "train"}\n')
    for bad in ("bundled:nothing", f"{tmp_path}/none.jsonl", f"{tmp_path}/pool.jsonl?answer=target"):
        with pytest.raises(UserError):
            plan.check_inputs(make(WHOLE.replace("bundled:chain_sum", bad)))
    # worked examples are only shown to an untrained model: a file without training problems will do after it
    (tmp_path / "test.jsonl").write_text('{"prompt": "1 + 1", "answer": "2", "split": "test"}\n')
    late = EVALUATE.format("last").replace("bundled:chain_sum", f"{tmp_path}/test.jsonl")
    plan.check_inputs(make(CURATE + DISTILL + SFT + late))
    with pytest.raises(UserError, match="split 'train'"):
        plan.check_inputs(make(late))


def test_the_plan_as_json(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    p = make()
    data = plan.write(p, PriceBook([(p.machine, _price(p))]), tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text()) == data
    schema = Path(__file__).resolve().parents[2] / "docs" / "schemas" / "plan.schema.json"
    jsonschema.validate(data, json.loads(schema.read_text()))
    assert data["left_out"] and data["machine"]["source"]


def _price(p: plan.Plan) -> Any:
    book = PriceBook.default()
    book.machine_sku(p.recipe.machine, p.recipe.rate)
    return book.price(p.machine)
