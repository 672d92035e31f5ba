"""What every command that reads a recipe shares: its arguments, the recipe, the plan, and running it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from shoestring.commands.parser import both
from shoestring.recipe import Recipe
from shoestring.records import UserError


def recipe_arguments(sub: Any, name: str, help: str) -> argparse.ArgumentParser:
    """A command that takes a recipe and changes to it."""
    c = sub.add_parser(name, help=help, description=help)
    c.add_argument("recipe", type=Path, help="a recipe (TOML)")
    c.add_argument(
        "--set", action="append", default=[], metavar="STAGE.KEY=VALUE", help="change a value, such as grpo.steps=50"
    )
    c.add_argument("--seed", type=int, help="in place of the recipe's seed")
    c.add_argument("--name", help="in place of the recipe's name")
    c.add_argument("--rate", metavar="'0.10 USD/hour'", help="what an hour of this machine costs you")
    c.add_argument(*both("report_to"), metavar="A,B", help="send the curves to tensorboard, wandb, trackio or mlflow too")
    return c


def recipe_of(args: argparse.Namespace) -> Recipe:
    from shoestring import recipe, stages

    changes = [*args.set]
    if args.name:
        changes.append(f'name="{args.name}"')
    if args.rate:
        changes.append(f'rate="{args.rate}"')
    if args.report_to:
        changes.append(f'report_to="{args.report_to}"')
    if args.seed is not None:
        changes.append(f"seed={args.seed}")
    return recipe.load(args.recipe, stages.configs(), changes)


def console() -> Any:
    from rich.console import Console

    return Console()


def planned(recipe: Recipe) -> tuple[Any, Any]:
    """(the plan, the price book)."""
    from shoestring import plan
    from shoestring.cost.prices import PriceBook

    book = PriceBook.default()
    return plan.make(recipe, book, book.machine_sku(recipe.machine, recipe.rate)), book


def say_licences(recipe: Recipe) -> None:
    """One line for each licence of the base or a teacher that one must know before training on what it writes."""
    from shoestring import card

    for line in card.remarks(recipe):
        print(f"licence: {line}")


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
    say_licences(recipe)
    plan.refuse_if_too_small(made)
    return 0


def execute(recipe: Recipe, folder: Path, resume: bool, started: float) -> int:
    """Run it, then print scores, bill and where things are. `started`: unix seconds at which the process began."""
    from shoestring.estimate import history
    from shoestring.pipeline import Pipeline
    from shoestring.report import ladder, terminal

    screen = console()
    say_licences(recipe)
    ending = Pipeline(recipe, folder, screen, resume, started).run()
    folder = ending.run_dir
    if (folder / "scores.json").exists():
        scores, gains = (json.loads((folder / name).read_text()) for name in ("scores.json", "gains.json"))
        terminal.print_scores(scores, gains, screen)
    bill, run = (json.loads((folder / name).read_text()) for name in ("bill.json", "run.json"))
    terminal.print_bill(bill, screen, run)
    ladder.print_ladder(folder, screen)
    if (folder / "model").exists():
        print(f"model  {folder / 'model'}")
    print(f"report {folder / 'report.html'}")
    history.keep(folder)  # the next plan on this machine is mended by what this run took
    if ending.status == "stopped":
        print(f"stopped: {ending.reason}")
    code = 130 if ending.reason.startswith("interrupted") else 0
    if ending.hangs:  # a tracker's library would keep the process from ending; all that is ours is on the disk
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
