"""A recipe that says what a point is worth: training that gains nothing stops early, and the run ends with a model and a score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import RECIPE, World, attempts, metrics, steps_done


@pytest.mark.slow
def test_training_that_gains_nothing_stops_early(world: World, tmp_path: Path) -> None:
    """A model of random weights learns nothing that a probe could show, at any price."""
    text = RECIPE.replace("seed = 7", 'seed = 7\nworth = "0.000001 USD per point"')
    out = world.ok("run", world.recipe(tmp_path, text), "--runs", tmp_path).out
    run = tmp_path / "tiny"
    for stage, total in (("sft", 60), ("grpo", 16)):
        every = -(-total // 6)
        stopped = steps_done(run, stage)
        assert stopped == 2 * every < total and f"{stage}: stopped early at step {stopped} of {total}" in out
        assert (run / "checkpoints" / stage / f"step-{stopped}" / "manifest.json").exists()
        probes = [m for m in metrics(run) if m["stage"] == f"{stage}.probe"]
        assert [m["at_step"] for m in probes] == [0, every, 2 * every]
        assert [m["early_stop"] for m in probes[1:]] == [False, True] and {m["outcome"] for m in probes} == {"useful"}
        assert probes[-1]["usd_probes"] == pytest.approx(sum(m["usd"] for m in probes))
        assert probes[-1]["usd_since"] > sum(m["usd"] for m in probes[1:]), "the evaluations' own cost counts"
        held = {r["problem_id"] for p in (run / "stages" / "grpo").glob("step-*.jsonl") for r in map(json.loads, p.read_text().splitlines())}
        assert held, "and grpo learns from the rest of the pool"
    state = json.loads((run / "run.json").read_text())
    assert state["status"] == "finished" and state["weights"] == "checkpoints/grpo/step-6" and (run / "model").exists()
    (only,) = attempts(run).values()
    assert only.posted == pytest.approx(only.ended - only.begun, abs=0.1)


@pytest.mark.slow
def test_worth_without_problems_to_probe_with_is_refused(world: World, tmp_path: Path) -> None:
    rows = tmp_path / "talk.jsonl"
    rows.write_text('{"prompt": "1 + 1", "completion": "2"}\n' * 4)
    text = (
        'name = "tiny"\nbudget = "200 USD"\nrate = "3600 USD/hour"\nbase = "{base}"\nworth = "0.01 USD per point"\n'
        f'[[stage]]\nuse = "data"\ndataset = "{rows}"\n[[stage]]\nuse = "sft"\n'
    )
    line = world.run("run", world.recipe(tmp_path, text), "--runs", tmp_path).one_line()
    assert "worth needs problems that are not trained on" in line
