"""Child runs under one ceiling: what they spend together, going on after a kill, shared stages, budgets that do not suffice."""

from __future__ import annotations

import json
import os
import sys
import threading
from decimal import Decimal
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from ablate_world import TEXT, Ablations, ablations

from shoestring.ablate import planning, running
from shoestring.ablate.pool import Pool
from shoestring.cost.ledger import Ledger
from shoestring.cost.prices import PriceBook
from shoestring.records import UserError
from shoestring.report.ablation import stopped


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ablations:
    return ablations(tmp_path, monkeypatch)


def result(world: Ablations) -> dict:
    return json.loads((world.out / "ablation.json").read_text())


def spent(world: Ablations, runner: running.Runner) -> float:
    """Dollars of all children by their own ledgers."""
    children = [Ledger.read(p) for p in world.out.glob("*/ledger.jsonl")]
    return float(sum(runner.book.cost(c.usages) for c in children))


def test_every_arm_and_seed_runs_once_and_the_money_adds_up(world: Ablations) -> None:
    runner = world.runner(world.load())
    assert runner.run()
    assert sorted(world.ran) == sorted(f"{a}-s{s} {t}" for a in ("plain", "other") for s in (0, 1) for t in ("sft", "grpo"))
    made = result(world)
    assert made["status"] == "finished" and made["runs"] == made["of"] == 4
    assert float(made["spent_usd"]) == pytest.approx(spent(world, runner), abs=1e-6)
    each = sum(float(s["usd"]) for a in made["arms"] for s in a["seeds"])
    assert each == pytest.approx(spent(world, runner), abs=1e-5)
    assert made["arms"][1]["gain"]["gain"] == pytest.approx(made["arms"][1]["mean"] - made["arms"][0]["mean"])
    assert (world.out / "report.html").exists()
    kept = Ledger.read(world.out / "ledger.jsonl")
    assert not kept.reservations and {u.attempt.partition("/")[0] for u in kept.usages} == {
        "plain-s0", "other-s0", "plain-s1", "other-s1",
    }  # fmt: skip


def test_the_clock_of_the_children_has_no_gaps(world: Ablations) -> None:
    start = world.world.now
    runner = world.runner(world.load())
    runner.run()
    assert spent(world, runner) == pytest.approx(world.world.now - start, abs=0.05)  # a dollar a second


def test_shared_stages_run_once_and_are_named(world: Ablations) -> None:
    runner = world.runner(world.load(top='shared = ["first", "sft"]\nevaluate = ["bundled:gcd"]', changed="grpo.lr"))
    assert runner.run()
    assert sorted(world.ran) == sorted(["shared sft", *(f"{a}-s{s} grpo" for a in ("plain", "other") for s in (0, 1))])
    state = json.loads((world.out / "other-s1" / "run.json").read_text())
    assert [(r["status"], r.get("run")) for r in state["stages"][:2]] == [("reused", "../shared")] * 2
    assert state["model_name"] == "grpo"
    made = result(world)
    assert made["shared"]["stages"] == ["first", "sft"] and float(made["shared"]["usd"]) > 40
    assert made["base"]["model"] == "org/model" and made["base"]["run"].endswith("shared")
    assert all(float(s["usd"]) < 60 for a in made["arms"] for s in a["seeds"])  # their own: grpo's 40 s and a score
    assert [r["arm"] for r in made["out_of_domain"]] == ["plain", "other"]
    planned = json.loads((world.out / "other-s1" / "plan.json").read_text())
    reused = [s for s in planned["stages"] if s["name"] in ("first", "sft")]
    assert all(s["usd"]["mid"] == 0 and s["notes"] for s in reused)


