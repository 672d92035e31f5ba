"""The one loop: runs the stages of a recipe, meters them, stops at the budget, resumes.

A stage is a generator (see `stages.context`). Before a step it yields an `Intent` and hears "go" or "stop"; what it
yields afterwards is metered (`StepReport`), kept (`Checkpoint`, `Artifact`) or posted (`Usage`).
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from shoestring import export, plan, probe, stages
from shoestring.allocator import keep_freed_memory
from shoestring.cost import bill
from shoestring.cost.budget import Budget
from shoestring.cost.ledger import Ledger
from shoestring.cost.prices import PriceBook
from shoestring.estimate.headers import model_shape
from shoestring.lease import Lease, forget_beat, recover, reopen
from shoestring.recipe import Recipe, StageTable
from shoestring.records import Artifact, Checkpoint, Intent, Outcome, StepReport, Usage, UserError
from shoestring.report import findings, page, sinks, terminal
from shoestring.report.live import Live
from shoestring.stages.context import Context, drop_torn, read_lines, write_json
from shoestring.threads import Threads

RUN, METRICS = "run.json", "metrics.jsonl"


@dataclass
class Ending:
    """How a run ended: finished, or stopped by the budget (scored) or by the user (resumable)."""

    status: str
    reason: str
    run_dir: Path
    hangs: bool = False  # a sink's thread is still busy with its library


def resolve(recipe: Recipe) -> tuple[PriceBook, str]:
    """The price book and the lease's sku. Raises UserError for an unknown machine or price."""
    book = PriceBook.default()
    return book, book.machine_sku(recipe.machine, recipe.rate)


