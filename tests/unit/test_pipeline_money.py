"""The pipeline's money beside the ceiling: windows, what is paid for beside the machine, and what is shown while it runs."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from rich.console import Console
from stub_run import TEXT, World, make

from shoestring import opening, recipe, stages
from shoestring.cost.beside import Beside
from shoestring.cost.budget import Budget
from shoestring.cost.ledger import Ledger
from shoestring.cost.prices import Price, PriceBook
from shoestring.pipeline import Ending, Pipeline
from shoestring.records import PriceRef, UserError
from shoestring.report.live import Live, Money
from shoestring.report.sinks import values_of


class Clock:
    """A world's clock, with a sleep that moves it."""

    def __init__(self, world: World) -> None:
        self.world, self.slept = world, 0.0

    def __call__(self) -> float:
        return self.world.now

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.world.now += seconds


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return make(tmp_path, monkeypatch)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def run(world: World, more: str, resume: bool = False, budget: str = "500") -> tuple[Ending, Clock, str]:
    made = recipe.loads(TEXT.format(budget=budget).replace("[[stage]]", more + "\n[[stage]]", 1), stages.configs())
    clock, out = Clock(world), io.StringIO()
    ending = Pipeline(made, world.folder, Console(file=out, width=300), resume, world.now, clock).run()
    return ending, clock, out.getvalue()


def test_waits_for_its_window_without_paying(world: World) -> None:
    world.now = at("2027-01-10 20:00")
    ending, clock, out = run(world, 'window = "22:00-06:00"')
    assert ending.status == "finished" and clock.slept == 2 * 3600
    assert "waiting 2 h 00 min until Sun 22:00 UTC; nothing is leased until then" in out
    assert world.state()["started"] == at("2027-01-10 22:00")
    assert sum(world.bill().values()) == pytest.approx(85.0)


def test_stops_when_the_window_closes_and_goes_on_in_the_next(world: World) -> None:
    """Each night is 60 s long: a checkpoint before its end, the rest of the steps in the next one."""
    world.now = at("2027-01-10 22:00:30")
    ending, clock, out = run(world, 'window = "22:00-22:01"')
    assert (ending.status, clock.slept) == ("stopped", 0)
    assert ending.reason == "window 22:00-22:01 UTC closes; go on with --resume from Mon 22:00 UTC"
    assert world.now < at("2027-01-10 22:01") and world.statuses() == {"sft": "running", "grpo": "waiting", "evaluate": "waiting"}
    assert not (world.folder / "model").exists() and (world.folder / "bill.json").exists()
    nights = 1
    while ending.status == "stopped":
        ending, clock, _ = run(world, 'window = "22:00-22:01"', resume=True)
        assert clock.slept > 86000
        nights += 1
    assert ending.status == "finished" and 3 <= nights <= 5
    assert world.bill() == {"useful": pytest.approx(85.0)}, "the days between are not leased, and no step is done twice"
    ledger = [json.loads(line) for line in (world.folder / "ledger.jsonl").read_text().splitlines()]
    assert [e["payload"]["reason"] for e in ledger if e["kind"] == "end"] == ["window"] * (nights - 1) + ["done"]


def test_a_window_may_change_on_resume(world: World) -> None:
    world.now = at("2027-01-10 22:00:30")
    run(world, 'window = "22:00-22:01"')
    assert run(world, "", resume=True)[0].status == "finished"


def test_storage_and_egress_are_posted_and_under_the_ceiling(world: World) -> None:
    """730 GB at 0.08 USD are 0.08 USD an hour; 11 GB out are 0.99 USD, which stopping keeps back."""
    more = 'storage = { provider = "aws", kind = "ebs_gp3", gb = 730 }\negress = { provider = "aws", gb = 11 }'
    assert run(world, more)[0].status == "finished"
    lines = json.loads((world.folder / "bill.json").read_text())["lines"]
    by = {line["resource"].partition(":")[0]: line for line in lines if ":" in line["resource"]}
    assert by["egress"]["stage"] == "export" and float(by["egress"]["amount"]) == pytest.approx(0.99)
    disk = [line for line in lines if line["resource"] == "storage:aws/ebs_gp3"]
    assert sum(float(line["quantity"]) for line in disk) == pytest.approx(730 * 85 / (730 * 3600))
    assert {line["stage"] for line in disk} == {"sft", "grpo", "evaluate"} and all(line["unit"] == "gb-month" for line in disk)
    planned = json.loads((world.folder / "plan.json").read_text())
    assert planned["stages"][-1]["name"] == "export" and planned["total"]["usd"]["mid"] > planned["egress"][0]["usd"]["mid"] == 0.99
    world.folder = world.folder.with_name("y")
    ending, _, _ = run(world, more.replace("gb = 11", "gb = 111"), budget="90")  # 10 USD of 90 stay for the way out
    total = sum(world.bill().values())
    assert ending.status == "stopped" and total <= 90
    assert [a for a in world.asked if a[0] == "grpo"] == [] or total < 90


