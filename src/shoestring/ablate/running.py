"""The child runs of an ablation, one after another: seed by seed, so that every arm has been seen when it is cut short.

Each child is an ordinary run in a folder of its own (`shoestring bill`, `report` and `compare` read it), with a ceiling out of
the pool. The seconds between two children are the next one's. What was killed or interrupted is gone on with by `resume`.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from shoestring.ablate import planning, results
from shoestring.ablate.file import SHARED, Ablation, Arm
from shoestring.ablate.planning import Planned
from shoestring.ablate.pool import Pool
from shoestring.cost.ledger import Ledger
from shoestring.cost.prices import PriceBook
from shoestring.recipe import Recipe
from shoestring.records import UserError
from shoestring.stages.context import write_json
from shoestring.terms import money_text

PLAN, LEDGER, RESULT = "plan.json", "ledger.jsonl", "ablation.json"
DRAFT_DRAWS = 400  # of the bootstrap while runs are still missing


@dataclass(frozen=True)
class Job:
    """One child run; `name` is its folder's."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        return SHARED if self.arm == SHARED else f"{self.arm}-s{self.seed}"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


class Runner:
    """One attempt at an ablation. `started`: unix seconds at which the process began; it is the first child's to pay."""

    def __init__(
        self, ablation: Ablation, out: Path, console: Any, seeds: Sequence[int], only: Sequence[str] = (),
        resume: bool = False, started: float | None = None, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.ablation, self.out, self.console, self.clock = ablation, out, console, clock
        self.seeds, self.resume, self.since = tuple(seeds), resume, clock() if started is None else started
        self.arms = [a for a in ablation.arms if not only or a.name in only]
        for name in only:
            ablation.arm(name)
        first = ablation.recipe(ablation.arms[0])
        self.book = PriceBook.default()
        self.sku = self.book.machine_sku(first.machine, first.rate)
        self._every: list[Planned] | None = None

    # planning

    def plan(self) -> list[Planned]:
        """What was planned when the arms began, and fresh plans of the others: the shared run, then the arms that were asked
        for. UserError for an arm that changed since."""
        if self._every is None:
            self._every = self._plan_all()
        wanted = {SHARED, *(a.name for a in self.arms)}
        return [r for r in self._every if r.arm in wanted]

    def _plan_all(self) -> list[Planned]:
        before = {r.arm: r for r in map(Planned.of, read(self.out / PLAN)["arms"])} if (self.out / PLAN).exists() else {}
        before = {n: r for n, r in before.items() if self._begun(n)}
        for a in self.ablation.arms:
            if a.name in before and self._changed(a, before[a.name]):
                said = f"has changed since its runs in {self.out} began; give it another name"
                raise UserError(f'{a.where}: arm "{a.name}" {said}')
        fresh = [a for a in self.ablation.arms if a.name not in before]
        made = planning.all_arms(self.ablation, fresh, self.book) if fresh else []
        rows = {r.arm: r for r in made} | before
        return [rows[n] for n in ([SHARED] if self.ablation.shared else []) + [a.name for a in self.ablation.arms]]

    def _changed(self, arm: Arm, before: Planned) -> bool:
        asked = "" if arm.usd is None else money_text(arm.usd)
        return (before.recipe_hash, before.asked_usd) != (self.ablation.recipe(arm).hash, asked)

    def _begun(self, arm: str) -> bool:
        return any((self.out / Job(arm, s).name / "run.json").exists() for s in self.ablation.seeds)

    def jobs(self) -> list[Job]:
        first = [Job(SHARED, self.ablation.seeds[0])] if self.ablation.shared else []
        return first + [Job(a.name, s) for s in self.seeds for a in self.arms]

    # running

    def run(self) -> bool:
        """Whether everything that was asked for has been done. Raises UserError before anything is spent for bad input."""
        if (self.out / PLAN).exists() and not self.resume:
            raise UserError(f"{self.out}: this ablation exists; add --resume to go on with it, or give it another name")
        if self.resume and not (self.out / PLAN).exists():
            raise UserError(f"{self.out}: there is no ablation to resume; leave --resume away")
        rows = self.plan()
        before = self.out / RESULT
        self.raised = before.exists() and self.ablation.budget > Decimal(str(read(before)["budget_usd"]))
        if not self.resume:
            planning.refuse_if_too_small(self.ablation, planning.needed(rows, len(self.seeds)))
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / PLAN, planning.to_dict(self.ablation, self._every or rows, self.ablation.seeds))
        self.planned = {r.arm: r for r in self._every or rows}
        self.pool = Pool(self.out / LEDGER, self.ablation.budget, self.book, self.sku)
        try:
            return self._jobs()
        finally:
            self.pool.close()

    def _jobs(self) -> bool:
        waiting = [j for j in self.jobs() if not self._done(j)]
        for job in self.jobs():
            if job not in waiting:
                self._settle(job)  # a kill may fall between a run's end and this
        need = sum(float(self._missing(j)) for j in waiting) + max((self.planned[j.arm].headroom for j in waiting), default=0.0)
        planning.refuse_if_too_small(self.ablation, need, self.pool.spent())
        whole = True
        while waiting:
            job = waiting.pop(0)
            if _locked(self.out / job.name):
                self._say(f"{job.name}: another process works on it")
                whole = False
                if job.arm == SHARED:
                    return False
                continue
            if not self._child(job, waiting):
                self.results(DRAFT_DRAWS)
                return False
            self.results(DRAFT_DRAWS if waiting else results.DRAWS)
        if whole:
            self.results(results.DRAWS)
        return whole

    def _ended(self, job: Job) -> str:
        """How a run has ended: "finished", "stopped" by its ceiling, "" not yet."""
        path = self.out / job.name / "run.json"
        state = read(path) if path.exists() else {}
        return state["status"] if state.get("closed") and state["status"] in ("finished", "stopped") else ""

    def _done(self, job: Job) -> bool:
        """Whether nothing is left to do. A run that its ceiling stopped goes on under a bigger budget; what is shared must be
        whole, since every arm reads it."""
        ended = self._ended(job)
        return ended == "finished" or (ended == "stopped" and job.arm != SHARED and not self.raised)

    def _missing(self, job: Job) -> Decimal:
        """Planned dollars of a run less what it has used; something is left for coming back. Of one that reached its ceiling
        the plan was too low: half of it again, above that ceiling."""
        usd, posted = Decimal(str(self.planned[job.arm].usd[1])), self.pool.posted(job.name)
        if self._ended(job) == "stopped":
            reached = read(self.out / job.name / "run.json")["reached"] or posted
            return max(Decimal(reached) - posted, Decimal(0)) + usd / 2
        return max(usd - posted, usd / 20)

    def _ceiling(self, job: Job, others: Sequence[Job]) -> Decimal:
        """Dollars that this run may have used at its end: its plan, and of what the plan leaves over the same share as every
        other run (the last ones get no more for what the first ones saved), at least what stopping safely keeps back.
        UserError where that does not fit any more."""
        posted = self.pool.posted(job.name)
        if (held := self.pool.held(job.name)) is not None:
            return posted + held
        mine = self._missing(job)
        rest = sum((self._missing(j) for j in others if self.pool.held(j.name) is None), Decimal(0))
        spare = self.pool.left() - mine - rest
        headroom = Decimal(str(self.planned[job.arm].headroom))
        usd = mine + max(headroom, min(spare * mine / (mine + rest), mine * (self._stretch() - 1)))
        got = self.pool.hold(job.name, usd)
        if got is None:
            raise UserError(
                f"{self.ablation.path}: {job.name} needs about {mine + headroom:.4f} USD and {self.pool.left():.4f} of "
                f"{self.ablation.budget} are left; raise the budget and use --resume. What ran stands in {self.out / RESULT}"
            )
        return posted + got

    def _stretch(self) -> Decimal:
        """The budget over what the plan gives all runs of the ablation, those of other attempts too."""
        return self.ablation.budget / Decimal(str(max(1e-9, read(self.out / PLAN)["total"]["usd"][1])))

    def _recipe(self, job: Job, ceiling: Decimal) -> Recipe:
        if job.arm == SHARED:
            return self.ablation.shared_recipe(ceiling)
        return self.ablation.recipe(self.ablation.arm(job.arm), job.seed, ceiling, self.planned[job.arm].scaled)

    def _child(self, job: Job, others: Sequence[Job]) -> bool:
        """Run or go on with one child. False where it was interrupted, or its window closed."""
        from rich.console import Console

        from shoestring.estimate import history
        from shoestring.pipeline import Pipeline

        folder, planned = self.out / job.name, self.planned[job.arm]
        recipe = self._recipe(job, self._ceiling(job, others))
        exists = (folder / "run.json").exists()
        if not exists and planned.reused:
            prepare(folder, recipe, planned.reused, self.out / SHARED, self.book, self.sku, self.since)
        begins = "goes on" if exists else "begins"
        takes = f"planned {planned.minutes[1]:.1f} min, {planned.usd[1]:.4f} USD; ceiling {recipe.budget} USD"
        self._say(f"{job.name}: {begins}; {takes}")
        folder.mkdir(parents=True, exist_ok=True)
        resume = (folder / "run.json").exists()
        with open(folder / "output.txt", "a", encoding="utf-8") as f:
            run = Pipeline(recipe, folder, Console(file=f, width=120), resume, self.since, self.clock)
            try:
                ending = run.run()
            except UserError as e:
                raise UserError(f"{job.name}: {e}") from None
            finally:
                self.since = self.clock()
                self._settle(job)
                self._free(run)
        history.keep(folder)
        usd = self.pool.posted(job.name)
        if not self._ended(job):
            self._say(f"{job.name}: {ending.reason}")
            return False
        if job.arm != SHARED and ending.status == "finished":  # the result is in model/; dozens of runs would fill the disk
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        found = results.accuracy(folder)
        said = "done" if found is None else f"accuracy {found:.1%}"
        self._say(f"{job.name}: {said}, {usd:.4f} USD" + (f" ({ending.reason})" if ending.status == "stopped" else ""))
        return True

    def _settle(self, job: Job) -> None:
        path = self.out / job.name / "ledger.jsonl"
        if path.exists():
            self.pool.settle(job.name, list(Ledger.read(path).usages))

    def _free(self, run: Any) -> None:
        """A child must not hand its successor fewer threads, or its memory."""
        threads = getattr(run, "threads", None)
        if threads is not None and threads.count != threads.most:
            threads._apply(threads.most)
        del run
        gc.collect()

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False)

    def results(self, draws: int) -> dict[str, Any]:
        """ablation.json and the page, of what there is."""
        from shoestring.report import ablation as report

        made = results.collect(self.ablation, self.out, list(self.planned.values()), self.seeds, self.pool, self.book, draws)
        write_json(self.out / RESULT, made)
        report.write(made, self.out / "report.html")
        return made


