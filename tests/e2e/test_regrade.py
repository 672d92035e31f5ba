"""The model folder answers the same in transformers alone; and the quickstart's promise, for three seeds (slow)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from regrade import regrade
from tiny_run import ROOT


def test_a_tiny_run_is_regraded_alike(finished: Path) -> None:
    pytest.importorskip("transformers", reason="needs transformers: pip install 'shoestring[train]'")
    found = regrade(finished)
    assert found["n"] >= 8
    assert found["same_verdict"] >= 0.9 and found["same_text"] >= 0.8, found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_quickstart_keeps_its_promise(seed: int, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    pytest.importorskip("gguf", reason="needs the gguf package: pip install 'shoestring[train]'")
    recipe = str(ROOT / "recipes" / "quickstart.toml")
    command = [sys.executable, "-m", "shoestring.cli", "run", recipe, "--runs", str(tmp_path), "--seed", str(seed)]
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = tmp_path / "quickstart"
    gain = next(
        g for g in json.loads((run / "gains.json").read_text())
        if (g["from"], g["to"], g["benchmark"]) == ("base", "grpo", "unseen")
    )  # fmt: skip
    assert gain["gain"] >= 0.25 and gain["ci95"][0] >= 0.15
    scores = json.loads((run / "scores.json").read_text())
    families = {s["family"]: s["n"] for s in scores if s["model"] == "grpo" and s["benchmark"] == "unseen"}
    assert len(families) >= 5 and families["macro"] >= 200
    bill = json.loads((run / "bill.json").read_text())
    assert float(bill["marginal"]["total"]) < float(bill["budget"].split()[0])
    found = regrade(run, limit=60)
    assert found["same_verdict"] >= 0.93 and abs(found["ours"] - found["transformers"]) <= 0.05, found
