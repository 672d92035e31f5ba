"""`shoestring doctor --json` by its schema, with the measuring itself replaced; an unknown card is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoestring import cli, export, probe
from shoestring.estimate import headers, machine
from shoestring.estimate.flops import ModelShape
from shoestring.estimate.machine import Profile, load_profile, profile_key
from shoestring.records import Quantity, UserError

SHAPE = ModelShape(2, 32, 2, 1, 16, 64, 100, True)


def rate(x: float) -> Quantity:
    return Quantity(0.9 * x, x, 1.1 * x, "measured")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Profile:
    made = Profile(
        rate(5e11), rate(900), rate(2000), rate(1), rate(4e8), "measured", step_seconds=rate(0.2), start_seconds=None
    )
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    monkeypatch.setattr(export, "base_folder", lambda base: tmp_path)
    monkeypatch.setattr(headers, "model_shape", lambda base: SHAPE)
    monkeypatch.setattr(probe, "torch_version", lambda: "9.9")
    monkeypatch.setattr(probe, "cuda_rates", list)
    monkeypatch.setattr(probe, "probe", lambda base, shape, say: made)
    return made


def test_json(measured: Profile, capsys: pytest.CaptureFixture[str]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install 'shoestring[test]'")
    assert cli.main(["doctor", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    schema = Path(__file__).resolve().parents[3] / "docs" / "schemas" / "doctor.schema.json"
    jsonschema.validate(data, json.loads(schema.read_text()))
    assert data["profile"]["kept"] and load_profile(profile_key("9.9")) == measured
    assert data["cores"] == machine.cores()


def test_in_words(measured: Profile, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    card: dict[str, Any] = {
        "name": "H100-SXM", "memory_gib": 80.0, "matmul_flops": 7e14, "copy_bytes_per_second": 2.5e12,
        "peak_flops": 9.9e14, "peak_bytes_per_second": 3.35e12,
    }  # fmt: skip
    monkeypatch.setattr(probe, "cuda_rates", lambda: [card])
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    for expected in ("H100-SXM", "700 TFLOP/s", "training", "measured", "optimiser", "cores"):
        assert expected in said


def test_an_unknown_card_ends_it(measured: Profile, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> list[dict[str, Any]]:
        raise UserError("unknown GPU 'X9'; nearest: H100-SXM")

    monkeypatch.setattr(probe, "cuda_rates", unknown)
    assert cli.main(["doctor", "--json"]) == 2
    assert "X9" in capsys.readouterr().err and load_profile(profile_key("9.9")) is None
