"""Learning curves of an ablation's arms: every seed's, their mean, and nothing where there is nothing to draw."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from shoestring.report import ablation, charts


def run(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    folder.mkdir()
    stages = [{"name": "rl", "use": "grpo"}, {"name": "sft", "use": "sft"}, {"name": "score", "use": "evaluate"}]
    (folder / "run.json").write_text(json.dumps({"stages": stages}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return {"run": str(folder)}


def rl(rewards: list[float]) -> list[dict[str, Any]]:
    return [{"stage": "rl", "step": i, "reward": r, "loss": 0.1} for i, r in enumerate(rewards, 1)]


def heights(svg: str, cls: str) -> list[list[float]]:
    found = re.findall(rf'<polyline class="{cls}"[^>]*points="([^"]*)"', svg)
    return [[float(p.split(",")[1]) for p in line.split()] for line in found]


def test_every_seed_is_drawn_and_their_mean_as_far_as_all_went(tmp_path: Path) -> None:
    score = [{"stage": "score", "step": 1, "loss": 9.0}]
    seeds = [run(tmp_path / "a-s0", rl([0.0, 0.2, 0.4, 0.9]) + score), run(tmp_path / "a-s1", rl([0.2, 0.6, 0.8]))]
    html = ablation.learning_curves({"arms": [{"name": "a", "seeds": [*seeds, {"run": str(tmp_path / "gone")}]}]})
    assert html.count("<figure") == 1 and "a, rl: reward" in html, "the reward of what tries, and no curve of a score"
    faint, (mean,) = heights(html, "raw"), heights(html, "curve")
    assert [len(f) for f in faint] == [4, 3] and len(mean) == 3
    for i, at in enumerate(mean):
        assert abs(at - (faint[0][i] + faint[1][i]) / 2) < 0.11


def test_a_stage_that_imitates_shows_its_loss(tmp_path: Path) -> None:
    seed = run(tmp_path / "a-s0", [{"stage": "sft", "step": i, "loss": 2.0 / i} for i in (1, 2, 3)])
    assert "a, sft: loss, nats a token" in ablation.learning_curves({"arms": [{"name": "a", "seeds": [seed]}]})


def test_nothing_to_draw_is_no_section(tmp_path: Path) -> None:
    data = {"name": "x", "arms": [{"name": "a", "seeds": [{"run": str(tmp_path / "gone")}]}, {"name": "b"}]}
    assert ablation.learning_curves(data) == "" and "Learning curves" not in ablation.body(data)
    run(tmp_path / "cut", [])
    assert ablation.learning_curves({"arms": [{"name": "a", "seeds": [{"run": str(tmp_path / "cut")}]}]}) == ""


def test_one_curve_is_faint_by_step_and_strong_by_moving_mean() -> None:
    def draw(n: int) -> str:
        data = [(float(i), float(i % 2)) for i in range(n)] + [(float(n), float("nan"))]
        return charts.lines(data, width=290, title="t", x_label="step", y_show=str, colour="m1")

    assert [len(x) for x in heights(draw(40), "raw") + heights(draw(40), "curve")] == [40, 40]
    assert not heights(draw(8), "raw") and len(heights(draw(8), "curve")[0]) == 8, "few steps are not smoothed"
