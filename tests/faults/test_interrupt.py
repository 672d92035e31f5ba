"""Ctrl-C stops with a checkpoint, and the resumed run ends in the same bits as one that nobody stopped."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from tiny_run import World, attempts, interrupt, same_end, steps_done, wait_for


@pytest.mark.parametrize(("stage", "after"), [("sft", 20), ("grpo", 3)])
def test_interrupted_and_resumed(world: World, finished: Path, tmp_path: Path, stage: str, after: int) -> None:
    recipe, run = world.recipe(tmp_path), tmp_path / "tiny"
    process = world.start("run", recipe, "--runs", tmp_path)
    wait_for(lambda: steps_done(run, stage) >= after, process)
    interrupt(process)
    stopped = world.finish(process)
    assert stopped.code == 130, stopped.err
    assert "Traceback" not in stopped.err
    assert "interrupted" in stopped.out
    state = json.loads((run / "run.json").read_text())
    assert state["status"] == "stopped" and "--resume" in state["reason"]
    (checkpoint,) = (run / "checkpoints" / stage).glob("step-*/manifest.json")
    step = json.loads(checkpoint.read_text())["step"]
    assert after <= step == steps_done(run, stage)
    assert (run / "bill.json").exists() and (run / "report.html").exists()

    went_on = world.ok("run", recipe, "--runs", tmp_path, "--resume")
    assert f"{step}/" not in went_on.out.partition(f"{stage}: started")[2].partition("\n")[0]
    same_end(run, finished)
    for a in attempts(run).values():
        assert set(a.seconds) <= {"useful", "idle"}, "an orderly stop loses nothing"
        assert a.posted == pytest.approx(a.ended - a.begun, abs=0.1)


def test_interrupted_while_it_loads(world: World, tmp_path: Path) -> None:
    """Ctrl-C before the first answer: no stage may take the empty hands for bad input."""
    recipe, run = world.recipe(tmp_path), tmp_path / "tiny"
    process = world.start("run", recipe, "--runs", tmp_path)
    wait_for(lambda: (run / "heartbeat").exists(), process)
    interrupt(process)
    stopped = world.finish(process)
    assert stopped.code == 130, stopped.err + stopped.out
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"


def test_stopped_before_the_first_pass_rate(world: World, tmp_path: Path) -> None:
    recipe, run = world.recipe(tmp_path), tmp_path / "tiny"
    process = world.start("run", recipe, "--runs", tmp_path)
    wait_for(lambda: (run / "traps.json").exists(), process)  # curate's free steps are done
    process.send_signal(signal.SIGTERM)
    stopped = world.finish(process)
    assert stopped.code == 130, stopped.err + stopped.out
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"


def test_twice_stops_at_once(world: World, tmp_path: Path) -> None:
    recipe, run = world.recipe(tmp_path, steps=2000), tmp_path / "tiny"
    process = world.start("run", recipe, "--runs", tmp_path)
    wait_for(lambda: steps_done(run, "sft") >= 3, process)
    interrupt(process)
    time.sleep(0.002)
    interrupt(process)
    stopped = world.finish(process)
    assert stopped.code == 130, stopped.err
    assert "Traceback" not in stopped.err
    (only,) = attempts(run).values()
    assert only.posted == pytest.approx(only.ended - only.begun, abs=0.1)
