"""The ceiling holds: a run stops under it with a model and a score, and what cannot be bought is refused first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_run
from tiny_run import RECIPE, World, attempts, entries, steps_done, total, wait_for

running = tiny_run.beside(__file__, "running")


def least(world: World, recipe: Path) -> float:
    return float(json.loads(world.ok("plan", recipe, "--json").out)["least_usd"])


def usable(run: Path) -> None:
    """A model that loads, and a score of those weights."""
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'shoestring[train]'")
    model = transformers.AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    ids = tokenizer("What is 1 + 1?", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=2, do_sample=False).shape[1] > ids["input_ids"].shape[1]
    state = json.loads((run / "run.json").read_text())
    scored = {r["model"] for r in json.loads((run / "scores.json").read_text()) if r["benchmark"] == "unseen"}
    assert state["model_name"] in scored


def stopped_under(run: Path, budget: float) -> dict:
    state = json.loads((run / "run.json").read_text())
    assert state["status"] == "stopped" and "ceiling" in state["reason"]
    assert total(run) < budget
    (last, *_) = reversed(attempts(run).values())
    assert last.reason == "budget"
    assert last.posted == pytest.approx(last.ended - last.begun, abs=0.1)
    usable(run)
    return state


def test_stops_before_a_stage_it_cannot_afford(world: World, tmp_path: Path) -> None:
    """Too little is left for the first step of GRPO: the weights of SFT are scored; a bigger budget ends the recipe."""
    head, _, rest = RECIPE.partition("[[stage]]")
    text = head + "[[stage]]" + rest.partition("[[stage]]")[2]  # without the base's own score: the ceiling is near
    recipe, run = world.recipe(tmp_path, text, steps=60, epochs=6), tmp_path / "tiny"
    budget = least(world, recipe) + 1
    first = world.run("run", recipe, "--runs", tmp_path, "--set", f"budget={budget} USD")
    assert first.code == 0, first.err
    state = stopped_under(run, budget)
    assert state["model_name"] == "sft"
    assert {s["name"]: s["status"] for s in state["stages"]}["grpo"] == "stopped"
    assert steps_done(run, "grpo") == 0
    before = entries(run)
    world.ok("run", recipe, "--runs", tmp_path, "--resume", "--set", "budget=200 USD")
    state = json.loads((run / "run.json").read_text())
    assert state["status"] == "finished" and state["model_name"] == "grpo" and steps_done(run, "grpo") == 60
    assert entries(run)[: len(before)] == before
    scored = [r["model"] for r in json.loads((run / "scores.json").read_text())]
    assert "grpo" in scored and "sft" not in scored, "the last evaluation was made again, of the last weights"
    usable(run)


@pytest.mark.slow
def test_stops_in_the_middle_and_goes_on_with_more(world: World, tmp_path: Path) -> None:
    """The end of a long GRPO is not affordable: it stops in the middle, is scored, and a bigger budget goes on."""
    recipe, run = world.recipe(tmp_path, steps=100_000), tmp_path / "tiny"
    small = ["--set", "sft.epochs=6"]
    budget = least(world, recipe) + 1
    first = world.run("run", recipe, "--runs", tmp_path, "--set", f"budget={budget} USD", *small)
    assert first.code == 0, first.err
    assert "stopped: the budget's ceiling was reached" in first.out
    state = stopped_under(run, budget)
    by = {s["name"]: s["status"] for s in state["stages"]}
    assert by["sft"] == "finished" and by["grpo"] == "stopped" and by["score-last"] == "finished"

    again = ["run", recipe, "--runs", tmp_path, "--resume", *small]
    before = entries(run)
    assert "budget" in world.run(*again, "--set", f"budget={budget} USD").one_line()
    assert entries(run) == before, "a refused resume costs nothing"
    scored = (run / "verdicts").stat().st_mtime_ns
    more = total(run) + 30
    went_on = world.run(*again, "--set", f"budget={more} USD")
    assert went_on.code == 0, went_on.err
    later = stopped_under(run, more)
    assert steps_done(run, "grpo") > 0 or later["model_name"] == "sft"
    assert (run / "verdicts").stat().st_mtime_ns > scored, "the weights have moved: scored again"
    assert entries(run)[: len(before)] == before


@pytest.mark.slow
def test_40_percent_of_the_quickstart(tmp_path: Path) -> None:
    """The real recipe on the real model with 40% of what it is planned to take."""
    running.need_the_model()
    recipe, command = running.RECIPE, running.command
    plan = json.loads(command("plan", recipe, "--json"))
    budget = 0.4 * plan["total"]["usd"]["mid"]
    if budget < float(plan["least_usd"]):
        pytest.skip("40% would be refused: on this machine the essential stages alone are planned to take more")
    print(command("run", recipe, "--runs", tmp_path, "--set", f"budget={budget:.6f} USD"))
    stopped_under(tmp_path / "quickstart", budget)


@pytest.mark.parametrize("share", [0.01, 0.9])
def test_too_small_to_start(world: World, tmp_path: Path, share: float) -> None:
    recipe = world.recipe(tmp_path)
    budget = share * least(world, recipe)
    for command in ("run", "plan"):
        runs = ["--runs", tmp_path] if command == "run" else []
        line = world.run(command, recipe, *runs, "--set", f"budget={budget:.4f} USD").one_line()
        assert "too small" in line and "raise the budget" in line
    assert not (tmp_path / "tiny").exists(), "nothing was begun"


def test_too_small_once_the_machine_is_measured(world: World, tmp_path: Path) -> None:
    """Without a profile the machine is measured first; that, and nothing else, is billed. More money goes on."""
    recipe, run = world.recipe(tmp_path), tmp_path / "tiny"
    env = {"SHOESTRING_CACHE": str(tmp_path / "cache")}
    done = world.run("run", recipe, "--runs", tmp_path, "--set", "budget=20 USD", env=env)
    assert "too small" in done.one_line()
    bill = json.loads((run / "bill.json").read_text())
    assert {line["stage"] for line in bill["lines"]} == {"start"} and 0 < total(run) < 30
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    assert (tmp_path / "cache" / "profile.json").exists()
    small = ["--set", "sft.epochs=1", "--set", "grpo.steps=1", "--set", "budget=200 USD"]
    assert "--name" in world.run("run", recipe, "--runs", tmp_path, "--resume", *small, env=env).one_line()
    process = world.start("run", recipe, "--runs", tmp_path, "--resume", env=env)
    wait_for(lambda: (run / "scores.json").exists(), process)
    process.kill()
    process.communicate()


def test_two_processes_on_one_run(world: World, tmp_path: Path) -> None:
    recipe, run = world.recipe(tmp_path), tmp_path / "tiny"
    process = world.start("run", recipe, "--runs", tmp_path)
    try:
        wait_for(lambda: steps_done(run, "score-base") > 0, process)
        assert "another process" in world.run("run", recipe, "--runs", tmp_path, "--resume").one_line()
        assert "another process" in world.run("run", recipe, "--runs", tmp_path).one_line()
        assert json.loads(world.ok("bill", run, "--json").out)["lines"], "the bill can be read while it runs"
        assert len(attempts(run)) == 1
    finally:
        process.kill()
        process.communicate()


def test_many_starts_cannot_overspend(world: World, tmp_path: Path) -> None:
    """Every start costs lease seconds: when too few are left to get anywhere, a resume is refused."""
    recipe, run = world.recipe(tmp_path), tmp_path / "tiny"
    process = world.start("run", recipe, "--runs", tmp_path)
    wait_for(lambda: steps_done(run, "score-base") > 0, process)
    process.kill()
    process.communicate()
    budget = sum(a.posted for a in attempts(run).values()) + 5
    line = world.run("run", recipe, "--runs", tmp_path, "--resume", "--set", f"budget={budget:.2f} USD").one_line()
    assert "are left" in line and "bigger budget" in line
