"""kill -9 at any instant: the ledger loses nothing, and the resumed run ends in the same bits."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from tiny_run import World, attempts, entries, metrics, same_end, steps_done, total, wait_for

BEAT = 1.5  # seconds that a killed attempt's end may be off: the heartbeat and a busy machine


def killed_at(world: World, recipe: Path, runs: Path, seconds: float, resume: bool) -> bool:
    """Start, kill -9 after `seconds`; whether it was still running. Checks what the kill left behind."""
    run = runs / "tiny"
    before = entries(run)
    process = world.start("run", recipe, "--runs", runs, *(["--resume"] if resume else []), often=True)
    time.sleep(seconds)
    alive = process.poll() is None
    process.kill()
    _, err = process.communicate()
    if not alive:
        assert process.returncode == 0, err
    after = entries(run)
    assert after[: len(before)] == before, "the ledger only grows"
    return alive


def check_money(run: Path) -> None:
    found = attempts(run)
    for a in found.values():
        if a.reason == "killed":
            assert "failed" in a.seconds or a.posted > 0
        else:
            assert a.posted == pytest.approx(a.ended - a.begun, abs=0.1)
    assert total(run) == pytest.approx(sum(a.posted for a in found.values()), abs=1e-3)
    assert total(run) < 200


def storm(world: World, finished: Path, runs: Path, kills: int, seed: int) -> None:
    """`kills` kills at random instants of the run; every attempt gets a little further than its start-up."""
    recipe, run = world.recipe(runs), runs / "tiny"
    rng = random.Random(seed)
    truth: dict[str, float] = {}
    killed = 0
    for _ in range(kills):
        resume = (run / "run.json").exists()
        began = time.time()
        alive = killed_at(world, recipe, runs, rng.uniform(0.8, 5.5), resume)
        killed += alive
        names = list(attempts(run))
        if names and names[-1] not in truth and attempts(run)[names[-1]].begun >= began - 0.5:
            truth[names[-1]] = time.time()
        if not alive:
            break
    else:
        resume = (run / "run.json").exists()
        world.ok("run", recipe, "--runs", runs, *(["--resume"] if resume else []), often=True)
    assert killed >= 3
    same_end(run, finished)
    check_money(run)
    for name, died in truth.items():
        a = attempts(run)[name]
        if a.reason == "killed":
            assert a.posted == pytest.approx(died - a.begun, abs=BEAT), f"{name} of {truth}"


def test_killed_three_times(world: World, finished: Path, tmp_path: Path) -> None:
    storm(world, finished, tmp_path, 3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_killed_many_times(world: World, finished: Path, tmp_path: Path, seed: int) -> None:
    storm(world, finished, tmp_path, 12, seed)


@pytest.mark.parametrize("stage", [pytest.param("sft", marks=pytest.mark.slow), "grpo"])
def test_killed_between_checkpoints(world: World, finished: Path, tmp_path: Path, stage: str) -> None:
    """Steps since the checkpoint are done again and billed as replayed; the killed seconds are billed as failed."""
    recipe, run = world.recipe(tmp_path), tmp_path / "tiny"
    process = world.start("run", recipe, "--runs", tmp_path, often=True)
    saved = run / "checkpoints" / stage

    def steps_beyond() -> bool:
        last = max((int(p.parent.name[5:]) for p in saved.glob("step-*/manifest.json")), default=0)
        return last > 0 and steps_done(run, stage) >= last + 1

    wait_for(steps_beyond, process)
    process.kill()
    process.communicate()
    died = time.time()
    before = entries(run)
    reached = steps_done(run, stage)
    known = max(int(p.parent.name[5:]) for p in saved.glob("step-*/manifest.json"))

    done = world.ok("run", recipe, "--runs", tmp_path, "--resume", often=True)
    same_end(run, finished)
    assert entries(run)[: len(before)] == before
    first, second = attempts(run).values()
    assert first.reason == "killed"
    assert ("failed" in first.seconds) == ("billed as failed" in done.out)  # neither: the last post came after the last beat
    assert first.posted == pytest.approx(died - first.begun, abs=BEAT)
    assert second.posted == pytest.approx(second.ended - second.begun, abs=0.1)
    again = [m for m in metrics(run) if m["attempt"] == "a2" and m["stage"] == stage]
    assert [m["step"] for m in again if m["outcome"] == "replayed"] == list(range(known + 1, reached + 1))
    assert again[0]["step"] == known + 1, "what the checkpoint holds is not done again"
    assert sum(m["seconds"] for m in again if m["outcome"] == "replayed") == pytest.approx(
        second.seconds.get("replayed", 0.0), abs=0.05
    )
    check_money(run)


def test_killed_while_it_closes(world: World, finished: Path, tmp_path: Path) -> None:
    """A kill between the last stage and the page leaves a run that --resume closes."""
    recipe, run = world.recipe(tmp_path), tmp_path / "tiny"
    process = world.start("run", recipe, "--runs", tmp_path)
    wait_for(lambda: (run / "model.part").exists() or (run / "model").exists(), process)
    process.kill()
    process.communicate()
    world.ok("run", recipe, "--runs", tmp_path, "--resume")
    same_end(run, finished)
    assert (run / "report.html").exists()
    check_money(run)


def test_the_last_heartbeat_is_never_lost(world: World, tmp_path: Path) -> None:
    """The file is replaced whole, so that a kill cannot fall between emptying and writing it."""
    recipe, run = world.recipe(tmp_path), tmp_path / "tiny"
    process = world.start("run", recipe, "--runs", tmp_path)
    wait_for(lambda: (run / "heartbeat").exists(), process)
    seen = set()
    for _ in range(800):
        seen.add((run / "heartbeat").read_text())
        time.sleep(0.003)
    process.kill()
    process.communicate()
    assert "" not in seen and len(seen) > 1
    assert all(abs(float(s) - time.time()) < 60 for s in seen)
