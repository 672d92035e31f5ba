"""Trackers beside a run: one that raises, hangs or is slow changes nothing; the real ones hold what was logged."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shoestring.records import UserError
from shoestring.report import sinks
from shoestring.report.sinks import Run, Sinks


def row(step: int, **rest: Any) -> dict[str, Any]:
    base = {"stage": "sft", "step": step, "loss": 1.0 / step, "reward": None, "grad_norm": 0.5, "tokens": 100,
            "seconds": 0.5, "usd_spent": 0.01 * step, "usd_left": 1.0 - 0.01 * step}  # fmt: skip
    return base | rest


class Fake:
    """A sink that keeps its rows, or does what it is told."""

    def __init__(self, log: Any = None, begin: Any = None, close: Any = None) -> None:
        self.rows: list[tuple[int, Mapping[str, float]]] = []
        self.does, self.begins, self.closes = log, begin, close
        self.closed = False

    def begin(self, run: Run) -> Fake:
        if self.begins:
            self.begins()
        return self

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self.does:
            self.does()
        self.rows.append((step, values))

    def close(self) -> None:
        if self.closes:
            self.closes()
        self.closed = True


def use(fakes: dict[str, Fake], **rest: Any) -> tuple[Sinks, list[str]]:
    said: list[str] = []
    made = Sinks(list(fakes), Run("r", Path("."), {}), said.append, load=lambda n: SimpleNamespace(begin=fakes[n].begin), **rest)
    return made, said


def fails(error: BaseException) -> Any:
    def do() -> None:
        raise error

    return do


def test_values() -> None:
    assert sinks.values_of(row(4, reward=0.25, lr=1e-4)) == {
        "sft/step": 4.0, "sft/loss": 0.25, "sft/reward": 0.25, "sft/grad_norm": 0.5, "sft/lr": 1e-4,
        "sft/tokens_per_second": 200.0, "usd/spent": 0.04, "usd/left": 0.96,
    }  # fmt: skip
    assert "sft/loss" not in sinks.values_of(row(1, loss=None))


def test_everything_arrives_in_order() -> None:
    fake = Fake()
    made, said = use({"a": fake})
    for n in range(1, 51):
        made.log(n, row(n))
    assert made.close() == {"a": {"rows": 50, "dropped": 0, "errors": 0, "failed": "", "hangs": False}}
    assert [s for s, _ in fake.rows] == list(range(1, 51)) and fake.closed and not said


@pytest.mark.parametrize("error", [RuntimeError("no\nnetwork"), SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["begin", "log", "close"])
def test_an_error_is_said_once_and_kept(error: BaseException, where: str) -> None:
    bad, good = Fake(**{where: fails(error)}), Fake()
    made, said = use({"bad": bad, "good": good})
    for n in range(1, 21):
        made.log(n, row(n))
    state = made.close()
    assert len(said) == 1 and said[0].startswith("bad: could not") and "\n" not in said[0]
    assert state["bad"]["errors"] == {"begin": 1, "log": sinks.ERRORS, "close": 1}[where] and state["bad"]["failed"]
    assert state["good"]["rows"] == 20, "the neighbour lost nothing"


def test_an_error_now_and_then_loses_only_its_row() -> None:
    count = [0]

    def every_third() -> None:
        count[0] += 1
        if count[0] % 3 == 0:
            raise RuntimeError("busy")

    made, said = use({"a": Fake(log=every_third)})
    for n in range(1, 31):
        made.log(n, row(n))
    state = made.close()
    assert state["a"]["rows"] == 20 and state["a"]["errors"] == 10 and len(said) == 1


@pytest.mark.parametrize("where", ["begin", "log", "close"])
def test_one_that_hangs_costs_the_stated_time(where: str) -> None:
    never = threading.Event()
    made, _ = use({"a": Fake(**{where: never.wait}), "b": Fake(**{where: never.wait})}, capacity=10)
    began = time.monotonic()
    for n in range(1, 101):
        made.log(n, row(n))
    assert time.monotonic() - began < 0.3, "the loop never waits"
    state = made.close(0.3)
    assert time.monotonic() - began < 1.2, "all sinks share the time"
    assert state["a"]["hangs"] and state["b"]["hangs"]
    if where != "close":
        assert state["a"]["dropped"] >= 89
    never.set()


def test_a_slow_one_gets_what_fits_into_its_queue() -> None:
    made, _ = use({"a": Fake(log=lambda: time.sleep(0.05))}, capacity=4)
    began = time.monotonic()
    for n in range(1, 201):
        made.log(n, row(n))
    assert time.monotonic() - began < 0.2
    state = made.close(1.0)
    assert state["a"]["rows"] + state["a"]["dropped"] == 200 and state["a"]["rows"] >= 4


def test_check_refuses_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sinks.names() == ["mlflow", "tensorboard", "trackio", "wandb"]
    with pytest.raises(UserError, match="unknown sink 'tensorbord'; did you mean 'tensorboard'"):
        sinks.check(["tensorbord"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    for name in sinks.names():
        with pytest.raises(UserError, match=rf"{name} needs {name}: pip install 'shoestring\[{name}\]'"):
            sinks.check([name])


def test_every_extra_is_in_the_project_file() -> None:
    import tomllib

    extras = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {sinks.module(n).EXTRA for n in sinks.names()} | {"data", "hub"} <= extras.keys()


def real(name: str, folder: Path) -> dict[str, Any]:
    said: list[str] = []
    made = Sinks([name], Run("my-run", folder, {"seed": 1}), said.append)
    for n in (1, 2, 3):
        made.log(n, row(n))
    made.log(4, row(1, stage="grpo", loss=None, reward=0.5))
    state = made.close(60)[name]
    assert not said and state["rows"] == 4 and not state["hangs"], (said, state)
    return state


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install 'shoestring[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    real("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("sft/loss")] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert [(e.step, e.value) for e in events.Scalars("grpo/reward")] == [(4, 0.5)]
    assert [e.step for e in events.Scalars("usd/spent")] == [1, 2, 3, 4]


def records(raw: bytes) -> Iterator[bytes]:
    """wandb's file is LevelDB's log: after 7 bytes of header, blocks of 32 KiB with records (crc, length, type, data)."""
    at, part = 7, b""
    while at + 7 <= len(raw):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(raw[at + 4 : at + 6], "little"), raw[at + 6]
        part += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield part
            part = b""


@pytest.mark.slow
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs wandb: pip install 'shoestring[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    from wandb.proto import wandb_internal_pb2

    real("wandb", tmp_path)
    (path,) = tmp_path.rglob("*.wandb")
    losses = []
    for raw in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(raw)
        for item in record.history.item:
            if "sft/loss" in (item.key, *item.nested_key):
                losses.append(json.loads(item.value_json))
    assert losses == [1.0, 0.5, pytest.approx(1 / 3)]


@pytest.mark.slow
def test_mlflow_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="needs mlflow-skinny: pip install 'shoestring[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    real("mlflow", tmp_path)
    client = MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("shoestring")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "my-run" and run.info.status == "FINISHED" and run.data.params["seed"] == "1"
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "sft/loss")][:2] == [(1, 1.0), (2, 0.5)]


@pytest.mark.slow
def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # trackio reads it when it is imported
    pytest.importorskip("trackio", reason="needs trackio: pip install 'shoestring[trackio]'")
    real("trackio", tmp_path)
    assert list((tmp_path / "trackio").rglob("*.db"))
