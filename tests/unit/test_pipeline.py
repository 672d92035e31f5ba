"""The one loop, with stages made of a few lines and a clock that only they move. No torch."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stub_run import TEXT, World, make

from shoestring import pipeline
from shoestring.pipeline import Pipeline
from shoestring.records import StepReport, UserError
from shoestring.stages.context import Context


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return make(tmp_path, monkeypatch)


def test_to_the_end(world: World) -> None:
    ending = world.pipeline().run()
    assert (ending.status, ending.reason) == ("finished", "")
    assert set(world.statuses().values()) == {"finished"}
    assert world.state()["weights"] == "checkpoints/grpo/step-4" and world.state()["model_name"] == "grpo"
    assert world.bill() == {"useful": pytest.approx(85.0)}
    assert [r["seconds"] for r in world.state()["stages"]] == [40, 40, 5]
    assert not (world.folder / "heartbeat").exists() and (world.folder / "model").exists()


def test_stops_under_the_ceiling_with_a_score(world: World) -> None:
    """The reserve pays for the last score: checkpoint 2, export 6, evaluation 6 × 1.6."""
    ending = world.pipeline("90").run()
    assert ending.status == "stopped" and "ceiling" in ending.reason
    assert world.statuses() == {"sft": "finished", "grpo": "stopped", "evaluate": "finished"}
    assert (world.folder / "verdicts" / "02-grpo.jsonl").exists()
    (total,) = {sum(world.bill().values())}
    assert 60 < total <= 90
    assert world.asked[-1][2] == "stop"


@pytest.mark.parametrize("budget", range(30, 130, 7))
def test_no_budget_is_overspent_and_none_is_left_without_a_score(world: World, budget: int) -> None:
    try:
        world.pipeline(str(budget)).run()
    except UserError as e:
        assert "too small" in str(e) and not world.folder.exists()
        return
    assert sum(world.bill().values()) <= budget
    assert world.statuses()["evaluate"] == "finished"
    assert list((world.folder / "verdicts").glob(f"*-{world.state()['model_name']}.jsonl"))


def test_goes_on_under_a_bigger_budget(world: World) -> None:
    world.pipeline("90").run()
    at = world.asked[-1][1]
    with pytest.raises(UserError, match="reached its budget of 90 USD"):
        world.pipeline("90", resume=True).run()
    assert world.pipeline("300", resume=True).run().status == "finished"
    assert ("grpo", at, "go") in world.asked and set(world.statuses().values()) == {"finished"}
    assert len([a for a in world.asked if a[0] == "sft"]) == 4, "what is finished is not done again"
    assert sorted(p.name for p in (world.folder / "verdicts").iterdir()) == ["02-grpo.jsonl"]
    assert [r for r in world.state()["stages"]][1]["status"] == "finished"


def test_interrupted_between_steps(world: World) -> None:
    def at(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    world.stages["sft"] = world.trains("sft", 4, 10.0, at)
    before = signal.getsignal(signal.SIGINT)
    ending = world.pipeline().run()
    assert ending.status == "stopped" and ending.reason.startswith("interrupted")
    assert signal.getsignal(signal.SIGINT) is before
    assert world.statuses() == {"sft": "running", "grpo": "waiting", "evaluate": "waiting"}
    world.stages["sft"] = world.trains("sft", 4, 10.0)
    assert world.pipeline(resume=True).run().status == "finished"
    assert [a for a in world.asked if a[0] == "sft"] == [
        ("sft", 1, "go"), ("sft", 2, "go"), ("sft", 3, "stop"), ("sft", 3, "go"), ("sft", 4, "go"),
    ]  # fmt: skip


@pytest.mark.parametrize("error", [RuntimeError("a bug"), UserError("bad input"), KeyboardInterrupt()])
def test_an_error_in_a_step_is_billed_and_resumed(world: World, error: BaseException) -> None:
    def at(step: int) -> None:
        if step == 3:
            world.now += 4
            raise error

    world.stages["grpo"] = world.trains("grpo", 4, 10.0, at)
    with pytest.raises(type(error)):
        world.pipeline().run()
    assert world.bill() == {"useful": pytest.approx(60.0), "failed": pytest.approx(4.0)}
    state = world.state()
    assert state["status"] == "failed" and state["reason"]
    assert (world.folder / "report.html").exists()
    world.stages["grpo"] = world.trains("grpo", 4, 10.0)
    assert world.pipeline(resume=True).run().status == "finished"
    bill = world.bill()
    assert bill["failed"] == pytest.approx(4.0)
    assert bill["replayed"] == pytest.approx(20.0), "steps 1 and 2 had no checkpoint"
    assert bill["useful"] == pytest.approx(85.0)


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.json.part"])
def test_a_full_disk(world: World, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """ENOSPC on a file of the run: an OSError that the command line puts into words; later, --resume."""
    real, full = open, [False]

    def limited(path: Any, mode: str = "r", *args: Any, **rest: Any) -> Any:
        if full[0] and str(path).endswith(name) and mode[0] in "wax":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, mode, *args, **rest)

    def at(step: int) -> None:
        full[0] = step >= 2

    monkeypatch.setattr("builtins.open", limited)
    monkeypatch.setattr("io.open", limited)
    world.stages["sft"] = world.trains("sft", 4, 10.0, at)
    with pytest.raises(OSError, match="No space left") as caught:
        world.pipeline().run()
    assert caught.value.errno == errno.ENOSPC
    full[0] = False
    world.stages["sft"] = world.trains("sft", 4, 10.0)
    assert world.pipeline(resume=True).run().status == "finished"


def test_a_stage_posts_what_only_it_can_see_once(world: World) -> None:
    """An unknown price is never zero: it stops the run."""
    from shoestring.records import Usage

    def run(config: Any, inputs: Any, context: Context) -> Generator:
        assert (yield context.intent(1, 5.0)) == "go"
        yield Usage("teacher:nobody/none/out", 10, "token", "sft")
        yield StepReport("sft", 1, 1, 1.0)

    world.stages["sft"] = run
    with pytest.raises(UserError, match="no price is known"):
        world.pipeline().run()


def test_only_one_process_works_on_a_run(world: World) -> None:
    def at(step: int) -> None:
        with pytest.raises(UserError, match="another process"):
            world.pipeline(resume=True).run()

    world.stages["sft"] = world.trains("sft", 1, 10.0, at)
    assert world.pipeline().run().status == "finished"
    with pytest.raises(UserError, match="finished"):
        world.pipeline(resume=True).run()
    with pytest.raises(UserError, match="--resume"):
        world.pipeline().run()


def test_a_kill_while_closing_can_be_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(folder: Path) -> Path:
        raise SystemExit(9)

    monkeypatch.setattr(pipeline.page, "write", kill)
    with pytest.raises(SystemExit):
        world.pipeline().run()
    monkeypatch.undo()
    assert world.state()["status"] == "finished" and not world.state()["closed"]


def test_the_recipe_may_change_its_budget_only(world: World) -> None:
    world.pipeline("90").run()
    for change in (("lcm", "gcd"), ('use = "sft"', 'use = "sft"\nlr = 1.0'), ("3600 USD", "1800 USD")):
        with pytest.raises(UserError, match="has changed"):
            world.pipeline("300", resume=True, text=TEXT.replace(*change)).run()


def test_a_reward_that_was_edited_is_named(world: World, tmp_path: Path) -> None:
    """What is paid may not change under a run: the content counts, not the time of change."""
    file, code = tmp_path / "mine.py", "def brief(completions, **columns): return [1.0] * len(completions)\n"
    text = TEXT.replace('use = "grpo"', f'use = "grpo"\nrewards = {{{{ "{file}:brief" = 1.0 }}}}')
    file.write_text(code)
    world.pipeline("90", text=text).run()
    for change in (lambda: file.write_text(code.replace("1.0", "0.0")), file.unlink):
        change()
        with pytest.raises(UserError, match=r"^[^\n]*mine\.py is not what it was when this run began[^\n]*$"):
            world.pipeline("300", resume=True, text=text).run()
    file.write_text(code)
    assert world.pipeline("300", resume=True, text=text).run().status == "finished"


def test_a_score_belongs_to_a_model_by_its_whole_name(world: World) -> None:
    """my-sft's score is not sft's."""
    p = world.pipeline()
    p.state = {"model_name": "sft"}
    (world.folder / "verdicts").mkdir(parents=True)
    (world.folder / "verdicts" / "03-my-sft.jsonl").write_text("")
    assert not p._scored()
    (world.folder / "verdicts" / "04-sft.jsonl").write_text("")
    assert p._scored()


def test_the_reserve_shrinks_once_an_evaluation_was_measured(world: World) -> None:
    text = TEXT.replace('[[stage]]\nuse = "grpo"', '[[stage]]\nuse = "evaluate"\nname = "e"\nsources = ["bundled:lcm"]\n[[stage]]\nuse = "grpo"')
    world.stages["evaluate"] = world.scores(1.0)
    seen: list[float] = []
    p = world.pipeline(text=text)
    real = Pipeline._answer

    def note(self: Pipeline, intent: Any) -> str:
        seen.append(self._stop_seconds)
        return real(self, intent)

    Pipeline._answer = note  # type: ignore[method-assign]
    try:
        p.run()
    finally:
        Pipeline._answer = real  # type: ignore[method-assign]
    before, after = seen[0], seen[-2]
    assert after < before and after >= 1.3 + pipeline.plan.EXPORT_SECONDS
    assert seen[-1] == pipeline.plan.EXPORT_SECONDS
    assert p.budget.accrued() < Decimal(500)


def test_the_base_is_scored_without_a_reserve_for_scoring_it_again(world: World) -> None:
    """A slow first score may use what a later one would have cost: stopped, it would be made a second time."""
    first = '[[stage]]\nuse = "evaluate"\nname = "first"\nsources = ["bundled:lcm"]\n'
    p = world.pipeline("500", text=TEXT.replace("[[stage]]", first + "[[stage]]", 1))
    p.run()
    assert p._reserve_for(0, 3) == pipeline.plan.EXPORT_SECONDS
    assert p._reserve_for(1, 3) > pipeline.plan.EXPORT_SECONDS
    assert p._reserve_for(3, 3) == pipeline.plan.EXPORT_SECONDS


def test_a_bigger_evaluation_tells_what_a_smaller_one_takes(world: World) -> None:
    """The seconds of a finished evaluation are scaled by the sizes that the plan gives both."""
    first = '[[stage]]\nuse = "evaluate"\nname = "first"\nsources = ["bundled:lcm"]\n'
    p = world.pipeline("500", text=TEXT.replace("[[stage]]", first + "[[stage]]", 1))
    p.run()
    big = replace(p.plan.stages[1], seconds=p.plan.stages[1].seconds.scaled(4.0))
    p.plan = replace(p.plan, stages=(p.plan.stages[0], big, *p.plan.stages[2:]))
    measured = p._row("first")["seconds"]
    p._row("evaluate")["status"] = "waiting"
    assert p._evaluated("evaluate") == pytest.approx(1.3 * measured / 4)
    assert p._evaluated("first") == pytest.approx(1.3 * measured)


class Tracker:
    """A sink that keeps what it gets, or does something else."""

    def __init__(self, does: Callable[[], Any] | None = None) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.does = does

    def begin(self, run: Any) -> Tracker:
        return self

    def log(self, step: int, values: Any) -> None:
        if self.does:
            self.does()
        self.rows.append((step, dict(values)))

    def close(self) -> None: ...


def track(monkeypatch: pytest.MonkeyPatch, tracker: Tracker) -> str:
    """The recipe's text with one tracker, which is `tracker`."""
    monkeypatch.setattr(pipeline.sinks, "check", lambda wanted: None)
    made = pipeline.sinks.Sinks.__init__
    monkeypatch.setattr(
        pipeline.sinks.Sinks, "__init__",
        lambda self, wanted, run, say: made(self, wanted, run, say, load=lambda name: SimpleNamespace(begin=tracker.begin)),
    )  # fmt: skip
    return TEXT.replace("[[stage]]", 'report_to = ["fake"]\n[[stage]]', 1)


