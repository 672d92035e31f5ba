"""A command that pays: its flags become a recipe of one stage, which runs as any recipe does: planned, held under a budget,
billed, resumable. No command itself."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoestring.commands.eval import STANDIN
from shoestring.commands.parser import both
from shoestring.records import UserError

SERVER = ("model", "key_env", "price")
PAID = ("budget", "rate", "base")


def server_arguments(c: argparse.ArgumentParser, role: str, what: str) -> None:
    """`--ROLE URL` and what belongs to it. what: what the server is asked for."""
    c.add_argument(*both(role), metavar="URL", help=f"an OpenAI-compatible server that {what}; paid, so --budget is needed")
    c.add_argument(*both(f"{role}_model"), metavar="ID", help="its model")
    c.add_argument(*both(f"{role}_key_env"), metavar="NAME", help="the environment variable that holds its key")
    c.add_argument(
        *both(f"{role}_price"), metavar="CATALOGUE/MODEL",
        help="in the price book (default: machine, for a server on this machine)",
    )  # fmt: skip
    c.add_argument("--budget", metavar="'1 USD'", help="a hard ceiling; without it the plan is printed and nobody is asked")
    c.add_argument("--rate", metavar="'0.10 USD/hour'", help="what an hour of this machine costs you")
    c.add_argument("--base", metavar="MODEL", help=f"whose tokenizer counts what the server does not (default: {STANDIN})")


def table(args: argparse.Namespace, role: str, also: tuple[str, ...] = ()) -> dict[str, Any] | None:
    """The server's table of a recipe, None where no server is named; then UserError for flags that belong to one (`also`:
    others that do)."""
    url = getattr(args, role)
    if url is None:
        for name in (*(f"{role}_{k}" for k in SERVER), *PAID, *also):
            if getattr(args, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} belongs to a server: add --{role} URL")
        return None
    given = {k: v for k in SERVER if (v := getattr(args, f"{role}_{k}")) is not None}
    return {"url": url, "price": "machine"} | given


def run(
    args: argparse.Namespace, command: str, stage: Mapping[str, Any], places: Mapping[str, str], folder: Path, resume: bool
) -> int:
    """Run the recipe in `folder`; its screen goes to stderr where the command prints JSON. places: key of the stage → flag."""
    import tomlkit

    from shoestring import stages
    from shoestring.commands import recipes as running
    from shoestring.commands.train import _refuse
    from shoestring.recipe import loads

    where: dict[tuple[str | int, ...], str] = {("stage", 0, k): flag for k, flag in places.items()}
    where |= {(k,): f"--{k}" for k in PAID}
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name).strip("-_")[:64] or "paid"
    top: dict[str, Any] = {"name": name, "base": args.base or STANDIN, "seed": args.seed}
    top |= {k: v for k in ("budget", "rate") if (v := getattr(args, k)) is not None}
    top.setdefault("budget", "1000000 USD")  # the plan needs one; without --budget nothing is spent
    recipe = loads(
        tomlkit.dumps(top | {"stage": [dict(stage)]}), stages.configs(), (), origin=f"shoestring {command}", places=where
    )
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        if args.budget is None:
            _refuse(recipe)
        return running.execute(recipe, folder, resume, args.started)


def paid(folder: Path) -> dict[str, str]:
    """What the run in `folder` comes to, for --json."""
    state, bill = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("run.json", "bill.json"))
    return {
        "run": str(folder), "status": state["status"], "currency": bill["currency"], "total": bill["marginal"]["total"],
        "is_lower_bound": bill["is_lower_bound"],
    }  # fmt: skip
