"""The test-time scaling section: shown only with scaling.json, everything in it, nothing of it trusted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import report_fixture as fixture

from shoestring.report import page, scaling
from shoestring.report.load import load


def curve(**rest: Any) -> dict[str, Any]:
    def point(budget: int, accuracy: float) -> dict[str, Any]:
        return {
            "budget": budget, "waits": 1, "mean_thinking_tokens": 0.9 * budget, "mean_tokens": budget + 20,
            "accuracy": accuracy, "ci95": [accuracy - 0.08, accuracy + 0.08], "n": 120, "usd": "0.0123",
        }  # fmt: skip

    votes = [(1, 260, 0.41), (2, 520, 0.43), (4, 1040, 0.52), (64, 16640, 0.6)]
    return {
        "model": "grpo", "benchmark": "gsm8k",
        "points": [point(256, 0.31), point(512, 0.42), point(1024, 0.55)],
        "majority": [{"samples": k, "tokens": t, "accuracy": a, "ci95": [a - 0.1, a + 0.1]} for k, t, a in votes],
        "rejection": [{"budget": 512, "tokens": 210, "accuracy": 0.38, "ci95": [0.3, 0.46]}],
        "metrics": {"control": 1.0, "scaling": 0.0003, "performance": 0.55},
    } | rest  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text(json.dumps(fixture.run()), "utf-8")
    return tmp_path


def test_without_the_file_there_is_no_section(folder: Path) -> None:
    assert scaling.of_run(load(folder)) == "" and "Test-time scaling" not in page.render(load(folder))


def test_everything_is_drawn_and_listed(folder: Path) -> None:
    (folder / "scaling.json").write_text(json.dumps(curve()), "utf-8")
    (folder / "scaling-10.json").write_text(json.dumps(curve(model="tenth")), "utf-8")
    (folder / "scaling-2.json").write_text(json.dumps(curve(model="second")), "utf-8")
    text = page.render(load(folder))
    assert text.index("grpo on gsm8k") < text.index("second on gsm8k") < text.index("tenth on gsm8k")
    for said in ("Control 100%", "Scaling +30.0 percentage points", "Performance 55.0%", "64 samples", "1,024, 1 × “Wait”"):
        assert said in text, said
    drawn = scaling.marks(curve())
    assert [m.label for m in drawn if m.joined] == ["256", "512", "1,024"] and len(drawn) == 7
    assert [m.x for m in drawn if m.colour == "m1"] == [260, 520, 1040], "64 votes would squeeze everything else"


@pytest.mark.parametrize(
    "bad",
    [
        "{", "[]", '{"points": 3}', '{"points": [{}]}', json.dumps(curve(metrics=None, majority="x", rejection=[None, {}])),
        json.dumps(curve(model="<script>alert(1)</script>")),
        json.dumps(curve(points=[{"budget": "<u>", "waits": [], "mean_tokens": "NaN", "accuracy": None, "ci95": [1], "usd": "?"}])),
    ],
)  # fmt: skip
def test_what_cannot_be_trusted(bad: str, folder: Path) -> None:
    (folder / "scaling.json").write_text(bad, "utf-8")
    made = page.render(load(folder))
    assert "<script" not in made and "<u>" not in made and made.endswith("</html>\n")
