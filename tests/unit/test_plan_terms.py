"""What a recipe's keys about money make of its plan: storage, egress, probes for worth, hours of a window, credits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shoestring import plan, plan_json, recipe, stages
from shoestring.cost import variance
from shoestring.cost.prices import PriceBook
from shoestring.cost.provisioned import MONTH_SECONDS
from shoestring.estimate.flops import ModelShape
from shoestring.estimate.machine import Profile
from shoestring.records import Quantity, UserError
from shoestring.report import terminal
from shoestring.stages import probing

ROOT = Path(__file__).resolve().parents[2]
SHAPE = ModelShape(layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, intermediate=1536, vocab=49152, tied=True)
STAGES = (
    '[[stage]]\nuse = "curate"\nsources = ["bundled:chain_sum"]\n[[stage]]\nuse = "distill"\n[[stage]]\nuse = "sft"\n'
    '[[stage]]\nuse = "grpo"\n[[stage]]\nuse = "evaluate"\nsources = ["bundled:chain_sum"]\n'
)
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()


def make(top: str = "", text: str = STAGES) -> tuple[plan.Plan, PriceBook]:
    def rate(x: float) -> Quantity:
        return Quantity(x * 0.85, x, x * 1.15, "measured")

    profile = Profile(rate(4e11), rate(600), rate(1500), rate(2.0), rate(1e9), "measured")
    head = 'name = "x"\nbudget = "0.05 USD"\nrate = "0.10 USD/hour"\nbase = "smollm2-135m-instruct"\n'
    made = recipe.loads(head + top + text, stages.configs())
    book = PriceBook.default()
    return plan.make(made, book, book.machine_sku(made.machine, made.rate), SHAPE, profile), book


def provider(kind: str) -> tuple[str, str]:
    """The first (provider, kind or tier) of the shipped book's storage or egress."""
    sku = min(s for s in PriceBook.default() if s.startswith(kind + ":") and "@" not in s)
    name, _, rest = sku.partition(":")[2].partition("/")
    return name, rest


def test_storage_is_in_every_stage_as_the_bill_posts_it() -> None:
    name, kind = provider("storage")
    (bare, _), (p, book) = make(), make(f'storage = {{ provider = "{name}", kind = "{kind}", gb = 5000 }}\n')
    monthly = book.price(f"storage:{name}/{kind}").amount
    for before, after in zip(bare.stages, p.stages, strict=True):
        expected = before.seconds.mid / MONTH_SECONDS * 5000 * float(monthly)
        assert after.storage is not None and after.storage.mid == pytest.approx(expected)
        assert after.usd.mid == pytest.approx(before.usd.mid + expected) and after.usd.high > before.usd.high
        [posted] = p.beside.during(p.stage("sft").facts.seconds(before.seconds.mid))
        assert float(book.cost([posted])) == pytest.approx(expected)
    assert p.least_usd() > bare.least_usd()
    data = plan_json.to_dict(p, book)
    assert data["storage"]["usd"]["mid"] == pytest.approx(p.total_usd().mid - bare.total_usd().mid, rel=1e-4)
    assert data["storage"]["gb_months"]["mid"] == pytest.approx(5000 * p.total_seconds().mid / MONTH_SECONDS, rel=1e-4)
    assert data["storage"]["source"] and data["storage"]["date"]


def test_egress_has_a_row_of_its_own_and_must_be_affordable() -> None:
    name, _ = provider("egress")
    (bare, _), (p, book) = make(), make(f'egress = {{ provider = "{name}", gb = 2 }}\n')
    row = p.stages[-1]
    assert row.name == plan.LEAVE and row.seconds.mid == 0 and row.usd.mid == float(book.cost(p.beside.out("", "", 0.0))) > 0
    assert p.total_usd().mid == pytest.approx(bare.total_usd().mid + row.usd.mid)
    assert p.least_usd() == bare.least_usd() + p.egress_usd
    data = plan_json.to_dict(p, book)
    assert sum(e["gb"] for e in data["egress"]) == 2 and data["egress"][0]["usd"]["mid"] == pytest.approx(row.usd.mid, rel=1e-5)
    with pytest.raises(UserError, match="no price is known"):
        make('egress = { provider = "nobody", gb = 2 }\n')


