"""Where a run's curves go besides its own files: TensorBoard, wandb, trackio, MLflow. None of them can stop a run.

A sink is one file with `PACKAGE` (what it imports), `EXTRA` (the pip extra) and `begin(run) -> Sink`. Each sink has a
bounded queue and a daemon thread of its own: the loop only ever puts a row into a queue, and drops it where the queue
is full. An error is said once and counted; the end waits for all sinks together, for a stated time.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import pkgutil
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shoestring.recipe import Recipe
from shoestring.records import UserError

CAPACITY = 1024  # rows that may wait for one sink
CLOSE_SECONDS = 2.0  # the most that the end of a run waits for its sinks
ERRORS = 5  # in a row: then the sink gets no more rows


@dataclass(frozen=True)
class Run:
    """What a sink is told of a run. folder: where it may write; config: the resolved recipe as plain data."""

    name: str
    folder: Path
    config: Mapping[str, Any]

    @staticmethod
    def of(recipe: Recipe, run_dir: Path, machine: str) -> Run:
        config = {"base": recipe.base, "budget": str(recipe.budget), "seed": recipe.seed, "machine": machine}
        config["recipe_hash"] = recipe.hash
        for t in recipe.stages:
            config |= {f"{t.name}.{k}": v for k, v in vars(t.config).items()}
        return Run(recipe.name, run_dir / "tracking", config)


class Sink(Protocol):
    """One open tracker. Its methods are called from one thread, and may raise or hang."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")


def check(wanted: Sequence[str]) -> None:
    """UserError (one line) for a sink that is unknown or whose library is not installed."""
    known = names()
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise UserError(f"report_to: unknown sink {name!r}; {hint}")
        package = module(name).PACKAGE
        if importlib.util.find_spec(package) is None:
            raise UserError(f"report_to: {name} needs {package}: pip install 'shoestring[{module(name).EXTRA}]'")


def values_of(row: Mapping[str, Any]) -> dict[str, float]:
    """What is logged of a line of metrics.jsonl, by stage: loss, reward, grad_norm, lr, tokens/s; the run's dollars."""
    stage = row["stage"]
    out = {f"{stage}/step": row["step"], "usd/spent": row["usd_spent"], "usd/left": row["usd_left"]}
    money = {"usd_per_hour": "usd/per_hour", "usd_forecast_end": "usd/forecast_end", "goodput": "goodput"}
    out |= {name: row[key] for key, name in money.items() if key in row}
    for key in ("loss", "reward", "grad_norm", "lr"):
        if isinstance(row.get(key), int | float):
            out[f"{stage}/{key}"] = row[key]
    if row["seconds"] > 0:
        out[f"{stage}/tokens_per_second"] = row["tokens"] / row["seconds"]
    return {k: float(v) for k, v in out.items()}


class _Worker:
    """One sink's queue and thread."""

    def __init__(self, name: str, begin: Callable[[Run], Sink], run: Run, say: Callable[[str], None], capacity: int) -> None:
        self.name, self.say = name, say
        self.rows, self.errors, self.dropped, self.failed = 0, 0, 0, ""
        self.queue: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(capacity)
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._work, args=(begin, run), name=f"sink-{name}", daemon=True)
        self.thread.start()

    def put(self, step: int, values: Mapping[str, float]) -> None:
        try:
            self.queue.put_nowait((step, values))
        except queue.Full:
            self.dropped += 1

    def _fail(self, doing: str, error: BaseException) -> None:
        self.errors += 1
        if not self.failed:
            self.failed = f"{doing}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            self.say(f"{self.name}: {self.failed}; the run goes on, metrics.jsonl has everything")

    def _work(self, begin: Callable[[Run], Sink], run: Run) -> None:
        try:
            sink = begin(run)
        except BaseException as e:  # SystemExit of a library too: nothing may leave this thread
            self._fail("could not begin", e)
            return
        running = 0
        while running < ERRORS:
            try:
                item = self.queue.get(timeout=0.2)
            except queue.Empty:
                if self.ending.is_set():
                    break
                continue
            if item is None:
                break
            try:
                sink.log(*item)
                self.rows += 1
                running = 0
            except BaseException as e:
                running += 1
                self._fail("could not log", e)
        try:
            sink.close()
        except BaseException as e:
            self._fail("could not close", e)

    def finish(self) -> None:
        self.ending.set()
        with contextlib.suppress(queue.Full):  # then the thread sees `ending` once its queue is empty
            self.queue.put_nowait(None)


class Sinks:
    """All sinks of one attempt. `log` never blocks and never raises; `close` waits at most `seconds`."""

    def __init__(
        self, wanted: Sequence[str], run: Run, say: Callable[[str], None], capacity: int = CAPACITY,
        load: Callable[[str], Any] = module,
    ) -> None:  # fmt: skip
        self.workers = []
        for name in wanted:
            try:
                self.workers.append(_Worker(name, load(name).begin, run, say, capacity))
            except Exception as e:  # no thread to be had
                say(f"{name}: {e}; the run goes on without it")

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """`row` is a line of metrics.jsonl, `step` the number of the line: it grows over stages and attempts."""
        if not self.workers:
            return
        values = values_of(row)
        for w in self.workers:
            w.put(step, values)

    def finish(self) -> None:
        """No more rows will come: each sink closes while the run goes on to its export."""
        for w in self.workers:
            w.finish()

    def close(self, seconds: float = CLOSE_SECONDS) -> dict[str, dict[str, Any]]:
        """What became of each sink, for run.json: rows written, dropped, errors, the first error, whether it hangs."""
        self.finish()
        until = time.monotonic() + seconds
        for w in self.workers:
            w.thread.join(max(0.0, until - time.monotonic()))
        return {
            w.name: {
                "rows": w.rows, "dropped": w.dropped + sum(i is not None for i in list(w.queue.queue)),
                "errors": w.errors, "failed": w.failed, "hangs": w.thread.is_alive(),
            }
            for w in self.workers
        }  # fmt: skip