def test_what_cannot_be_priced_is_refused_before_a_folder_is_made(world: World) -> None:
    for more in ('storage = { provider = "aws", kind = "tape", gb = 1 }', 'egress = { provider = "lambda", gb = 1 }'):
        with pytest.raises(UserError, match="no price is known"):
            run(world, more)
    assert not world.folder.exists()


def test_worth_without_training_does_nothing_so_it_is_refused(world: World) -> None:
    text = 'name = "x"\nbudget = "50 USD"\nbase = "b"\nworth = "1 USD per point"\n[[stage]]\nuse = "evaluate"\nsources = ["bundled:lcm"]\n'
    made = recipe.loads(text, stages.configs())
    with pytest.raises(UserError, match="no stage here trains"):
        Pipeline(made, world.folder, Console(file=io.StringIO())).run()


def test_the_money_of_every_step(world: World) -> None:
    """3600 USD an hour: a dollar is a second."""
    run(world, "")
    rows = [json.loads(line) for line in (world.folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["usd_per_hour"] for r in rows] == [pytest.approx(3600)] * len(rows)
    first = rows[0]
    assert first["usd_spent"] == pytest.approx(10) and first["usd_left"] == pytest.approx(490)
    assert first["usd_forecast_end"] == pytest.approx(10 + 30 + 40 + 6), "three steps here, then what the plan has"
    assert rows[-1]["usd_forecast_end"] == pytest.approx(rows[-1]["usd_spent"]) == pytest.approx(85)
    assert all(r["goodput"] == 1 for r in rows)
    values = values_of(first)
    assert values["usd/per_hour"] == pytest.approx(3600) and values["usd/forecast_end"] == pytest.approx(86) and values["goodput"] == 1


def test_goodput_counts_what_was_paid_and_not_useful(world: World) -> None:
    def at_step(step: int) -> None:
        if step == 3:
            world.now += 20
            raise RuntimeError("a bug")

    world.stages["sft"] = world.trains("sft", 4, 10.0, at_step)
    with pytest.raises(RuntimeError):
        run(world, "")
    world.stages["sft"] = world.trains("sft", 4, 10.0)
    run(world, "", resume=True)
    last = json.loads((world.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["goodput"] == pytest.approx(85 / (85 + 20 + 20), abs=1e-4), "20 s failed, 20 s replayed"


def test_the_live_line() -> None:
    out = io.StringIO()
    live = Live(Console(file=out, width=200), every=0.0)
    live.begin("grpo")
    live.update(3, 18, 0.5, 0.25, 210.0, Money(0.0123, 0.0377, 0.1024, 0.048, 0.93), 125.0)
    line = out.getvalue().splitlines()[-1]
    assert line == "grpo: 3/18 reward 0.25 210 tok/s $0.0123 at $0.102/h left $0.0377 end $0.0480 useful 93% 2:05 to go"
    assert "over: it will be cut short" in str(Money(0.0123, 0.0377, 0.1, 0.051, 1.0))


def test_a_resume_counts_the_storage_and_the_way_out(world: World, tmp_path: Path) -> None:
    """16 USD of seconds are left; the result's way out takes more beside."""
    book, ref = PriceBook(), PriceRef("a test", "2026-01-01")
    book.add("egress:test/0-", Price(Decimal(1), "gb", ref))
    book.add("m", Price(Decimal(1), "second", ref))
    with Ledger.open(tmp_path / "ledger.jsonl") as ledger:
        budget = Budget(Decimal(20), book, ledger)
        opening.refuse_a_poor_resume(tmp_path, budget, "m", Beside())
        with pytest.raises(UserError, match=r"20\.0000 USD of 20 are left and going on takes at least 21\.0000"):
            opening.refuse_a_poor_resume(tmp_path, budget, "m", Beside(leaving=(("egress:test/0-", 5.0),)))
