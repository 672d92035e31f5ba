"""Training by flags, from a data file to a model folder, in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import World, digest, metrics, total

RATE = ["--rate", "3600 USD/hour"]  # a dollar is a second


def chats(path: Path, n: int = 24) -> Path:
    turns = [("user", "Say {}."), ("assistant", "{}."), ("user", "Again."), ("assistant", "{}!")]
    rows = [{"messages": [{"role": r, "content": c.format(i)} for r, c in turns], "licence": "CC0-1.0", "source": "mine"} for i in range(n)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def run_json(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def test_without_a_budget_the_plan_and_one_line(world: World, tmp_path: Path) -> None:
    done = world.run("sft", "--model_name_or_path", world.base, "--dataset_name", chats(tmp_path / "a.jsonl"), *RATE, cwd=tmp_path)
    assert "no --budget" in done.one_line() and "--budget" in done.one_line() and "sft" in done.out
    assert not (tmp_path / "runs").exists()


def test_sft_by_flags(world: World, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install 'shoestring[tensorboard]'")
    out = tmp_path / "my-sft"
    args = ["sft", "--model_name_or_path", world.base, "--dataset_name", chats(tmp_path / "a.jsonl"), "--output_dir", out,
            "--max_steps", "6", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2",
            "--learning_rate", "1e-2", "--report_to", "tensorboard", *RATE]  # fmt: skip
    world.ok(*args, "--budget", "200 USD")
    steps = [r for r in metrics(out) if r["stage"] == "sft"]
    assert [r["step"] for r in steps] == list(range(1, 7)) and steps[-1]["loss"] < steps[0]["loss"]
    state = run_json(out)
    assert state["status"] == "finished" and state["sinks"]["tensorboard"]["rows"] == 7 and not state["sinks"]["tensorboard"]["failed"]
    assert list((out / "tracking" / "tensorboard").glob("events*")) and (out / "model" / "model.safetensors").exists()
    text = (out / "model" / "README.md").read_text()
    bill = json.loads((out / "bill.json").read_text())
    assert f"this model's run: {bill['headline']['total']} USD" in text and "- mine (CC0-1.0)" in text and state["recipe_hash"] in text
    assert total(out) <= 200 and (out / "report.html").exists()
    world.ok("plan", out / "recipe.toml")
    assert "finished" in world.run("sft", "--output_dir", out, "--resume_from_checkpoint").one_line()
    assert "--resume" in world.run(*args, "--budget", "200 USD").one_line(), "a folder in use is not overwritten"


def test_a_missing_tracker_is_found_before_the_run(world: World, tmp_path: Path) -> None:
    (tmp_path / "tensorboard.py").write_text("")
    args = ["sft", "--model_name_or_path", world.base, "--dataset_name", chats(tmp_path / "a.jsonl"), "--output_dir", tmp_path / "o",
            "--budget", "200 USD", *RATE]  # fmt: skip
    assert "did you mean 'tensorboard'" in world.run(*args, "--report_to", "tensorbord").one_line()
    assert not (tmp_path / "o").exists()


BROKEN = """
import sys, threading
from shoestring import cli
from shoestring.report.sinks import tensorboard
def begin(run):
    {does}
tensorboard.begin = begin
sys.exit(cli.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("does", ["raise RuntimeError('no disk')", "threading.Event().wait()"])
def test_a_broken_tracker_changes_nothing(world: World, tmp_path: Path, does: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def args(out: Path) -> list[Any]:
        return ["sft", "--model_name_or_path", world.base, "--dataset_name", chats(tmp_path / "a.jsonl"), "--output_dir", out,
                "--max_steps", "6", "--budget", "200 USD", *RATE]  # fmt: skip

    plain = world.ok(*args(tmp_path / "plain"))
    command = world.command()
    monkeypatch.setattr(World, "command", lambda self, *a, **_: [command[0], "-c", BROKEN.format(does=does), *map(str, a)])
    broken = world.ok(*args(tmp_path / "broken"), "--report_to", "tensorboard")
    assert digest(tmp_path / "broken/model/model.safetensors") == digest(tmp_path / "plain/model/model.safetensors")
    assert broken.seconds < plain.seconds + 6
    sink = run_json(tmp_path / "broken")["sinks"]["tensorboard"]
    assert sink["rows"] == 0 and (sink["hangs"] or "no disk" in sink["failed"])


@pytest.mark.slow
def test_stopped_and_resumed_by_flags(world: World, tmp_path: Path) -> None:
    def args(out: Path) -> list[Any]:
        return ["sft", "--model_name_or_path", world.base, "--dataset_name", chats(tmp_path / "a.jsonl"), "--output_dir", out,
                "--max_steps", "400", "--per_device_train_batch_size", "8", *RATE]  # fmt: skip

    import tiny_run

    process = world.start(*args(tmp_path / "a"), "--budget", "400 USD", often=True)
    tiny_run.wait_for(lambda: tiny_run.steps_done(tmp_path / "a", "sft") > 20, process)
    tiny_run.interrupt(process)
    assert world.finish(process).code == 130
    world.ok("sft", "--output_dir", tmp_path / "a", "--resume_from_checkpoint", "true")
    world.ok(*args(tmp_path / "b"), "--budget", "400 USD")
    assert digest(tmp_path / "a/model/model.safetensors") == digest(tmp_path / "b/model/model.safetensors")


@pytest.mark.slow
def test_distil_then_sft_then_grpo(world: World, tmp_path: Path) -> None:
    """The commands compose: one's output is the next one's input."""
    common = ["--budget", "200 USD", *RATE]
    world.ok("distill", "--model_name_or_path", world.base, "--dataset_name", world.problems, "--max_completion_length", "8",
             "--output_dir", tmp_path / "d", *common)  # fmt: skip
    traces = tmp_path / "d" / "traces" / "distill.jsonl"
    world.ok("data", "validate", traces, "--model", world.base)
    world.ok("sft", "--model_name_or_path", world.base, "--dataset_name", traces, "--max_steps", "3", "--output_dir", tmp_path / "s", *common)
    world.ok("grpo", "--model_name_or_path", tmp_path / "s" / "model", "--dataset_name", world.problems, "--max_steps", "2",
             "--num_generations", "4", "--max_completion_length", "8", "--evaluate", world.problems, "--output_dir", tmp_path / "g", *common)  # fmt: skip
    scores = json.loads((tmp_path / "g" / "scores.json").read_text())
    assert {r["model"] for r in scores} == {"grpo"}
    world.ok("evaluate", "--model_name_or_path", tmp_path / "g" / "model", "--dataset_name", world.problems,
             "--max_completion_length", "8", "--output_dir", tmp_path / "e", *common)  # fmt: skip
    assert (tmp_path / "e" / "scores.json").exists()
