"""kill -9 in the middle of GRPO on the real 135M model: the quickstart's own recipe with fewer problems and steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import ROOT, attempts, entries, metrics, scores, steps_done, total, weights

from shoestring.cost.ledger import Ledger

SMALL = [
    "budget=1 USD", "score-base.per_family=4", "score-base.untrained_per_family=2", "score-base.shots=0",
    "curate.candidates=126", "curate.count=90", "sft.epochs=0.4", "score-sft.per_family=2", "grpo.steps=16",
    "score-grpo.per_family=4", "score-grpo.untrained_per_family=2", "score-grpo.heldout=false", "score-base.heldout=false",
]  # fmt: skip


def command(runs: Path, *more: str) -> list[str]:
    sets = [part for s in SMALL for part in ("--set", s)]
    recipe = str(ROOT / "recipes" / "quickstart.toml")
    return [sys.executable, "-m", "shoestring.cli", "run", recipe, "--runs", str(runs), *sets, *more]


def finish(runs: Path, *more: str) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command(runs, *more), env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
def test_killed_in_the_middle_of_grpo(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from shoestring.estimate.locate import locate
    from shoestring.records import UserError

    try:
        locate("smollm2-135m-instruct")
    except UserError as e:
        pytest.skip(str(e))
    whole, run = tmp_path / "whole" / "quickstart", tmp_path / "killed" / "quickstart"
    finish(tmp_path / "whole")

    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with open(tmp_path / "out", "w") as out:
        process = subprocess.Popen(command(tmp_path / "killed"), env=env, stdout=out, stderr=out)
    saved = run / "checkpoints" / "grpo"
    until = time.monotonic() + 900
    while True:  # a checkpoint and a step beyond it; on a machine too quick for one, near the end
        at = max((int(p.parent.name[5:]) for p in saved.glob("step-*/manifest.json")), default=0)
        if steps_done(run, "grpo") > (at or 13):
            break
        assert process.poll() is None and time.monotonic() < until, (tmp_path / "out").read_text()[-3000:]
        time.sleep(0.05)
    process.kill()
    process.wait()
    died, before, reached = time.time(), entries(run), steps_done(run, "grpo")
    assert 0 < reached < 16
    finish(tmp_path / "killed", "--resume")

    assert weights(run) == weights(whole), "the same bits as a run that nobody killed"
    assert scores(run) == scores(whole)
    assert entries(run)[: len(before)] == before
    with Ledger.open(run / "ledger.jsonl") as ledger:
        assert ledger.verify() == len(entries(run))
    first, second = attempts(run).values()
    assert first.posted == pytest.approx(died - first.begun, abs=2.0)
    assert second.posted == pytest.approx(second.ended - second.begun, abs=0.1)
    assert second.seconds.get("replayed", 0.0) <= 60
    again = [m["step"] for m in metrics(run) if m["attempt"] == "a2" and m["outcome"] == "replayed"]
    assert again == list(range(reached - len(again) + 1, reached + 1))
    assert total(run) < 1 and json.loads((run / "run.json").read_text())["status"] == "finished"
    print(f"killed after step {reached} of 16 (checkpoint at {at}); replayed {second.seconds.get('replayed', 0.0):.1f} s ({len(again)} steps)")