def test_the_variance_knows_what_the_plan_names() -> None:
    """A run that took what was planned has no difference: storage and egress are matched by their own skus."""
    name, kind = provider("storage")
    out, _ = provider("egress")
    p, book = make(
        f'storage = {{ provider = "{name}", kind = "{kind}", gb = 500 }}\negress = {{ provider = "{out}", gb = 2 }}\n'
    )
    lines = []
    for s in p.stages:
        for u in s.forecast.usages:
            price = book.unit_price(u)
            lines.append({
                "stage": s.name, "resource": u.sku, "quantity": repr(u.quantity), "unit": u.unit, "unit_price": f"{price:f}",
                "amount": f"{(price * Decimal(repr(u.quantity))):.6f}", "outcome": "useful",
            })  # fmt: skip
    found = variance.of(plan_json.to_dict(p, book), {"lines": lines})
    assert {row["kind"] for row in found["lines"]} == {"both"}
    assert abs(Decimal(found["difference"])) < Decimal("0.00002")


def test_probes_for_worth_are_planned_in_the_stages_that_train() -> None:
    (bare, _), (p, book) = make(), make('worth = "0.01 USD per point"\n')
    for before, after in zip(bare.stages, p.stages, strict=True):
        if after.use not in ("sft", "grpo"):
            assert after.seconds == before.seconds
            continue
        assert after.seconds.mid > before.seconds.mid and after.forecast.tokens == before.forecast.tokens
        assert after.seconds.low < before.seconds.low, "training that does not pay ends at its second probe"
        assert after.forecast.parts["probes"] > 0 and "probes" in after.forecast.notes[-1]
        assert sum(after.forecast.parts.values()) == pytest.approx(after.forecast.flops)
    one, _ = make('worth = "0.01 USD per point"\n', STAGES.replace('"grpo"', '"grpo"\nsteps = 1'))
    assert f"1 probes of {probing.PROBLEMS}" in one.stage("grpo").forecast.notes[-1]
    assert plan_json.to_dict(p, book)["worth_usd_per_point"] == "0.01"


def test_a_window_is_wall_clock_and_not_dollars() -> None:
    (bare, _), (p, book) = make(), make('window = "22:00-22:05"\n')
    assert p.total_usd() == bare.total_usd()
    w = plan_json.to_dict(p, book, NOW)["window"]
    assert w["opens"] == "2026-11-22T22:00Z" and w["waits_hours"] == 10
    q, used = w["wall_hours"], w["windows"]
    assert 10 < q["low"] <= q["mid"] <= q["high"] and 1 <= used["low"] <= used["mid"] <= used["high"] and used["high"] > 1
    restart = plan.RESUME_SECONDS + p.rates.load().mid
    assert w["restarts_usd"]["high"] == pytest.approx((used["high"] - 1) * restart * 0.10 / 3600, rel=1e-4)
    least = p.total_seconds().mid + (used["mid"] - 1) * restart
    assert q["mid"] == pytest.approx(10 + (least % 300) / 3600 + 24 * (used["mid"] - 1), rel=0.001)
    short, book = make('window = "22:00-22:01"\n')
    hundred = Quantity(100.0, 100.0, 100.0, "measured")
    slow = plan_json.to_dict(replace(short, profile=replace(short.profile, load_seconds=hundred)), book, NOW)["window"]
    assert slow["ends"] is None and "a start takes 110 s" in slow["why"]


def test_credits_pay_and_lower_nothing() -> None:
    (bare, _), (p, book) = make(), make('credits = ["0.001 USD grant", "5 USD start-up"]\n')
    data = plan_json.to_dict(p, book)
    assert data["total"]["usd"] == plan_json.to_dict(bare, book)["total"]["usd"]
    grant, rest, cash = data["funding"]
    assert (grant["source"], grant["amount"], grant["left"]) == ("grant", "0.001", "0.000")
    assert sum(Decimal(r["amount"]) for r in data["funding"]) == pytest.approx(
        Decimal(repr(p.total_usd().mid)), abs=Decimal("1e-6")
    )
    assert Decimal(cash["amount"]) == 0 and Decimal(rest["left"]) < 5