def _locked(folder: Path) -> bool:
    """Whether another process works on this run."""
    try:
        with open(folder / "run.lock") as f:
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def prepare(
    folder: Path, recipe: Recipe, reused: Sequence[str], shared: Path, book: PriceBook, sku: str, started: float
) -> None:
    """The state of a child run whose first stages an earlier run has done: it reads that run's files, and says so."""
    from shoestring import opening

    state, before = opening.fresh(recipe, book, sku, started), read(shared / "run.json")
    rows = {r["name"]: r for r in before["stages"]}
    undone = [n for n in reused if rows[n]["status"] != "finished"]
    if undone:
        said = f"its stage {undone[0]!r} is {rows[undone[0]]['status']}"
        raise UserError(f"{shared}: {said}; use --resume, with a bigger budget if there is little left")
    there = os.path.relpath(shared, folder)
    for row in state["stages"]:
        if row["name"] in reused:
            row.update(status="reused", run=there)
            if rows[row["name"]].get("weights"):
                row["weights"] = state["weights"] = os.path.join(there, rows[row["name"]]["weights"])
                state["model_name"] = row["name"]
    state["artifacts"] = {k: os.path.normpath(os.path.join(there, v)) for k, v in before["artifacts"].items()}
    places = {t.name: i for i, t in enumerate(recipe.stages)}
    names = [r["name"] for r in before["stages"]]
    (folder / "verdicts").mkdir(parents=True, exist_ok=True)
    for path in sorted((shared / "verdicts").glob("*.jsonl")):
        number, _, model = path.name.partition("-")
        at = places.get(names[int(number)]) if number.isdigit() and int(number) < len(names) else None
        if at is not None:
            shutil.copyfile(path, folder / "verdicts" / f"{at:02d}-{model}")
    write_json(folder / "run.json", state)
