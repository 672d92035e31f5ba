"""`shoestring run`: plan, run and bill a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from shoestring.commands import recipes


def add(sub: Any) -> argparse.ArgumentParser:
    c = recipes.recipe_arguments(sub, "run", "plan, run and bill a recipe")
    c.add_argument("--resume", action="store_true", help="go on with a run that was stopped or killed")
    c.add_argument("--dry-run", action="store_true", help="write the resolved recipe and the plan, run nothing")
    c.add_argument("--runs", type=Path, default=Path("runs"), help="the folder that runs are kept in (default: runs)")
    return c


def run(args: argparse.Namespace) -> int:
    recipe = recipes.recipe_of(args)
    if args.dry_run:
        return recipes.dry_run(recipe, args.runs / recipe.name)
    return recipes.execute(recipe, args.runs / recipe.name, args.resume, args.started)
