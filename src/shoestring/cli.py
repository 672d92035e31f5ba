"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import time

STARTED = time.time()  # the lease of a run begins with its process

import argparse  # noqa: E402
import errno  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402

from shoestring import __version__  # noqa: E402
from shoestring.commands import data, init, serve, train  # noqa: E402
from shoestring.commands.parser import Parser, both, parse  # noqa: E402
from shoestring.records import UserError  # noqa: E402

DISK = {
    errno.ENOSPC: "the disk is full: free space, then go on with --resume",
    errno.EDQUOT: "the disk quota is used up: free space, then go on with --resume",
    errno.EACCES: "no permission to write here: choose another folder with --runs",
    errno.EPERM: "no permission to write here: choose another folder with --runs",
    errno.EROFS: "the file system is read-only: choose another folder with --runs",
    errno.EFBIG: "the file is larger than is allowed here: raise the limit, then go on with --resume",
    errno.EEXIST: "a file is in the way: choose another folder with --runs",
    errno.ENOTDIR: "a file is in the way: choose another folder with --runs",
}


def parser() -> Parser:
    p = Parser(prog="shoestring", description="The best small reasoning model that a budget buys.")
    p.add_argument("--version", action="version", version=f"shoestring {__version__}")
    sub = p.add_subparsers(dest="command", metavar="command", required=True)

    def recipe(name: str, help: str) -> argparse.ArgumentParser:
        c = sub.add_parser(name, help=help, description=help)
        c.add_argument("recipe", type=Path, help="a recipe (TOML)")
        c.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="STAGE.KEY=VALUE",
            help="change a value, such as grpo.steps=50",
        )
        c.add_argument("--seed", type=int, help="in place of the recipe's seed")
        c.add_argument("--name", help="in place of the recipe's name")
        c.add_argument("--rate", metavar="'0.10 USD/hour'", help="what an hour of this machine costs you")
        c.add_argument(*both("report_to"), metavar="A,B", help="send the curves to tensorboard, wandb, trackio or mlflow too")
        return c

    run = recipe("run", "plan, run and bill a recipe")
    run.add_argument("--resume", action="store_true", help="go on with a run that was stopped or killed")
    run.add_argument("--dry-run", action="store_true", help="write the resolved recipe and the plan, run nothing")
    run.add_argument("--runs", type=Path, default=Path("runs"), help="the folder that runs are kept in (default: runs)")
    made = recipe("plan", "what a recipe will use and cost")
    made.add_argument("--json", action="store_true")
    for module in (train, init, data, serve):
        module.add(sub)
    bill = sub.add_parser("bill", help="the itemised bill of a run")
    bill.add_argument("run", type=Path, help="a run's folder")
    bill.add_argument("--json", action="store_true")
    report = sub.add_parser("report", help="write a run's page again")
    report.add_argument("run", type=Path, help="a run's folder")
    prices = sub.add_parser("prices", help="the price book")
    prices.add_argument("--machine", default="", metavar="TEXT", help="only skus that contain this text")
    doctor = sub.add_parser("doctor", help="measure this machine for the planner")
    doctor.add_argument("--base", default="smollm2-135m-instruct")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input (one line on stderr), 130 interrupted."""
    args = parse(parser(), argv)
    args.started = STARTED
    for stream in (sys.stdout, sys.stderr):  # progress must reach a log file while the run goes on
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return COMMANDS[args.command](args)
    except UserError as e:
        print(f"shoestring: {e}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as in `shoestring prices | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        said = DISK.get(e.errno or 0) or (e.strerror or str(e) or type(e).__name__).lower()
        print(f"shoestring: {f'{e.filename}: ' if e.filename else ''}{said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("shoestring: stopped", file=sys.stderr)
        return 130


def _recipe(args: argparse.Namespace):
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


def _plan(args: argparse.Namespace) -> int:
    from shoestring import plan
    from shoestring.commands.run import console, planned
    from shoestring.report import terminal

    made, book = planned(_recipe(args))
    data = plan.to_dict(made, book)
    if args.json:
        print(json.dumps(data, indent=1))
    else:
        terminal.print_plan(data, console())
    plan.refuse_if_too_small(made)
    return 0


def _run(args: argparse.Namespace) -> int:
    from shoestring.commands import run

    recipe = _recipe(args)
    if args.dry_run:
        return run.dry_run(recipe, args.runs / recipe.name)
    return run.execute(recipe, args.runs / recipe.name, args.resume, STARTED)


def _bill(args: argparse.Namespace) -> int:
    from shoestring import recipe, stages
    from shoestring.commands.run import console
    from shoestring.cost import bill
    from shoestring.cost.ledger import Ledger
    from shoestring.cost.prices import PriceBook
    from shoestring.report import terminal

    if not (args.run / "ledger.jsonl").exists():
        raise UserError(f"{args.run}: no ledger.jsonl; give the folder of a run, such as runs/quickstart")
    made = recipe.load(args.run / "recipe.toml", stages.configs())
    run = json.loads((args.run / "run.json").read_text()) if (args.run / "run.json").exists() else None
    book = PriceBook.default()
    book.machine_sku(
        made.machine, made.rate, today=time.strftime("%Y-%m-%d", time.gmtime(run["started"])) if run else None
    )
    data = bill.to_dict(bill.price(Ledger.read(args.run / "ledger.jsonl").usages, book, made.budget))
    if args.json:
        print(json.dumps(data, indent=1))
    else:
        terminal.print_bill(data, console(), run)
    return 0


def _report(args: argparse.Namespace) -> int:
    from shoestring.report import page

    if not (args.run / "run.json").exists():
        raise UserError(f"{args.run}: no run.json; give the folder of a run, such as runs/quickstart")
    print(page.write(args.run))
    return 0


def _prices(args: argparse.Namespace) -> int:
    from shoestring.cost.prices import PriceBook

    book = PriceBook.default()
    found = [s for s in sorted(book) if args.machine.lower() in s.lower()]
    if not found:
        raise UserError(f"no price for {args.machine!r}; `shoestring prices` lists all skus")
    for sku in found:
        price = book.price(sku)
        hourly = (
            f"{price.amount * 3600:.4f} USD/hour"
            if price.unit == "second"
            else f"{price.amount * 1000000:.4f} USD/1M {price.unit}s"
        )
        print(f"{sku}  {hourly}  {price.ref.source} ({price.ref.date})")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from shoestring import export, probe
    from shoestring.estimate.headers import model_shape
    from shoestring.estimate.machine import profile_key, save_profile

    base = export.base_folder(args.base)
    shape = model_shape(str(base))
    profile = probe.probe(base, shape)
    save_profile(profile_key(probe.torch_version()), profile)
    print(f"training  {profile.train_flops.mid / 1e12:.3f} TFLOP/s (measured)")
    print(f"decoding  {profile.decode_tokens.mid:.0f} tokens/s at {probe.ROWS} rows (measured)")
    print(f"prefill   {profile.prefill_tokens.mid:.0f} tokens/s (measured)")
    print(f"disk      {profile.disk_bytes_per_second.mid / 1e6:.0f} MB/s, synced (measured)")
    return 0


COMMANDS = {
    "run": _run, "plan": _plan, "bill": _bill, "report": _report, "prices": _prices, "doctor": _doctor,
    "init": init.run, "data": data.run, "serve": serve.run, **dict.fromkeys(train.COMMANDS, train.run),
}  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main())
