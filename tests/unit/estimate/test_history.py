"""What earlier runs took mends the next plan: kept from whole runs only, carried over to other rates, never trusted blindly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoestring.estimate import history
from shoestring.estimate.machine import Profile
from shoestring.records import Quantity


def rate(x: float) -> Quantity:
    return Quantity(x, x, x, "measured")


PROFILE = Profile(rate(5e11), rate(1000), rate(3000), rate(1), rate(4e8), "measured")


def a_run(folder: Path, **other: Any) -> Path:
    stages = [
        {"use": "sft", "name": "sft", "minutes": {"mid": 2.0}},
        {"use": "evaluate", "name": "a", "minutes": {"mid": 0.5}}, {"use": "evaluate", "name": "b", "minutes": {"mid": 0.5}},
        {"use": "distill", "name": "distill", "minutes": {"mid": 0.01}},
    ]  # fmt: skip
    plan = {
        "stages": stages, "base": {"parameters": 135}, "machine": {"sku": "this:aws/x/machine-second"},
        "profile": {"train_flops": {"mid": 5e11}, "decode_tokens": {"mid": 1000}, "basis": "measured"},
    }  # fmt: skip
    took = {"sft": 150.0, "a": 30.0, "b": 24.0, "distill": 9.0}
    run = {"attempts": 1, "stages": [{"name": k, "status": "finished", "seconds": v} for k, v in took.items()]} | other
    folder.mkdir(exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def test_a_run_mends_the_next_plan(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    assert history.correction("sft", 135, PROFILE, path) is None
    assert history.keep(a_run(tmp_path / "r"), path)
    assert history.correction("sft", 135, PROFILE, path) == pytest.approx(1.25)
    assert history.correction("evaluate", 135, PROFILE, path) == pytest.approx(0.9)
    assert history.correction("distill", 135, PROFILE, path) is None, "half a second says nothing"
    assert history.correction("sft", 136, PROFILE, path) is None, "another model"
    faster = replace(PROFILE, train_flops=rate(6e11))
    assert history.correction("sft", 135, faster, path) == pytest.approx(1.5), "the run took what it took"
    assert history.correction("sft", 135, replace(PROFILE, basis="literature"), path) is None


def test_what_was_mended_is_not_mended_twice(tmp_path: Path) -> None:
    path, run = tmp_path / "runs.json", a_run(tmp_path / "r")
    plan = json.loads((run / "plan.json").read_text())
    plan["stages"][0] |= {"mended": 1.25, "minutes": {"mid": 2.5}}
    (run / "plan.json").write_text(json.dumps(plan))
    assert history.keep(run, path)
    assert history.correction("sft", 135, PROFILE, path) == pytest.approx(1.25)


def test_only_whole_runs_of_here_count(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    assert not history.keep(a_run(tmp_path / "r", attempts=2), path)
    stopped = [{"name": "sft", "status": "stopped", "seconds": 20.0}]
    assert not history.keep(a_run(tmp_path / "r", stages=stopped), path)
    assert not history.keep(tmp_path, path) and not path.exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"x": 3}'])
def test_a_broken_history_is_no_history(tmp_path: Path, text: str) -> None:
    path = tmp_path / "runs.json"
    path.write_text(text)
    assert history.correction("sft", 135, PROFILE, path) is None
    assert history.keep(a_run(tmp_path / "r"), path)
    assert history.correction("sft", 135, PROFILE, path) == pytest.approx(1.25)


def test_the_middle_of_the_last_runs_and_none_that_was_disturbed(tmp_path: Path) -> None:
    path, run = tmp_path / "runs.json", a_run(tmp_path / "r")
    for seconds in (600.0, 130.0, 140.0, 150.0):
        state = json.loads((run / "run.json").read_text())
        state["stages"][0]["seconds"] = seconds
        (run / "run.json").write_text(json.dumps(state))
        assert history.keep(run, path)
    assert history.correction("sft", 135, PROFILE, path) == pytest.approx(140 / 120)
