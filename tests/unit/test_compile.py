"""A budget becomes recipes: under the budget at the plan's high end, monotone in money, refused with the least that works."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring import compile as compiler
from shoestring import compile_text, plan, recipe, stages
from shoestring.cost.prices import PriceBook
from shoestring.estimate.flops import ModelShape
from shoestring.estimate.machine import Profile
from shoestring.records import Quantity, UserError

SHAPE = ModelShape(30, 576, 9, 3, 64, 1536, 49152, True)
BIG = ModelShape(64, 5120, 40, 8, 128, 27648, 152064, False)  # Qwen2.5-32B
BOOK = PriceBook.default()
POOL = compiler.Pool("bundled:chain_sum", 2000, 120, 1, 2000, 34)


def profile() -> Profile:
    def rate(x: float) -> Quantity:
        return Quantity(x * 0.85, x, x * 1.15, "measured")

    return Profile(rate(4e11), rate(600), rate(1500), rate(2.0), rate(1e9), "measured")


def asked(budget: str, **rest: Any) -> compiler.Asked:
    made = compiler.Asked(Decimal(budget), "smollm2-135m-instruct", POOL, BOOK, "mine", None, SHAPE, profile())
    return replace(made, **rest)


def again(c: compiler.Candidate, a: compiler.Asked) -> plan.Plan:
    """The written text, loaded and planned as a user's recipe would be."""
    made = recipe.loads(c.text, stages.configs())
    return plan.make(made, BOOK, BOOK.machine_sku(made.machine, made.rate), a.shape, a.profile)


@pytest.mark.parametrize("budget", ["0.02", "0.05", "0.5", "50"])
def test_three_candidates_under_the_budget(budget: str) -> None:
    a = asked(budget)
    made = compiler.make(a)
    assert [c.kind for c in made] == list(compiler.KINDS)
    for c in made:
        assert c.plan is not None
        planned = again(c, a)
        total = planned.total_usd()
        assert compiler.needs(planned) <= a.budget and Decimal(repr(total.high)) <= a.budget
        assert total == c.plan.total_usd(), "comments change nothing"
        last = planned.final_evaluation()
        assert last is not None and float(c.reserve) >= last.usd.high
        plan.refuse_if_too_small(planned)
        keys = [line for line in c.text.splitlines() if " = " in line and not line.startswith("#")]
        assert sum("#" in k for k in keys) >= 12, "numbers say why"
    assert made[1].sizes.steps > 0 and "lora = 16" in made[2].text and "lora" not in made[0].text.partition("base =")[2]


@settings(max_examples=6, deadline=None)
@given(st.decimals("0.0005", 2, places=4, allow_nan=False))
def test_any_budget_fits_or_names_the_least(budget: Decimal) -> None:
    for c in compiler.make(asked(f"{budget}")):
        if c.plan is None:
            assert c.least is not None and c.least > budget
        else:
            assert compiler.needs(c.plan) <= budget and c.least is not None and c.least <= max(budget, c.least)


def test_more_money_never_buys_less() -> None:
    for kind in range(3):
        learnt = [compiler.make(asked(b))[kind].sizes for b in ("0.01", "0.05", "0.5")]
        work = [s.count * s.epochs * s.samples + s.steps for s in learnt]
        assert work == sorted(work) and work[0] < work[-1]


def test_the_least_works_and_less_is_refused() -> None:
    made = compiler.make(asked("0.0001"))
    assert all(c.plan is None and c.least is not None for c in made)
    with pytest.raises(UserError, match="the least that works is") as e:
        compiler.chosen(made)
    least = min(c.least for c in made if c.least is not None)
    assert f"{least:f} USD" in str(e.value) and "\n" not in str(e.value)
    assert compiler.chosen(compiler.make(asked(f"{least:f}"))).plan is not None


def test_more_examples_before_reinforcement() -> None:
    """docs/LOG.md: the number of distinct examples helped more than anything; GRPO came after 680 of them."""
    assert compiler.chosen(compiler.make(asked("0.01"))).kind == "distil-sft"
    rich = compiler.chosen(compiler.make(asked("0.5")))
    assert rich.kind == "sft-grpo" and rich.sizes.count >= compiler.ENOUGH
    assert rich.sizes.count <= 0.6 * POOL.train, "problems are left for GRPO"


def test_the_high_end_of_traces_and_sft_is_their_share() -> None:
    c = compiler.make(asked("0.03"))[1]
    assert c.plan is not None and not c.whole
    traces, rl = compiler._high(c.plan, "curate", "distill", "sft"), compiler._high(c.plan, "grpo")
    assert traces <= (traces + rl + (c.plan.recipe.budget - compiler.needs(c.plan))) * compiler.SFT_SHARE


def test_a_gpu_is_rented_when_asked_and_looked_at_when_there_is_money() -> None:
    for c in compiler.make(asked("20"), "H100"):
        assert c.machine.offer is not None and c.machine.offer.facts.gpu.startswith("H100") and c.machine.offer.facts.gpus == 1
        made = again(c, asked("20"))
        assert made.machine == c.machine.offer.sku and compiler.needs(made) <= 20
    assert compiler.make(asked("50"))[2].machine.offer is not None
    with pytest.raises(UserError, match='GPU "H9000"'):
        compiler.make(asked("20"), "H9000")


def test_what_does_not_fit_into_memory_is_adapted_or_says_so() -> None:
    made = compiler.make(asked("5000", shape=BIG, base="Qwen/Qwen2.5-32B-Instruct"), "H100")
    full = made[0]
    assert full.plan is not None and full.sizes.method in ("lora", "nf4") and "lora = 16" in full.text
    huge = replace(BIG, layers=640)
    small = compiler._best(asked("5000", shape=huge, base="x/huge"), "distil-sft", compiler._rented(BOOK, "A100-40GB")[:1])
    assert small.plan is None and "memory" in small.why_not and small.least is None


def test_learning_rates_pass_through_what_was_measured_and_published() -> None:
    assert compile_text.rate(134_515_008, False) == 3e-4 and compile_text.rate(32_500_000_000, False) == pytest.approx(1e-5, rel=0.03)
    assert compile_text.rate(134_515_008, True) == 1e-3


def test_too_few_problems() -> None:
    with pytest.raises(UserError, match="5 problems to learn from"):
        compiler.make(asked("1", pool=replace(POOL, train=5)))


def test_every_claim_has_a_basis_and_a_source() -> None:
    for said in compile_text.LEARNS.values():
        assert said and all(b in ("measured", "simulated", "literature") and s for _, b, s in said)
