"""kill -9 in the middle of GRPO on the real 135M model: the quickstart's own recipe with fewer problems and steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_run
from tiny_run import attempts, entries, metrics, scores, steps_done, total, weights

from shoestring.cost.ledger import Ledger

SMALL = [
    "budget=1 USD", "score-base.per_family=4", "score-base.untrained_per_family=2", "score-base.shots=0",
    "curate.candidates=126", "curate.count=90", "sft.epochs=0.4", "score-sft.per_family=2", "grpo.steps=16",
    "score-grpo.per_family=4", "score-grpo.untrained_per_family=2", "score-grpo.heldout=false", "score-base.heldout=false",
]  # fmt: skip


running = tiny_run.beside(__file__, "running")


def args(runs: Path, *more: str) -> tuple[object, ...]:
    return ("run", running.RECIPE, "--runs", runs, *running.sets(SMALL), *more)


@pytest.mark.slow
def test_killed_in_the_middle_of_grpo(tmp_path: Path) -> None:
    running.need_the_model()
    whole, run = tmp_path / "whole" / "quickstart", tmp_path / "killed" / "quickstart"
    running.command(*args(tmp_path / "whole"))
    saved = run / "checkpoints" / "grpo"
    at = 0

    def beyond() -> bool:  # a checkpoint and a step beyond it; on a machine too quick for one, near the end
        nonlocal at
        at = max((int(p.parent.name[5:]) for p in saved.glob("step-*/manifest.json")), default=0)
        return steps_done(run, "grpo") > (at or 13)

    died = running.kill_when(beyond, tmp_path / "out", *args(tmp_path / "killed"), seconds=900)
    before, reached = entries(run), steps_done(run, "grpo")
    assert 0 < reached < 16
    running.command(*args(tmp_path / "killed", "--resume"))

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
