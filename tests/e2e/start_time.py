"""How long a command takes from its start to its end, where torch cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 0.4  # s; importing torch alone takes more than a second


def seconds(tmp_path: Path, *args: str) -> float:
    """Of the processor or of the clock, whichever is less: the best of at most three calls, the last the first within LIMIT."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # an installation's modules are compiled
    env = kept | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'src'}"}
    best = 9.0
    for _ in range(3):
        before, began = os.times(), time.monotonic()
        done = subprocess.run([sys.executable, "-m", "shoestring.cli", *args], cwd=ROOT, env=env, capture_output=True, text=True)
        after = os.times()
        assert done.returncode == 0, done.stderr
        used = after.children_user + after.children_system - before.children_user - before.children_system
        best = min(best, used, time.monotonic() - began)
        if best <= LIMIT:
            break
    return best
