"""The runner of the H100 rows, with tiny models on a CPU: it runs to its end, checks itself and stores nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import cuda  # noqa: E402
from benchmarks.table import of_family  # noqa: E402


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOESTRING_DEVICE", "cpu")


def test_every_family_runs_and_nothing_is_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda.main(["--small", "--out", str(tmp_path / "h100.json")]) == 0
    said = capsys.readouterr()
    assert "nothing is stored: tiny models" in said.out and "the check failed" not in said.out
    assert "decode, batch 3" in said.err and not list(tmp_path.iterdir())


def test_the_rows_are_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a card whose peaks are known every row but those of CUDA's own memory gets a figure."""
    from shoestring.estimate import gpus

    card = cuda.Card()
    card.sheet = gpus.gpu("NVIDIA H100 80GB HBM3")
    assert "H100" in card.sheet.name
    effort = cuda.Effort(1, 1, 256, 300, 20, 6, (1, 8, 64, 256), 64, True)
    made = [r.spec.what for family in cuda.FAMILIES.values() for r in family(card, effort)]
    assert [s.what for s in of_family("h100") if s.what not in made] == ["H100: GRPO, peak memory"]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize("arguments", [[], ["--only", "sft,ppo", "--small"]])
def test_what_cannot_be_run_is_said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cuda.main(arguments)
    assert "no CUDA device" in capsys.readouterr().err or arguments
