"""The real quickstart in a subprocess: what the slow tests of faults share."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny_run import ROOT

RECIPE = ROOT / "recipes" / "quickstart.toml"


def need_the_model() -> None:
    """Skip where the 135M model is not on this machine."""
    pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    from shoestring.estimate.locate import locate
    from shoestring.records import UserError

    try:
        locate("smollm2-135m-instruct")
    except UserError as e:
        pytest.skip(str(e))


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT / "src")}


def words(*args: object) -> list[str]:
    return [sys.executable, "-m", "shoestring.cli", *map(str, args)]


def command(*args: object, timeout: float = 1800) -> str:
    """What the command printed; it must succeed."""
    done = subprocess.run(words(*args), env=environment(), capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def kill_when(reached: Callable[[], bool], out: Path, *args: object, seconds: float = 1800) -> float:
    """Start the command, kill -9 it once `reached()`; the unix second of the kill. Its output goes to `out`."""
    with open(out, "w") as f:
        process = subprocess.Popen(words(*args), env=environment(), stdout=f, stderr=f)
    until = time.monotonic() + seconds
    try:
        while not reached():
            assert process.poll() is None and time.monotonic() < until, out.read_text()[-3000:]
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    return time.time()


def sets(values: Sequence[str]) -> list[str]:
    return [part for s in values for part in ("--set", s)]
