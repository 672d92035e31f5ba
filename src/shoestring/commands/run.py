"""What running a recipe means on the command line, whether it came from a file or from flags."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from shoestring.recipe import Recipe
from shoestring.records import UserError


def console() -> Any:
    from rich.console import Console

    return Console()


def planned(recipe: Recipe) -> tuple[Any, Any]:
    """(the plan, the price book)."""
    from shoestring import plan
    from shoestring.cost.prices import PriceBook

    book = PriceBook.default()
    return plan.make(recipe, book, book.machine_sku(recipe.machine, recipe.rate)), book


def dry_run(recipe: Recipe, out: Path) -> int:
    """Write the resolved recipe and the plan, run nothing."""
    from shoestring import plan
    from shoestring.report import sinks

    if (out / "run.json").exists():
        raise UserError(f"{out}: this run exists, its recipe and plan stay; try another --name or --output_dir, or `plan`")
    sinks.check(recipe.report_to)
    made, book = planned(recipe)
    plan.check_inputs(made)
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    plan.write(made, book, out / "plan.json")
    print(f"wrote {out / 'recipe.toml'} and {out / 'plan.json'}")
    plan.refuse_if_too_small(made)
    return 0


def execute(recipe: Recipe, folder: Path, resume: bool, started: float) -> int:
    """Run it, then print scores, bill and where things are. `started`: unix seconds at which the process began."""
    from shoestring.pipeline import Pipeline
    from shoestring.report import terminal

    screen = console()
    ending = Pipeline(recipe, folder, screen, resume, started).run()
    folder = ending.run_dir
    if (folder / "scores.json").exists():
        scores, gains = (json.loads((folder / name).read_text()) for name in ("scores.json", "gains.json"))
        terminal.print_scores(scores, gains, screen)
    bill, run = (json.loads((folder / name).read_text()) for name in ("bill.json", "run.json"))
    terminal.print_bill(bill, screen, run)
    if (folder / "model").exists():
        print(f"model  {folder / 'model'}")
    print(f"report {folder / 'report.html'}")
    if ending.status == "stopped":
        print(f"stopped: {ending.reason}")
    code = 130 if ending.reason.startswith("interrupted") else 0
    if ending.hangs:  # a tracker's library would keep the process from ending; all that is ours is on the disk
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