class Killed(BaseException):
    """As a kill is: nothing of the process runs on."""


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_kill_between_two_runs_is_gone_on_with(world: Ablations, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Killed when `after` runs have ended and before the ablation's own ledger has them."""
    settle, ended = running.Runner._settle, []

    def cut(self: running.Runner, job: running.Job) -> None:
        ended.append(job)
        if len(ended) == after + 1:
            raise Killed
        settle(self, job)

    ablation = world.load()
    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(running.Runner, "_settle", cut)
        world.runner(ablation).run()
    before = list(world.ran)
    assert len(before) == 2 * (after + 1)
    runner = world.runner(ablation, resume=True)
    assert runner.run()
    assert world.ran[: len(before)] == before and len(world.ran) == len(set(world.ran)) == 8  # nothing ran twice
    assert float(result(world)["spent_usd"]) == pytest.approx(spent(world, runner), abs=1e-6)
    assert not Ledger.read(world.out / "ledger.jsonl").reservations


def test_an_interrupted_child_is_gone_on_with_at_its_step(world: Ablations) -> None:
    ablation, stage, steps = world.load(), world.world.stages["sft"], []

    def interrupt(step: int) -> None:
        steps.append(step)
        if len(steps) == 6:  # the second child's second step
            os.kill(os.getpid(), 2)

    world.world.stages["sft"] = world.world.trains("sft", 4, 10.0, interrupt)
    runner = world.runner(ablation)
    assert not runner.run()
    assert result(world)["status"] == "partial"
    world.world.stages["sft"] = world.world.trains("sft", 4, 10.0, steps.append)
    again = world.runner(ablation, resume=True)
    assert again.run() and stage is not None
    assert steps == [1, 2, 3, 4] * 4  # no step twice, none left out
    assert float(result(world)["spent_usd"]) == pytest.approx(spent(world, again), abs=1e-6)


def test_a_budget_that_is_too_small_is_refused_before_anything_is_spent(world: Ablations) -> None:
    with pytest.raises(UserError, match=r"ab\.toml: budget 200 USD is too small: the runs need about \d+"):
        world.runner(world.load("200")).run()
    assert not world.out.exists() and not world.ran


def test_the_ceiling_holds_where_stages_take_four_times_their_plan(world: Ablations) -> None:
    """Every run ends under its share with a score, none takes what the others were promised, and the result says so."""
    world.world.stages["sft"] = world.world.trains("sft", 4, 40.0)
    runner = world.runner(world.load("480"))
    assert runner.run()
    assert spent(world, runner) <= 480
    made = result(world)
    assert [s["status"] for a in made["arms"] for s in a["seeds"]] == ["stopped"] * 4
    assert all(s["accuracy"] is not None for a in made["arms"] for s in a["seeds"])
    each = [float(s["usd"]) for a in made["arms"] for s in a["seeds"]]
    assert max(each) < 1.4 * min(each)
    assert len(stopped(made)) == 4


def test_what_a_ceiling_stopped_goes_on_under_a_bigger_budget(world: Ablations) -> None:
    world.world.stages["sft"] = world.world.trains("sft", 4, 40.0)
    assert world.runner(world.load("480")).run()
    assert {s["status"] for a in result(world)["arms"] for s in a["seeds"]} == {"stopped"}
    assert world.runner(world.load("480"), resume=True).run(), "nothing is left to do under the same budget"
    assert {s["status"] for a in result(world)["arms"] for s in a["seeds"]} == {"stopped"}
    runner = world.runner(world.load("4000"), resume=True)
    assert runner.run() and spent(world, runner) <= 4000
    assert {s["status"] for a in result(world)["arms"] for s in a["seeds"]} == {"finished"}


def test_shared_stages_that_a_ceiling_stopped_go_on(world: Ablations) -> None:
    """Every arm reads them: half of them would be another ablation."""
    quick, slow = world.world.stages["sft"], world.world.trains("sft", 4, 400.0)
    world.world.stages["sft"] = slow
    keys = {"top": 'shared = ["first", "sft"]', "changed": "grpo.lr"}
    with pytest.raises(UserError, match="its stage 'sft' is stopped; use --resume, with a bigger budget if there is little left"):
        world.runner(world.load(**keys)).run()
    world.world.stages["sft"] = quick
    assert world.runner(world.load(**keys), resume=True).run()
    assert {s["status"] for a in result(world)["arms"] for s in a["seeds"]} == {"finished"}


def test_what_does_not_fit_any_more_is_not_begun(world: Ablations) -> None:
    assert world.runner(world.load(), only=("plain",)).run()
    with pytest.raises(UserError, match=r"budget 230 USD, of which \d+\.\d+ are spent, is too small"):
        world.runner(world.load("230"), resume=True).run()
    assert not any("other" in r for r in world.ran)


@pytest.mark.parametrize("limit", [100, 130, 250, 10_000])
def test_two_processes_cannot_overspend_together(tmp_path: Path, limit: int) -> None:
    book = PriceBook.default()
    from shoestring.recipe import MachineSpec

    sku = book.machine_sku(MachineSpec(), Decimal(3600))
    pools = [Pool(tmp_path / "ledger.jsonl", Decimal(limit), book, sku) for _ in range(4)]
    got: list[Decimal] = []

    def work(pool: Pool, n: int) -> None:
        for i in range(5):
            if (held := pool.hold(f"p{n}-{i}", Decimal(30))) is not None:
                got.append(held)

    threads = [threading.Thread(target=work, args=(p, n)) for n, p in enumerate(pools)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sum(got) == 30 * min(20, limit // 30)
    assert pools[0].left() == limit - sum(got)


def test_a_run_that_another_process_works_on_is_left_to_it(world: Ablations) -> None:
    """Its reservation stays, the other runs are done beside it, and the rest is for later."""
    import fcntl

    ablation = world.load()
    runner = world.runner(ablation)
    (world.out / "plain-s0").mkdir(parents=True)
    with open(world.out / "plain-s0" / "run.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not runner.run()
    assert "plain-s0: another process works on it" in world.said.getvalue()
    assert result(world)["runs"] == 3 and not any("plain-s0" in r for r in world.ran)
    assert world.runner(ablation, resume=True).run() and result(world)["status"] == "finished"


def test_resume_and_fresh_are_told_apart(world: Ablations) -> None:
    ablation = world.load()
    with pytest.raises(UserError, match="there is no ablation to resume"):
        world.runner(ablation, resume=True).run()
    world.runner(ablation, only=("plain",), seeds=(0,)).run()
    with pytest.raises(UserError, match="add --resume"):
        world.runner(ablation).run()
    assert result(world)["runs"] == 1
    changed = world.load(changed="grpo.lr", text=TEXT.replace('name = "plain"', 'name = "plain"\nset = {{ "sft.lr" = 1e-5 }}'))
    with pytest.raises(UserError, match=r'ab\.toml:7: arm "plain" has changed since its runs'):
        world.runner(changed, resume=True).run()
    assert world.runner(ablation, resume=True).run() and result(world)["runs"] == 4


def test_equal_dollars_are_equal_by_the_plan(world: Ablations, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of every training stage by one factor; the dollars of making the model meet `usd`."""
    from types import SimpleNamespace

    from shoestring.stages.context import Facts, Forecast

    seconds = {"sft": lambda c: 10 * c.epochs, "grpo": lambda c: 2.0 * c.steps, "evaluate": lambda c: 6.0}

    def module(use: str) -> object:
        def forecast(config: object, facts: Facts) -> Forecast:
            return Forecast((facts.seconds(seconds[use](config)),), trains=use != "evaluate", essential=use == "evaluate")

        return SimpleNamespace(forecast=forecast, run=None)

    monkeypatch.setattr(planning.stages, "module", module)
    text = 'name = "ab"\nbudget = "1000 USD"\nrecipe = "recipe.toml"\nseeds = [0]\n' + "".join(
        f'[[arm]]\nname = "{n}"\nusd = "30"\nstages = {s}\n'
        for n, s in (("s", '["sft", "last"]'), ("r", '["grpo", "last"]'), ("sr", '["sft", "grpo", "last"]'))
    )
    path = world.folder / "ab.toml"
    path.write_text(text)
    ablation = running.Ablation(**{**vars(world.load(text=text.replace("{", "{{"))), "path": str(path)})
    rows = planning.all_arms(ablation, ablation.arms, world.runner(ablation).book)
    assert [r.making for r in rows] == pytest.approx([30, 30, 30], rel=planning.NEAR)
    assert rows[0].scaled == {"sft.epochs": pytest.approx(3.0, rel=0.01)} and rows[1].scaled == {"grpo.steps": 15}
    both = rows[2].scaled
    assert both["sft.epochs"] / 2 == pytest.approx(both["grpo.steps"] / 24, rel=0.1)
    made = ablation.recipe(ablation.arms[2], scaled=both)
    assert made.stages[1].config.steps == both["grpo.steps"]
