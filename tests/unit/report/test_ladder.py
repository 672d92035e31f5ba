"""The table of what each stage added: whose dollars a rung's are, when a point has a price, and that it is shown."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shoestring.report import ladder, page
from shoestring.report.load import load

STAGES = [
    ("score-base", "evaluate"), ("curate", "curate"), ("distill", "distill"), ("sft", "sft"), ("score-sft", "evaluate"),
    ("rl", "grpo"), ("score-rl", "evaluate"),
]  # fmt: skip
COST = {"start": 0.001, "score-base": 0.002, "curate": 0.003, "distill": 0.001, "sft": 0.006, "score-sft": 0.002, "rl": 0.004, "score-rl": 0.002}


def row(model: str, accuracy: float, **rest: Any) -> dict[str, Any]:
    return {
        "model": model, "benchmark": "unseen", "family": "macro", "n": 300, "accuracy": accuracy,
        "ci95": [accuracy - 0.05, accuracy + 0.05], "usd": 0.0, "extraction": "strict", **rest,
    }  # fmt: skip


def gain(a: str, b: str, by: float, wide: float, **rest: Any) -> dict[str, Any]:
    return {"from": a, "to": b, "benchmark": "unseen", "gain": by, "ci95": [by - wide, by + wide], "p_value": 0.01, **rest}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    files: dict[str, Any] = {
        "run.json": {"name": "x", "status": "finished", "stages": [{"name": n, "use": u} for n, u in STAGES]},
        "scores.json": [row("base", 0.2), row("base-few-shot-strict", 0.1), row("sft", 0.6), row("rl", 0.62)],
        "gains.json": [gain("base", "sft", 0.4, 0.06), gain("sft", "rl", 0.02, 0.04), gain("base", "rl", 0.42, 0.06)],
        "bill.json": {
            "currency": "USD", "budget": "1 USD", "headline": {"total": "0.02"}, "marginal": {"total": "0.02"},
            "lines": [
                {"stage": s, "resource": "m", "quantity": "1", "unit": "second", "unit_price": "1", "amount": str(a), "outcome": o}
                for s, whole in COST.items()
                for a, o in ((whole * 0.75, "useful"), (whole * 0.25, "idle"))
            ],
        },
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_text(json.dumps(data))
    return tmp_path


def test_a_rung_is_paid_by_the_stages_that_led_to_it(run_dir: Path) -> None:
    base, sft, rl = ladder.rungs(load(run_dir))
    assert (base.model, base.usd, base.gain, base.stages) == ("base", None, None, ())
    assert sft.stages == ("curate", "distill", "sft") and sft.usd == pytest.approx(0.010)
    assert sft.usd_a_point == pytest.approx(0.010 / 40)
    assert rl.stages == ("rl",) and rl.usd == pytest.approx(0.004) and rl.gain == 0.02
    assert rl.usd_a_point is None  # the interval holds zero
    assert ladder.scoring(load(run_dir)) == pytest.approx(0.006)


def test_an_unknown_amount_prices_nothing(run_dir: Path) -> None:
    bill = json.loads((run_dir / "bill.json").read_text())
    bill["lines"] = [b for b in bill["lines"] if b["stage"] != "distill"]
    (run_dir / "bill.json").write_text(json.dumps(bill))
    assert ladder.rungs(load(run_dir))[1].usd is None


def test_the_page_and_the_terminal_show_it(run_dir: Path) -> None:
    html = page.render(load(run_dir))
    assert ladder.TITLE in html and "no gain shown" in html and "all evaluations" in html
    out = io.StringIO()
    ladder.print_ladder(run_dir, Console(file=out, width=120))
    text = out.getvalue()
    assert "curate, distill" in text and "no gain shown" in text and "60.0%" in text


def test_one_score_is_no_ladder(run_dir: Path) -> None:
    (run_dir / "scores.json").write_text(json.dumps([row("base", 0.2)]))
    assert ladder.rungs(load(run_dir)) == [] and ladder.of_run(load(run_dir)) == ""
    (run_dir / "scores.json").write_text(json.dumps([row("base", 0.2), row("sft", 0.6)]))
    out = io.StringIO()
    ladder.print_ladder(run_dir, Console(file=out))
    assert out.getvalue() == "" and ladder.of_run(load(run_dir))  # a gain says as much on a terminal


def test_what_was_rejected_and_what_was_watched(run_dir: Path) -> None:
    assert ladder.rejected(load(run_dir)) == ladder.watched(load(run_dir)) == ""
    (run_dir / "stages" / "reject").mkdir(parents=True)
    steps = [{"step": "right", "before": 40, "after": 30, "why": "<b>wrong</b>"}, {"step": "kept", "before": 30, "after": 10}]
    (run_dir / "stages" / "reject" / "funnel.json").write_text(json.dumps(steps))
    (run_dir / "stages" / "torn").mkdir()
    (run_dir / "stages" / "torn" / "funnel.json").write_text("[{")
    lines = [{"stage": "rl", "step": n, "watch": {"entropy": [1.0, 0.3 / n]} if n > 2 else {}} for n in range(1, 5)]
    lines.append({"stage": "rl", "step": 5, "watch": "?"})
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    html = page.render(load(run_dir))
    assert "Rejection sampling" in html and "&lt;b&gt;wrong" in html and "<b>wrong" not in html
    assert "Watch the reward" in html and "the model says one thing only" in html
