"""The one loop: runs the stages of a recipe, meters them, stops at the budget, resumes.

A stage is a generator (see `stages.context`). Before a step it yields an `Intent` and hears "go" or "stop"; what it
yields afterwards is metered (`StepReport`), kept (`Checkpoint`, `Artifact`) or posted (`Usage`). A step that runs on into the
money for stopping safely is ended by the watchdog; the run goes on from the last checkpoint to its score.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring import export, opening, plan, probe, stages, watchdog
from shoestring.allocator import keep_freed_memory
from shoestring.cost import bill, statement
from shoestring.cost.beside import Beside
from shoestring.cost.budget import Budget
from shoestring.cost.ledger import Ledger
from shoestring.cost.prices import PriceBook
from shoestring.estimate.headers import model_shape
from shoestring.lease import Lease, forget_beat, recover
from shoestring.opening import RUN
from shoestring.progress import Progress
from shoestring.recipe import Recipe, StageTable
from shoestring.records import Artifact, Checkpoint, Intent, StepReport, Usage, UserError
from shoestring.report import findings, page, sinks, terminal
from shoestring.report.live import Live
from shoestring.stages.context import Context, Overrun, write_json
from shoestring.threads import Threads, exact


@dataclass
class Ending:
    """How a run ended: finished, or stopped by the budget (scored), by the user or by its window (resumable)."""

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
        self.beside = Beside.of(recipe.terms, self.book)
        self.resumed = resume
        self.sleep: Callable[[float], None] = getattr(clock, "sleep", time.sleep)
        self.interrupted = False
        self.out_of_money = False
        self.shut: float | None = None  # when the window closes that this attempt works in
        self.closing = False  # it is too late for another step in it
        self.state: dict[str, Any] = {}
        self.sinks = sinks.Sinks((), sinks.Run("", run_dir, {}), self._say)
        self._stop_seconds = 0.0

    # the run's own files

    def _open(self) -> None:
        sinks.check(self.recipe.report_to)
        exists = (self.run_dir / RUN).exists()
        if self.resumed and not exists:
            raise UserError(f"{self.run_dir}: there is no run to resume; leave --resume away")
        if not exists:
            opening.check(self.recipe, self.book, self.sku)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._lock = opening.lock(self.run_dir)
        if exists:
            self.state = opening.standing(self.recipe, self.run_dir, self.resumed)
            self._await_window()
        else:
            self._await_window()
            self.state = opening.fresh(self.recipe, self.book, self.sku, self.started)
        self.state["attempts"] += 1
        self.state.update(status="running", reason="", closed=False)
        self._save()
        (self.run_dir / "recipe.toml").write_text(self.recipe.to_toml(), encoding="utf-8")

    def _await_window(self) -> None:
        """Wait until the recipe's window opens. The lease begins then: what waits is not paid for."""
        window = self.recipe.terms.window
        if window is None:
            return
        now = self.clock()
        opens = window.next_start(now)
        if not window.fits(opens, plan.RESUME_SECONDS + plan.EXPORT_SECONDS):  # too late to get anywhere in this one
            opens = window.next_start(window.closes(opens) or opens)
        if opens > now:
            until = f"waiting {_hours(opens - now)} until {window.show(opens)}"
            self._say(f"window {window}: {until}; nothing is leased until then")
            if self.recipe.machine.kind == "cloud":
                self._say("a rented machine is paid for from its start: start it then, not now")
            while (now := self.clock()) < opens:
                self.sleep(min(30.0, opens - now))
            self.started = self.clock()
        self.shut = window.closes(self.clock())

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
        lost = recover(self.ledger, self.sku, self.run_dir, self.beside)
        if lost:
            seconds = sum(u.quantity for u in lost if u.unit == "second")
            self.console.print(f"the last attempt was killed: {seconds:.1f} s of its lease are billed as failed")
        self.budget = Budget(self.recipe.budget, self.book, self.ledger)
        if self.resumed:
            opening.refuse_a_poor_resume(self.run_dir, self.budget, self.sku, self.beside)
        self.ledger.begin(attempt, lease_start=self.started)
        self.lease = Lease(
            self.ledger, self.budget, self.sku, attempt, self.run_dir, self.started, self.clock, self.beside
        )  # fmt: skip
        self.lease.beat()
        self.watchdog = watchdog.of(self.clock)
        main = threading.current_thread() is threading.main_thread()
        handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM) if main}
        reason = "failed"
        try:
            self.sinks = sinks.Sinks(self.recipe.report_to, sinks.Run.of(self.recipe, self.run_dir, self.sku), self._say)
            self._stages()
            reason = "budget" if self.out_of_money else "done"
            if self.interrupted or self.closing:
                reason = "interrupted" if self.interrupted else "window"
            else:
                self._finish()
        except UserError as e:
            self.state.update(status="failed", reason=str(e))
            raise
        finally:
            self.watchdog.close()
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
        reused = [r["name"] for r in self.state["stages"] if r["status"] == "reused"]
        self.plan = plan.make(self.recipe, self.book, self.sku, shape, profile, reused)
        path = self.run_dir / "plan.json"
        fresh_plan = not path.exists()
        data = plan.write(self.plan, self.book, path, self.clock()) if fresh_plan else json.loads(path.read_text())
        if not self.state["start_done"]:
            terminal.print_plan(data, self.console)
            plan.refuse_if_too_small(self.plan)
            self.state["start_done"] = True
        import torch

        self.threads = Threads(torch.get_num_threads(), torch.set_num_threads)
        self.live = Live(self.console)
        self.progress = Progress(
            self.run_dir, self.lease, self.plan, self.live, self.sinks, self._say, self.usd_per_second
        )  # fmt: skip
        self.base, self.shape, self.profile = base, shape, profile
        self.lease.settle(self.clock() - self.lease.posted_until, "useful")
        last = max((i for i, t in enumerate(self.recipe.stages) if t.use == "evaluate"), default=-1)
        try:
            for i, table in enumerate(self.recipe.stages):
                row = self._row(table.name)
                if row["status"] in ("finished", "skipped", "reused"):
                    continue
                if self.interrupted or self.closing:
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
        """Seconds that must stay unspent while stage i runs: last checkpoint, final evaluation, export, sinks' end, and
        a restart."""
        return self._to_stop(i, last) + (sinks.CLOSE_SECONDS if self.recipe.report_to else 0.0)

    def _to_stop(self, i: int, last: int) -> float:
        if i == last:
            return plan.EXPORT_SECONDS
        # a crash at the very end must leave enough to come back and score; of a small budget, not much of it
        restart = min(plan.RESUME_SECONDS, 0.02 * float(self.recipe.budget) / self.usd_per_second)
        seconds = self.plan.safe_stop_seconds() + restart
        scoring = self.recipe.stages[i].use == "evaluate"
        if not any(s.forecast.trains for s in self.plan.stages[1 : i + 2]) and (scoring or self._scored()):
            seconds = plan.EXPORT_SECONDS  # nothing trained yet, and the base has its score or is getting it
        final = self.plan.final_evaluation()
        if final and (again := self._evaluated(final.name)):
            seconds = min(seconds, self.plan.checkpoint_seconds() + plan.EXPORT_SECONDS + again + restart)
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
            priced=lambda sku: sku in self.book and sku not in self.book.clashes,
            cost=lambda usages: float(self.book.cost(usages)),
            fits=lambda intent: self.lease.fits(intent, self._stop_seconds),
            usd=lambda seconds: seconds * self.usd_per_second, accrued=self.lease.spent, clock=self.clock, position=i,
            planned_seconds=planned, worth=None if self.recipe.terms.worth is None else float(self.recipe.terms.worth),
        )  # fmt: skip

    def _stage(self, i: int, table: StageTable, row: dict[str, Any]) -> None:
        self.lease.stage = table.name
        row["status"] = "running"
        self._save()
        self.live.begin(table.name)
        began = self.clock()
        context = self._context(i, table)
        events = stages.module(table.use).run(table.config, context.inputs, context)
        stopped, self.watchdog.rang = False, False
        answer: str | None = None
        artifacts: list[Artifact] = []
        checkpoint: Checkpoint | None = None
        try:
            while True:
                if not (stopped or self.watchdog.rang):  # what follows a stop is paid for by the reserve
                    self.watchdog.arm(self.lease.deadline(self._stop_seconds), self.clock())
                event = events.send(answer)
                self.watchdog.disarm()
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
            self.watchdog.disarm()
        except Overrun:
            events.close()
            stopped = True
            self.lease.settle(self.clock() - self.lease.posted_until, "discarded")
            checkpoint = opening.newest(context.checkpoints, table.name, self.recipe.hash) or checkpoint
            self.console.print(f"{table.name}: a step ran into the ceiling and was ended; its last checkpoint counts")
        if self.watchdog.rang and not stopped:  # the stage ended by itself, with what it had
            stopped = True
            self.lease.settle(self.clock() - self.lease.posted_until, "discarded")
        self.lease.settle()
        row["seconds"] = round(row["seconds"] + self.clock() - began, 3)
        if stopped and (self.interrupted or self.closing):
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
        if self.shut is not None:
            needed = sum(u.quantity for u in intent.usages if u.unit == "second") + self.plan.checkpoint_seconds()
            if self.clock() + needed > self.shut:
                self.closing = True
                return "stop"
        return "go" if self.lease.ask(intent, self._stop_seconds) else "stop"

    def _report(self, report: StepReport) -> None:
        changed = self.threads.adjust()
        if changed is not None:
            why = "other processes keep the cores busy" if changed < self.threads.most else "the cores are free again"
            held = "" if exact() else f" (last bits differ on this processor; OMP_NUM_THREADS={changed} would hold the count)"
            self.console.print(f"{why}: computing with {changed} thread{'s' if changed > 1 else ''}{held}")
        self.progress.report(report)

    # the end

    def _finish(self) -> None:
        self.lease.stage = "export"
        self.lease.leave()
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
        elif reason == "window" and (window := self.recipe.terms.window):
            until = window.show(window.next_start(self.shut or self.clock()))
            self.state.update(status="stopped", reason=f"window {window} closes; go on with --resume from {until}")
        elif reason == "failed" and self.state["status"] == "running":
            self.state.update(status="failed", reason=repr(sys.exc_info()[1]))
        try:
            if self.sinks.workers:
                self.state["sinks"] = self.sinks.close()
            self.lease.close(reason)
            self._save()
            kept = Ledger.read(self.run_dir / "ledger.jsonl")
            made = bill.to_dict(bill.price(kept.usages, self.book, self.recipe.budget))
            write_json(self.run_dir / "bill.json", statement.with_charges(made, self.run_dir.name, kept.charges))
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


def _hours(seconds: float) -> str:
    """ "8 h 05 min" """
    minutes = int(seconds / 60 + 0.999)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
