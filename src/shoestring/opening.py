"""Opening a run's folder: what is checked before anything is made, the run's state, and which runs may be gone on with."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import IO, Any

from shoestring import export, plan, probe, stages
from shoestring.cost.beside import Beside
from shoestring.cost.budget import Budget
from shoestring.cost.prices import PriceBook
from shoestring.lease import reopen
from shoestring.recipe import Recipe
from shoestring.records import Checkpoint, Usage, UserError
from shoestring.stages.trainer import TrainerConfig

RUN = "run.json"


def check(recipe: Recipe, book: PriceBook, sku: str) -> None:
    """Bad input is found here, before a folder is made. The budget too, where this machine was measured before."""
    export.check_base(recipe.base)
    if recipe.terms.worth is not None and not any(isinstance(t.config, TrainerConfig) for t in recipe.stages):
        raise UserError(f"{recipe.path or recipe.name}: worth stops training that does not pay, and no stage here trains")
    for table in recipe.stages:
        stage = stages.module(table.use)
        if hasattr(stage, "check"):
            stage.check(table.config, recipe.base)
    try:
        made = plan.make(recipe, book, sku)
    except UserError:
        if export.is_local(recipe.base):
            raise
        return  # not downloaded yet
    plan.check_inputs(made)
    if made.profile.basis == "measured":
        plan.refuse_if_too_small(made)


def lock(run_dir: Path) -> IO[str]:
    """Held as long as the run. UserError where another process works on it."""
    held = open(run_dir / "run.lock", "w")  # noqa: SIM115
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UserError(f"{run_dir}: another process works on this run; wait for it or stop it") from None
    return held


def standing(recipe: Recipe, run_dir: Path, resume: bool) -> dict[str, Any]:
    """The state of a run that exists, ready to be gone on with. UserError where it may not be."""
    try:
        state = json.loads((run_dir / RUN).read_text())
    except ValueError:
        raise UserError(f"{run_dir / RUN}: cannot be read; give the run another --name") from None
    if not resume:
        raise UserError(f"{run_dir}: this run exists; add --resume to go on with it, or --name for a new one")
    before, now = dict(state.get("code", ())), dict(recipe.code)
    for file in before:
        if (file in now and now[file] != before[file]) or not Path(file).is_file():
            raise UserError(
                f"{run_dir}: {file} is not what it was when this run began, and its rewards would not mean the same; "
                "put it back, or give the run another --name"
            )
    if state["recipe_hash"] != recipe.hash:
        raise UserError(
            f"{run_dir}: the recipe or the seed has changed since this run began; "
            "only the budget may change on --resume. Give the run another --name"
        )
    if state["status"] == "finished" and state["closed"]:
        raise UserError(f"{run_dir}: this run is finished; see {run_dir}/report.html")
    reopen(state, run_dir, recipe.budget)
    return state


def fresh(recipe: Recipe, book: PriceBook, sku: str, started: float) -> dict[str, Any]:
    """The state of a run that begins."""
    price = book.price(sku)
    return {
        "name": recipe.name, "seed": recipe.seed, "status": "running", "reason": "",
        "started": started, "ended": None, "attempts": 0, "versions": probe.versions(),
        "machine": {
            "sku": sku, "usd_per_hour": f"{price.amount * 3600:.4f}", "source": price.ref.source,
            "date": price.ref.date, "note": price.ref.note,
        },
        "base": recipe.base, "recipe_hash": recipe.hash, "code": recipe.code, "weights": None, "model_name": "base",
        "artifacts": {}, "start_done": False, "closed": False, "reached": None,
        "stages": [{"name": t.name, "use": t.use, "status": "waiting", "seconds": 0.0} for t in recipe.stages],
    }  # fmt: skip


def refuse_a_poor_resume(run_dir: Path, budget: Budget, sku: str, beside: Beside) -> None:
    """UserError where so little is left that going on would end in nothing: imports, the base model once more and an export,
    the storage meanwhile, and the result's way out."""
    lease = Usage(sku, plan.RESUME_SECONDS + plan.EXPORT_SECONDS, "second", "start")
    needed = budget.book.cost([lease, *beside.during(lease), *beside.out("start", "", 0.0)])
    if budget.left() < needed:
        raise UserError(
            f"{run_dir}: {budget.left():.4f} USD of {budget.limit} are left and going on takes at least "
            f"{needed:.4f}; give a bigger budget, as in --set budget='1 USD'"
        )


def newest(folder: Path, stage: str, recipe_hash: str) -> Checkpoint | None:
    """The last whole checkpoint of a stage whose step was cut off, where later stages can read its weights (those of an
    adapter are merged for that at the stage's end only)."""
    found = [p.parent for p in folder.glob("step-*/manifest.json") if p.parent.name[5:].isdigit()]
    for path in sorted(found, key=lambda p: int(p.name[5:]), reverse=True):
        with open(path / "state.safetensors", "rb") as f:
            names = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        if any(n.startswith("master/") for n in names):
            return Checkpoint(path, stage, int(path.name[5:]), recipe_hash)
    return None
