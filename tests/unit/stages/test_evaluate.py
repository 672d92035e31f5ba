"""The evaluate stage on a tiny model: graded a chunk at once, counted, and each verdict as its grader alone gives it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoestring import rewards
from shoestring.data import sources
from shoestring.records import StepReport
from shoestring.stages import evaluate
from shoestring.stages.context import read_lines


def test_chunks_are_graded_at_once_as_one_by_one(make_context: Any, drive: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    config = evaluate.Config(sources=["bundled:lcm", "bundled:gcd"], per_family=3, shots=0, max_new=4, heldout=False)
    events = drive(evaluate.run(config, {}, make_context(tmp_path / "a", "score", planned_seconds=60.0)))
    (report,) = [e for e in events if isinstance(e, StepReport)]
    assert sum(report.extra["verdicts"].values()) == 6
    rows = [r for path in (tmp_path / "a" / "verdicts").glob("*.jsonl") for r in read_lines(path) if "problem_id" in r]
    problems = {p.id: p for s in config.sources for p in sources.load(s, "test")}
    alone = [rewards.get("exact").grade(r["text"], problems[r["problem_id"]]) for r in rows]
    assert len(rows) == 6 and [r["strict"] for r in rows] == alone
