"""kill -9 at 20 random instants of one run, each followed by a resume: the final weights are the uninterrupted run's.

For each optimiser, because each has state of its own to bring back. Half of the instants are anywhere in a process's life,
half a moment after a training step.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import time
from pathlib import Path

import pytest
from tiny_run import RECIPE, World, entries, steps_done, wait_for, weights

KILLS = 20
# what the update holds beside the policy, and rollouts made ahead of it (docs/grpo.md)
UPDATES = {
    "ppo": 'variant = "ppo"\nkl = 0.05\noff_policy = 1',
    "held adapter": 'lora = 4\nkl = 0.05\nreference_every = 5\nupdates = 2\nold = "trainer"\nimportance = "truncated"\noff_policy = 1',
}


def recipe_for(world: World, folder: Path, optimiser: str) -> Path:
    """The tiny recipe, longer in training, with this optimiser ("+ lora": of adapters) in both stages that train, or with
    these keys of GRPO's update."""
    if optimiser in UPDATES:
        return world.recipe(folder, RECIPE.replace("lr = 1e-3", f"lr = 1e-3\n{UPDATES[optimiser]}"), epochs=10, steps=40)
    name, _, adapters = optimiser.partition(" + ")
    keys = f'optimiser = "{name}"' + ("\nlora = 4" if adapters else "")
    text = RECIPE.replace("lr = 1e-2", f"lr = 1e-2\n{keys}").replace("lr = 1e-3", f"lr = 1e-3\n{keys}")
    assert text.count(keys) == 2
    return world.recipe(folder, text, epochs=60, steps=40)


def closed(run: Path) -> bool:
    """Whether the run is finished and its books are closed: nothing to resume."""
    path = run / "run.json"
    return path.exists() and json.loads(path.read_text())["closed"]


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", ["adamw", "adamw8bit", "muon", "adamw + lora", *UPDATES])
def test_killed_at_twenty_random_instants(world: World, tmp_path: Path, optimiser: str) -> None:
    whole = tmp_path / "whole"
    began = time.monotonic()
    world.ok("run", recipe_for(world, whole, optimiser), "--runs", whole)
    length = time.monotonic() - began
    rng = random.Random(f"kill20/{optimiser}")
    landed, seen = 0, set()
    runs = tmp_path / "killed"
    recipe, run = recipe_for(world, runs, optimiser), runs / "tiny"
    for kill in range(KILLS):
        if closed(run):
            shutil.rmtree(run)  # it got to the end: the next kills fall into a new run
        before = entries(run)
        process = world.start("run", recipe, "--runs", runs, *(["--resume"] if (run / "run.json").exists() else []), often=True)
        if rng.random() < 0.5:  # somewhere in the process's life, its start-up included
            time.sleep(rng.uniform(0.2, 0.6 * length))
        else:  # inside training, a moment after a step, where files are being written
            stage = rng.choice(("sft", "grpo"))
            done = steps_done(run, stage)
            with contextlib.suppress(AssertionError):  # that stage was finished, or the run is: killed or ended all the same
                wait_for(lambda s=stage, n=done: steps_done(run, s) > n, process, seconds=length)
            time.sleep(rng.uniform(0.0, 0.05))
        landed += process.poll() is None
        process.kill()
        process.communicate()
        seen.add((steps_done(run, "sft"), steps_done(run, "grpo")))
        assert entries(run)[: len(before)] == before, f"kill {kill}: the ledger only grows"
    assert landed >= KILLS // 2 and len(seen) >= 5
    if not closed(run):
        world.ok("run", recipe, "--runs", runs, *(["--resume"] if (run / "run.json").exists() else []), often=True)
    assert weights(run) == weights(whole / "tiny")
