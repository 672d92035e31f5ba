"""Measuring the machine: every rate is positive, finite and marked as measured, and it is kept."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import pytest

from shoestring import probe
from shoestring.estimate.headers import model_shape
from shoestring.estimate.machine import load_profile, profile_key


@pytest.fixture(scope="module")
def base() -> Path:
    tiny_run = pytest.importorskip("tiny_run", reason="tests/e2e is not on the path: run pytest from the repository's folder")
    return tiny_run.make_world().base


def test_measured_once_and_kept(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    shape = model_shape(str(base))
    made, fresh = probe.measured_profile(base, shape)
    assert fresh and made.basis == "measured" and made.parameters == shape.parameters()
    for name, q in asdict(made).items():
        if isinstance(q, dict):
            assert q["basis"] == "measured", name
            assert 0 < q["low"] < q["mid"] < q["high"] < math.inf, name
    assert made.decode_tokens.mid > 10 and made.train_flops.mid > 1e6
    kept = {p.name for p in tmp_path.iterdir()} - {"native"}  # what is compiled for the decode step
    assert kept == {"profile.json"}, "the disk's probe is taken away"
    assert load_profile(profile_key(probe.torch_version())) == made
    again, fresh = probe.measured_profile(base, shape)
    assert again == made and not fresh


def test_the_disk_probe_leaves_nothing(tmp_path: Path) -> None:
    assert probe._disk(tmp_path / "new", 1 << 20) > 0
    assert not list((tmp_path / "new").iterdir())


def test_versions_name_what_a_run_needs() -> None:
    found = probe.versions()
    assert found["python"].startswith("3.") and found["torch"] not in ("", "not installed")
    assert {"shoestring", "transformers", "safetensors"} <= set(found)
