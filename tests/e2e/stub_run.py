"""The pipeline's own tests: stages made of a few lines, a clock that only they move, no torch."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from shoestring import export, pipeline, probe, recipe, stages
from shoestring.estimate import history
from shoestring.estimate.flops import ModelShape
from shoestring.estimate.machine import Profile
from shoestring.pipeline import Pipeline
from shoestring.records import Artifact, Checkpoint, Quantity, StepReport
from shoestring.stages.context import Context, Facts, Forecast

SHAPE = ModelShape(layers=2, hidden=32, heads=2, kv_heads=1, head_dim=16, intermediate=64, vocab=100, tied=True)


def recipe_text(*stages: str, name: str = "x", budget: str = "{budget}", rate: str = "3600", base: str = "org/model",
                more: str = "") -> str:  # fmt: skip
    """A recipe's text. stages: "use" or "use name"; what is left open, as {budget} is, is for the test to fill in."""
    rows = [f'name = "{name}"', f'budget = "{budget} USD"', f'rate = "{rate} USD/hour"', f'base = "{base}"', *more.splitlines()]
    for stage in stages:
        use, _, called = stage.partition(" ")
        rows += ["[[stage]]", f'use = "{use}"']
        if called:
            rows.append(f'name = "{called}"')
        if use == "evaluate":
            rows.append('sources = ["bundled:lcm"]')
    return "\n".join(rows) + "\n"


TEXT = recipe_text("sft", "grpo", "evaluate")
Stage = Callable[[Any, Any, Context], Generator]


def write_verdict(context: Context) -> None:
    """That this model was scored, as a score leaves it."""
    verdicts = context.run_dir / "verdicts"
    verdicts.mkdir(exist_ok=True)
    (verdicts / f"{context.position:02d}-{context.model_name}.jsonl").write_text("{}\n")


class World:
    """Fake stages by name, a fake clock, and a run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now = folder / "x", time.time()
        self.clock: Callable[[], float] = lambda: self.now
        self.stages: dict[str, Stage] = {
            "sft": self.trains("sft", 4, 10.0), "grpo": self.trains("grpo", 4, 10.0), "evaluate": self.scores(5.0),
        }  # fmt: skip
        self.asked: list[tuple[str, int, str]] = []
        self.seconds = {"sft": 40.0, "grpo": 40.0, "evaluate": 6.0}

    def module(self, use: str) -> Any:
        def forecast(config: Any, facts: Facts) -> Forecast:
            return Forecast((facts.seconds(self.seconds[use]),), trains=use != "evaluate", essential=use == "evaluate")

        return SimpleNamespace(forecast=forecast, run=lambda *a: self.stages[use](*a))

    def trains(self, name: str, total: int, seconds: float, at: Callable[[int], None] = lambda step: None) -> Stage:
        """A stage that keeps its step in a file when it is stopped, and a checkpoint at the end."""

        def run(config: Any, inputs: Any, context: Context) -> Generator:
            kept = context.folder / "step"
            context.folder.mkdir(parents=True, exist_ok=True)
            step = int(kept.read_text()) if kept.exists() else 0
            while step < total:
                answer = yield context.intent(step + 1, seconds * 1.5)
                self.asked.append((name, step + 1, str(answer)))
                if answer == "stop":
                    kept.write_text(str(step))
                    yield Checkpoint(context.checkpoints / f"step-{step}", name, step, context.recipe_hash)
                    return
                at(step + 1)
                self.now += seconds
                step += 1
                yield StepReport(name, step, total, seconds, 10, 10, loss=1.0 / step)
            yield Checkpoint(context.checkpoints / f"step-{total}", name, total, context.recipe_hash, final=True)
            yield Artifact("weights", context.checkpoints / f"step-{total}")

        return run

    def scores(self, seconds: float) -> Stage:
        def run(config: Any, inputs: Any, context: Context) -> Generator:
            if (yield context.intent(1, context.first(60.0).upper())) == "stop":
                return
            self.now += seconds
            yield StepReport(context.stage, 1, 1, seconds, reward=0.5)
            write_verdict(context)

        return run

    def pipeline(self, budget: str = "500", resume: bool = False, text: str = TEXT, **fill: str) -> Pipeline:
        """fill: what else the text leaves open."""
        made = recipe.loads(text.format(budget=budget, **fill), stages.configs())
        return Pipeline(made, self.folder, Console(file=io.StringIO()), resume, self.clock(), self.clock)

    def state(self) -> dict[str, Any]:
        return json.loads((self.folder / "run.json").read_text())

    def bill(self) -> dict[str, float]:
        sums: dict[str, float] = {}
        for line in json.loads((self.folder / "bill.json").read_text())["lines"]:
            sums[line["outcome"]] = sums.get(line["outcome"], 0.0) + float(line["amount"])
        return sums

    def statuses(self) -> dict[str, str]:
        return {r["name"]: r["status"] for r in self.state()["stages"]}


def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world in `tmp_path`; what the pipeline would ask of models and machines is answered from here."""
    made = World(tmp_path)
    rate = Quantity(1e9, 1e9, 1e9, "measured")
    profile = Profile(rate, rate, rate, rate, rate, "measured")
    configs = stages.configs()
    monkeypatch.setattr(stages, "configs", lambda: configs)
    monkeypatch.setattr(stages, "module", made.module)
    for module in (pipeline, pipeline.plan, export):
        monkeypatch.setattr(module, "model_shape", lambda base: SHAPE)
    monkeypatch.setattr(pipeline.plan, "current_profile", lambda: profile)
    monkeypatch.setattr(export, "check_base", lambda base: None)
    monkeypatch.setattr(export, "base_folder", lambda base: tmp_path / "base")
    monkeypatch.setattr(export, "write_model", lambda run, *_: (run / "model").mkdir(exist_ok=True))
    monkeypatch.setattr(probe, "measured_profile", lambda base, shape: (profile, False))
    monkeypatch.setattr(pipeline.plan, "START_SECONDS", 3.0)
    monkeypatch.setattr(history, "TYPICAL", {})  # these stages take what they say,
    monkeypatch.setattr(history, "correction", lambda *_: None)  # whatever runs of other tests have left
    return made
