"""A recipe that `init --budget` wrote, run on the tiny model: under its budget, with a model, a score and a bill."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any


def test_a_compiled_recipe_runs(world: Any, tmp_path: Path) -> None:
    out = tmp_path / "made.toml"
    # the machine costs a dollar a second (tiny_run), the problems are 43 sums and 12 unseen ones
    done = world.ok("init", "--budget", "200", "--base", world.base, "--problems", world.problems, "--rate", "3600 USD/hour",
                    "--pick", "sft-grpo", "--out", out)  # fmt: skip
    assert "distil-sft" in done.out and "wrote" in done.out
    # the sizes that the budget bought are the unit tests' business: what is run here is every stage of the text, once
    sizes = ("grpo.steps=1", "grpo.prompts=2", "sft.epochs=1", "score-base.heldout=false", "score-last.heldout=false")
    small = [x for size in sizes for x in ("--set", size)]
    world.ok("run", out, "--runs", tmp_path / "runs", *small)
    folder = tmp_path / "runs" / "made"
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert (folder / "model" / "model.safetensors").exists() and (folder / "scores.json").exists()
    assert 'rate = "3600 USD/hour"' in out.read_text()
    assert 1 < Decimal(json.loads((folder / "bill.json").read_text())["headline"]["total"]) <= 200