class Pipeline:
    """One attempt at one run. `started` is when the lease began (the process's start)."""

    def __init__(
        self, recipe: Recipe, run_dir: Path, console: Any, resume: bool = False,
        started: float | None = None, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.recipe, self.run_dir, self.console, self.clock = recipe, run_dir, console, clock
        self.started = clock() if started is None else started
        self.book, self.sku = resolve(recipe)
        self.usd_per_second = float(self.book.price(self.sku).amount) * recipe.machine.count
        self.resumed = resume
        self.interrupted = False
        self.out_of_money = False
        self.state: dict[str, Any] = {}
        self._reported: dict[str, int] = {}
        self._lines = 0  # of metrics.jsonl: the step that sinks see, which grows over stages and attempts
        self.sinks = sinks.Sinks((), sinks.Run("", run_dir, {}), self._say)
        self._stop_seconds = 0.0

    # the run's own files

    def _check(self) -> None:
        """Bad input is found here, before a folder is made. The budget too, where this machine was measured before."""
        export.check_base(self.recipe.base)
        try:
            made = plan.make(self.recipe, self.book, self.sku)
        except UserError:
            if export.is_local(self.recipe.base):
                raise
            return  # not downloaded yet
        plan.check_inputs(made)
        if made.profile.basis == "measured":
            plan.refuse_if_too_small(made)

    def _open(self) -> None:
        sinks.check(self.recipe.report_to)
        exists = (self.run_dir / RUN).exists()
        if self.resumed and not exists:
            raise UserError(f"{self.run_dir}: there is no run to resume; leave --resume away")
        if not exists:
            self._check()
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.run_dir / "run.lock", "w")  # noqa: SIM115  (held as long as the run)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{self.run_dir}: another process works on this run; wait for it or stop it") from None
        if exists:
            try:
                self.state = json.loads((self.run_dir / RUN).read_text())
            except ValueError:
                raise UserError(f"{self.run_dir / RUN}: cannot be read; give the run another --name") from None
            if not self.resumed:
                raise UserError(
                    f"{self.run_dir}: this run exists; add --resume to go on with it, or --name for a new one"
                )
            if self.state["recipe_hash"] != self.recipe.hash:
                raise UserError(
                    f"{self.run_dir}: the recipe or the seed has changed since this run began; "
                    "only the budget may change on --resume. Give the run another --name"
                )
            if self.state["status"] == "finished" and self.state["closed"]:
                raise UserError(f"{self.run_dir}: this run is finished; see {self.run_dir}/report.html")
            reopen(self.state, self.run_dir, self.recipe.budget)
        else:
            price = self.book.price(self.sku)
            self.state = {
                "name": self.recipe.name, "seed": self.recipe.seed, "status": "running", "reason": "",
                "started": self.started, "ended": None, "attempts": 0, "versions": probe.versions(),
                "machine": {
                    "sku": self.sku, "usd_per_hour": f"{price.amount * 3600:.4f}", "source": price.ref.source,
                    "date": price.ref.date, "note": price.ref.note,
                },
                "base": self.recipe.base, "recipe_hash": self.recipe.hash, "weights": None, "model_name": "base",
                "artifacts": {}, "start_done": False, "closed": False, "reached": None,
                "stages": [{"name": t.name, "use": t.use, "status": "waiting", "seconds": 0.0} for t in self.recipe.stages],
            }  # fmt: skip
        self.state["attempts"] += 1
        self.state.update(status="running", reason="", closed=False)
        self._save()
        (self.run_dir / "recipe.toml").write_text(self.recipe.to_toml(), encoding="utf-8")

    def _save(self) -> None:
        write_json(self.run_dir / RUN, self.state)

    def _row(self, name: str) -> dict[str, Any]:
        return next(r for r in self.state["stages"] if r["name"] == name)

    # the run

    def run(self) -> Ending:
        """Run to the end, to the ceiling, or to an interruption. Raises UserError for bad input; nothing is lost."""
        self._open()
        attempt = f"a{self.state['attempts']}"
        self.ledger = Ledger.open(self.run_dir / "ledger.jsonl")
        lost = recover(self.ledger, self.sku, self.run_dir)
        if lost:
            seconds = sum(u.quantity for u in lost)
            self.console.print(f"the last attempt was killed: {seconds:.1f} s of its lease are billed as failed")
        self.budget = Budget(self.recipe.budget, self.book, self.ledger)
        needed = Decimal(plan.RESUME_SECONDS + plan.EXPORT_SECONDS) * self.book.price(self.sku).amount
        if self.resumed and self.budget.left() < needed:
            raise UserError(
                f"{self.run_dir}: {self.budget.left():.4f} USD of {self.recipe.budget} are left and going on takes at least "
                f"{needed:.4f}; give a bigger budget, as in --set budget='1 USD'"
            )
        self.ledger.begin(attempt, lease_start=self.started)
        self.lease = Lease(self.ledger, self.budget, self.sku, attempt, self.run_dir, self.started, self.clock)
        self.lease.beat()
        self.attempt = attempt
        self._read_metrics()
        main = threading.current_thread() is threading.main_thread()
        handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM) if main}
        reason = "failed"
        try:
            self.sinks = sinks.Sinks(self.recipe.report_to, sinks.Run.of(self.recipe, self.run_dir, self.sku), self._say)
            self._stages()
            reason = "interrupted" if self.interrupted else "budget" if self.out_of_money else "done"
            if not self.interrupted:
                self._finish()
        except UserError as e:
            self.state.update(status="failed", reason=str(e))
            raise
        finally:
            for s, h in handlers.items():
                signal.signal(s, h)
            self._close(reason)
        hangs = any(s["hangs"] for s in self.state.get("sinks", {}).values())
        return Ending(self.state["status"], self.state["reason"], self.run_dir, hangs)

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False)

    def _on_signal(self, number: int, frame: object) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        os.write(2, b"stopping after this step, with a checkpoint (once more to stop at once)\n")  # print may be under way

    def _stages(self) -> None:
        keep_freed_memory()  # before the probe, so that it measures what the stages will see
        base = export.base_folder(self.recipe.base)
        shape = model_shape(str(base))
        profile, fresh = probe.measured_profile(base, shape)
        self.plan = plan.make(self.recipe, self.book, self.sku, shape, profile)
        path = self.run_dir / "plan.json"
        data = plan.write(self.plan, self.book, path) if not path.exists() else json.loads(path.read_text())
        if not self.state["start_done"]:
            terminal.print_plan(data, self.console)
            plan.refuse_if_too_small(self.plan)
            self.state["start_done"] = True
        import torch

        self.threads = Threads(torch.get_num_threads(), torch.set_num_threads)
        self.live = Live(self.console)
        self.base, self.shape, self.profile = base, shape, profile
        self.lease.settle(self.clock() - self.lease.posted_until, "useful")
        last = max((i for i, t in enumerate(self.recipe.stages) if t.use == "evaluate"), default=-1)
        try:
            for i, table in enumerate(self.recipe.stages):
                row = self._row(table.name)
                if row["status"] in ("finished", "skipped"):
                    continue
                if self.interrupted:
                    return
                if self.out_of_money and (i != last or self._scored()):
                    row["status"] = "skipped"
                    self._save()
                    continue
                self._stop_seconds = self._reserve_for(i, last)
                self._stage(i, table, row)
        finally:
            self.live.end()

    def _scored(self) -> bool:
        """Whether the weights at hand have a score already."""
        folder = self.run_dir / "verdicts"
        return any(p.stem.partition("-")[2] == self.state["model_name"] for p in folder.glob("*.jsonl"))

    def _reserve_for(self, i: int, last: int) -> float:
        """Seconds that must stay unspent while stage i runs: last checkpoint, final evaluation, export, sinks' end."""
        return self._to_stop(i, last) + (sinks.CLOSE_SECONDS if self.recipe.report_to else 0.0)

    def _to_stop(self, i: int, last: int) -> float:
        if i == last:
            return plan.EXPORT_SECONDS
        seconds = self.plan.safe_stop_seconds()
        scoring = self.recipe.stages[i].use == "evaluate"
        if not any(s.forecast.trains for s in self.plan.stages[1 : i + 2]) and (scoring or self._scored()):
            seconds = plan.EXPORT_SECONDS  # nothing trained yet, and the base has its score or is getting it
        final = self.plan.final_evaluation()
        if final and (again := self._evaluated(final.name)):
            seconds = min(seconds, self.plan.checkpoint_seconds() + plan.EXPORT_SECONDS + again)
        return seconds

    def _evaluated(self, name: str) -> float:
        """Upper bound of evaluation `name` in seconds, from those that were done and the sizes of both; 0 before any."""
        wanted = self.plan.stage(name).seconds.mid
        done = [
            r["seconds"] * wanted / self.plan.stage(r["name"]).seconds.mid
            for r in self.state["stages"]
            if r["use"] == "evaluate" and r["status"] == "finished"
        ]
        return 1.3 * max(done, default=0.0)

    def _context(self, i: int, table: StageTable) -> Context:
        weights = self.state["weights"]
        planned = self.plan.stage(table.name).seconds.high
        if table.use == "evaluate" and (again := self._evaluated(table.name)):
            planned = min(planned, again)
        return Context(
            stage=table.name, seed=self.recipe.seed, recipe_hash=self.recipe.hash, run_dir=self.run_dir,
            folder=self.run_dir / "stages" / table.name, checkpoints=self.run_dir / "checkpoints" / table.name,
            base=self.base, weights=self.run_dir / weights if weights else None, model_name=self.state["model_name"],
            machine=self.sku, shape=self.shape, profile=self.profile,
            inputs={k: self.run_dir / v for k, v in self.state["artifacts"].items()},
            usd=lambda seconds: seconds * self.usd_per_second, accrued=self.lease.spent, clock=self.clock, position=i,
            planned_seconds=planned,
        )  # fmt: skip

    def _stage(self, i: int, table: StageTable, row: dict[str, Any]) -> None:
        self.lease.stage = table.name
        row["status"] = "running"
        self._save()
        self.live.begin(table.name)
        began = self.clock()
        context = self._context(i, table)
        events = stages.module(table.use).run(table.config, context.inputs, context)
        answer: str | None = None
        stopped = False
        artifacts: list[Artifact] = []
        checkpoint: Checkpoint | None = None
        try:
            while True:
                event = events.send(answer)
                answer = None
                if isinstance(event, Intent):
                    answer = self._answer(event)
                    stopped = stopped or answer == "stop"
                elif isinstance(event, StepReport):
                    self._report(event)
                elif isinstance(event, Checkpoint):
                    checkpoint = event
                elif isinstance(event, Artifact):
                    artifacts.append(event)
                elif isinstance(event, Usage):
                    self.ledger.post(event)
        except StopIteration:
            pass
        self.lease.settle()
        row["seconds"] = round(row["seconds"] + self.clock() - began, 3)
        if stopped and self.interrupted:
            self._save()
            return
        if stopped:
            self.out_of_money = True
            self.console.print(f"{table.name}: the budget's ceiling is reached; going on to the score and the bill")
        for a in artifacts:
            self.state["artifacts"][a.kind] = os.path.relpath(a.path, self.run_dir)
        if checkpoint is not None and checkpoint.step > 0:
            self.state["weights"] = os.path.relpath(checkpoint.path, self.run_dir)
            self.state["model_name"] = table.name
            row["weights"] = self.state["weights"]
        row["status"] = "stopped" if stopped else "finished"
        self._save()
        self.live.end()
        findings.show(artifacts, self.console)

    def _answer(self, intent: Intent) -> str:
        if self.interrupted:
            return "stop"
        return "go" if self.lease.ask(intent, self._stop_seconds) else "stop"

    def _report(self, report: StepReport) -> None:
        replayed = report.step <= self._reported.get(report.stage, 0)
        outcome: Outcome = "replayed" if replayed else "useful"
        self.lease.settle(report.seconds, outcome)
        changed = self.threads.adjust()
        if changed is not None:
            why = "other processes keep the cores busy" if changed < self.threads.most else "the cores are free again"
            self.console.print(f"{why}: computing with {changed} thread{'s' if changed > 1 else ''}")
        if notice := report.extra.get("notice"):  # what a stage has to say aloud, such as memory that ran out
            self.console.print(notice, highlight=False)
        spent, left = self.lease.spent(), self.lease.left()
        row = {
            "t": self.clock(), "attempt": self.attempt, "stage": report.stage, "step": report.step, "total": report.total,
            "loss": report.loss, "reward": report.reward, "grad_norm": report.grad_norm, "tokens": report.tokens,
            "useful_tokens": report.useful_tokens, "seconds": round(report.seconds, 4), "flops": report.flops,
            "usd": report.seconds * self.usd_per_second, "usd_spent": spent, "usd_left": left,
            "outcome": outcome, **dict(report.extra),
        }  # fmt: skip
        with open(self.run_dir / METRICS, "a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")
        self._lines += 1
        self.sinks.log(self._lines, row)
        speed = report.tokens / report.seconds if report.seconds > 0 else 0.0
        after = (report.total - report.step) * report.seconds
        self.live.update(
            report.step, report.total, report.loss, report.reward, speed, spent, left, after + self._later(report.stage)
        )

    def _later(self, stage: str) -> float:
        """Seconds planned for the stages after this one."""
        names = [s.name for s in self.plan.stages]
        return sum(s.seconds.mid for s in self.plan.stages[names.index(stage) + 1 :]) if stage in names else 0.0

    def _read_metrics(self) -> None:
        path = self.run_dir / METRICS
        if not path.exists():
            return
        drop_torn(path)
        for row in read_lines(path):
            self._lines += 1
            self._reported[row["stage"]] = max(self._reported.get(row["stage"], 0), row["step"])

    # the end

    def _finish(self) -> None:
        self.lease.stage = "export"
        self.sinks.finish()
        weights = self.state["weights"]
        export.write_model(
            self.run_dir, self.base, self.run_dir / weights if weights else None, self.recipe, self.state
        )
        done = not self.out_of_money
        self.state.update(
            status="finished" if done else "stopped", reason="" if done else "the budget's ceiling was reached",
            reached=None if done else str(self.recipe.budget),
        )  # fmt: skip

    def _close(self, reason: str) -> None:
        """Ledger, bill and page, also after a failure: what was spent is spent."""
        self.state["ended"] = self.clock()
        if reason == "interrupted":
            self.state.update(status="stopped", reason="interrupted; go on with --resume")
        elif reason == "failed" and self.state["status"] == "running":
            self.state.update(status="failed", reason=repr(sys.exc_info()[1]))
        try:
            if self.sinks.workers:
                self.state["sinks"] = self.sinks.close()
            self.lease.close(reason)
            self._save()
            usages = Ledger.read(self.run_dir / "ledger.jsonl").usages
            write_json(self.run_dir / "bill.json", bill.to_dict(bill.price(usages, self.book, self.recipe.budget)))
            if reason in ("done", "budget") and (self.run_dir / "model").is_dir():
                export.write_card(self.run_dir, self.recipe, self.state)  # again: now with the bill
            page.write(self.run_dir)
            if reason in ("done", "budget"):
                forget_beat(self.run_dir)
                self.state["closed"] = True  # a kill before this line leaves a run that --resume closes
                self._save()
        finally:  # a full disk must not leave the run locked
            self.ledger.close()
            self._lock.close()