def test_all_of_it_as_json_and_on_a_terminal() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install 'shoestring[test]'")
    name, kind = provider("storage")
    out, _ = provider("egress")
    p, book = make(
        f'storage = {{ provider = "{name}", kind = "{kind}", gb = 50 }}\negress = {{ provider = "{out}", gb = 2 }}\n'
        'credits = "1 USD grant"\nwindow = "22:00-06:00 UTC"\nworth = "0.01 USD per point"\n'
    )
    data = plan_json.to_dict(p, book, NOW)
    jsonschema.validate(data, json.loads((ROOT / "docs" / "schemas" / "plan.schema.json").read_text()))
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    terminal.print_plan(data, console)
    text = " ".join(console.export_text().split())
    for said in ("Storage, as long as the lease runs: 50 GB", "way out, once: 2 GB", "Who pays: grant", "Window 22:00-06:00"):
        assert said in text, said
    plain, book = make()
    assert not {"storage", "egress", "funding", "window", "worth_usd_per_point"} & set(plan_json.to_dict(plain, book))


FAMILIES = [("add", 30), ("take", 8), ("times", 3)]


def _file(path: Path, split: str | None = "test", domain: str = "domain", n: int = 1) -> Path:
    rows: list[dict[str, Any]] = []
    for family, count in FAMILIES:
        for i in range(n * count):
            rows.append({"prompt": f"{family} {i}", "answer": "1", domain: family} | ({"split": split} if split else {}))
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_questions_are_counted_by_domain(tmp_path: Path) -> None:
    """As `workbench.spread` draws them: at most per_family of each domain of all the sources together."""
    from shoestring.stages.evaluate import Config, _count
    from shoestring.stages.workbench import load_problems, spread

    file = _file(tmp_path / "a.jsonl")
    for specs in (
        [str(file)], [str(file), "bundled:chain_sum"], [str(_file(tmp_path / "b.jsonl", None))],
        [f"{_file(tmp_path / 'c.jsonl', domain='kind')}?domain=kind"], ["bundled:chain_sum", "bundled:gcd"], [str(file)] * 2,
    ):  # fmt: skip
        for each in (5, 10, 1000):
            drawn = spread(load_problems(specs, "test"), each, 0)
            n, families = _count(Config(specs, per_family=each, shots=0), True)
            assert (n, families) == (len(drawn), len({p.domain for p in drawn})), (specs, each)
    asked = Config([str(file)], per_family=10, untrained=["bundled:gcd"], untrained_per_family=7, shots=2)
    assert _count(asked, False) == (2 * 21 + 7, 3) and _count(asked, True) == (21 + 7, 3)
    unknown = Config(["gym:gcd", "org/hub"], per_family=10)
    assert _count(unknown, True) == (20, 2)
    long = _file(tmp_path / "long.jsonl", n=200)  # beyond what is looked through: one family that has enough
    assert _count(Config([str(long)], per_family=10), True) == (10, 1)


@pytest.mark.parametrize("name", ["quickstart", "s1-32b"])
def test_a_plan_is_made_in_a_fraction_of_a_second(name: str) -> None:
    """CPU time of the whole command, Python's start included: 0.2 s, and 0.4 s at most. The least of three."""
    code = "import resource,sys; from shoestring import cli; r=cli.main(sys.argv[1:]); u=resource.getrusage(resource.RUSAGE_SELF);" \
           " print(u.ru_utime+u.ru_stime, file=sys.stderr); sys.exit(r)"  # fmt: skip
    took = []
    for _ in range(3):
        args = [sys.executable, "-c", code, "plan", str(ROOT / "recipes" / f"{name}.toml"), "--json"]
        done = subprocess.run(args, capture_output=True, text=True)
        assert "stages" in json.loads(done.stdout)
        took.append(float(done.stderr.strip().splitlines()[-1]))
        if took[-1] < 0.4:
            break
    assert min(took) < 0.4, took
