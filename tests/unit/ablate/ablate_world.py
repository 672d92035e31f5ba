"""Ablations with stages made of a few lines (tests/e2e/stub_run.py): a clock that only they move, a dollar a second."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from stub_run import make

from shoestring import stages
from shoestring.ablate import file, running
from shoestring.records import StepReport
from shoestring.stages.context import Context, write_lines

RECIPE = """
name = "r"
budget = "1 USD"
rate = "3600 USD/hour"
base = "org/model"
[[stage]]
use = "evaluate"
name = "first"
sources = ["bundled:lcm"]
[[stage]]
use = "sft"
[[stage]]
use = "grpo"
[[stage]]
use = "evaluate"
name = "last"
sources = ["bundled:lcm"]
"""
TEXT = """
name = "ab"
budget = "{budget} USD"
recipe = "recipe.toml"
seeds = [0, 1]
{top}
[[arm]]
name = "plain"
[[arm]]
name = "other"
set = {{ "{changed}" = 1e-4 }}
"""
PROBLEMS = 40


def right(model: str, arm: str, seed: int, problem: int) -> int:
    """A verdict that is a fixed function of who is asked what; the arm "other" is right more often."""
    draw = hashlib.sha256(f"{model}/{arm}/{seed}/{problem}".encode()).digest()[0] / 256
    return int(draw < {"base": 0.2}.get(model, 0.75 if arm == "other" else 0.4))


class Ablations:
    """A folder with a recipe and ablations' files, and the runs that they make."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.world = tmp_path, make(tmp_path, monkeypatch)
        self.out = tmp_path / "runs" / "ab"
        self.ran: list[str] = []  # training stages that began, as "folder stage"
        self.world.stages["evaluate"] = self.scores(5.0)
        for name in ("sft", "grpo"):
            self.world.stages[name] = self.noted(name)
        (tmp_path / "recipe.toml").write_text(RECIPE)
        monkeypatch.setattr(running.planning.plan, "EXPORT_SECONDS", 1.0)
        monkeypatch.setattr(running.results, "DRAWS", 100)
        monkeypatch.setattr(running, "DRAFT_DRAWS", 20)

    def noted(self, name: str) -> Any:
        inner = self.world.trains(name, 4, 10.0)

        def run(config: Any, inputs: Any, context: Context) -> Generator:
            self.ran.append(f"{context.run_dir.name} {name}")
            yield from inner(config, inputs, context)

        return run

    def scores(self, seconds: float) -> Any:
        def run(config: Any, inputs: Any, context: Context) -> Generator:
            if (yield context.intent(1, seconds)) == "stop":
                return
            self.world.now += seconds
            yield StepReport(context.stage, 1, 1, seconds, reward=0.5)
            arm, _, seed = context.run_dir.name.partition("-s")
            asked = [("unseen", i) for i in range(PROBLEMS)] + [("untrained", i) for i in range(10 if config.untrained else 0)]
            rows = [
                {
                    "benchmark": b, "family": f"f{i % 2}", "problem_id": f"{b}{i}", "prompting": "zero-shot", "prompt": "?",
                    "answer": str(i), "text": "", "strict": (x := right(context.model_name, arm, int(seed or 0), i)), "lenient": x,
                }
                for b, i in asked
            ]  # fmt: skip
            head = {"measured": context.model_name, "usd": context.accrued()}
            write_lines(context.run_dir / "verdicts" / f"{context.position:02d}-{context.model_name}.jsonl", [head, *rows])

        return run

    def write(self, budget: str = "1000", top: str = "", text: str = TEXT, changed: str = "sft.lr") -> Path:
        """The ablation's file. changed: the setting in which the arm "other" differs."""
        path = self.folder / "ab.toml"
        path.write_text(text.format(budget=budget, top=top, changed=changed))
        return path

    def load(self, *args: Any, **rest: Any) -> file.Ablation:
        return file.load(self.write(*args, **rest), stages.configs())

    def runner(self, ablation: file.Ablation, resume: bool = False, only: tuple[str, ...] = (), seeds: Any = None) -> running.Runner:
        self.said = io.StringIO()
        return running.Runner(
            ablation, self.out, Console(file=self.said, width=200), seeds or ablation.seeds, only, resume, self.world.now,
            self.world.clock,
        )  # fmt: skip


def ablations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ablations:
    return Ablations(tmp_path, monkeypatch)