def test_trackers_see_every_step_once_and_in_order(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step grows over stages and over a resumed attempt."""
    tracker = Tracker()
    text = track(monkeypatch, tracker)
    world.pipeline("90", text=text).run()
    first = len(tracker.rows)
    world.pipeline("300", resume=True, text=text).run()
    lines = (world.folder / "metrics.jsonl").read_text().splitlines()
    assert [s for s, _ in tracker.rows] == list(range(1, len(lines) + 1)) and 4 < first < len(lines)
    assert tracker.rows[0][1]["sft/loss"] == 1.0 and "grpo/loss" in tracker.rows[4][1]
    spent = [v["usd/spent"] for _, v in tracker.rows]
    assert spent == sorted(spent) and tracker.rows[0][1]["usd/left"] == pytest.approx(90 - spent[0])
    assert world.state()["sinks"]["fake"] == {"rows": len(lines) - first, "dropped": 0, "errors": 0, "failed": "", "hangs": False}


@pytest.mark.parametrize("hangs", [False, True])
def test_a_broken_tracker_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    def fail() -> None:
        raise RuntimeError("no network")

    plain = world.pipeline().run()
    bill, state = world.bill(), world.state()
    world.folder = world.folder.with_name("y")
    text = track(monkeypatch, Tracker(threading.Event().wait if hangs else fail))
    began = time.monotonic()
    run = world.pipeline(text=text)
    ending = run.run()
    assert time.monotonic() - began < 2 * pipeline.sinks.CLOSE_SECONDS + 3
    assert (ending.status, ending.reason, ending.hangs) == (plain.status, plain.reason, hangs)
    assert world.bill() == bill and world.state()["weights"] == state["weights"]
    sink = world.state()["sinks"]["fake"]
    assert sink["rows"] == 0 and sink["hangs"] == hangs and ("no network" in sink["failed"]) != hangs
    assert run.console.file.getvalue().count("no network") == (0 if hangs else 1), "said once"


def test_an_unknown_tracker_is_found_before_a_folder_is_made(world: World) -> None:
    with pytest.raises(UserError, match="unknown sink 'tensorbord'; did you mean 'tensorboard'"):
        world.pipeline(text=TEXT.replace("[[stage]]", 'report_to = "tensorbord"\n[[stage]]', 1)).run()
    assert not world.folder.exists()
