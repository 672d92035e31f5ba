"""`shoestring eval`: a model on named benchmarks, as a run of one stage made of flags: planned, held under its budget, billed.

    shoestring eval MODEL --benchmark gsm8k --data test.jsonl --budget "0.05 USD"

A flag that is not given leaves the stage's own default; an answer may have MAX_NEW tokens. docs/eval.md has the whole.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring.commands.parser import both
from shoestring.recipe import Recipe, loads
from shoestring.records import UserError

MAX_NEW = 512  # tokens an answer, where nothing else is said
STANDIN = "smollm2-135m-instruct"  # whose tokenizer counts where the model is at a server alone


@dataclass(frozen=True)
class Flag:
    """One option, named as the key of the stage that it sets. kind list: several numbers, separated by commas."""

    name: str
    kind: type
    help: str


FLAGS = (
    Flag("samples", int, "answers a problem (default 1)"),
    Flag("temperature", float, "of sampling; 0, the default, is greedy"),
    Flag("top_p", float, "of sampling (default 1)"),
    Flag("pass_at", list, "the k of pass@k and majority@k, as in 1,4,16 (default: 1 and the number of samples)"),
    Flag("max_new", int, f"tokens an answer (default {MAX_NEW}); with --thinking it is the budget and --answer"),
    Flag("max_problems", int, "so many problems of each benchmark at most, always the same ones"),
    Flag("thinking", list, "budgets of thinking tokens, as in 256,512,1024: draws the test-time scaling curve"),
    Flag("waits", int, "ends of the thinking that are taken back and replaced by 'Wait' (default 0)"),
    Flag("answer", int, "tokens kept for the answer after the thinking (default 64)"),
    Flag("parallel", int, "free samples beside the budgets, for majority votes and rejection sampling (default 8)"),
    Flag("endpoint", str, "an OpenAI-compatible server to ask in place of our engine, as in http://127.0.0.1:8000/v1"),
    Flag("endpoint_model", str, "its model id (default: MODEL)"),
    Flag("endpoint_key_env", str, "the environment variable that holds the server's key"),
    Flag("endpoint_price", str, "catalogue/model in the price book (default: machine, for a server on this machine)"),
    Flag("concurrency", int, "requests in flight at the server (default 16)"),
    Flag("compare", str, "another model, asked too, or the folder of a run that asked the same: paired, with a p-value"),
)


def add(sub: Any) -> None:
    said = "score a model on benchmarks: pass@k, majority votes, thinking budgets, intervals, dollars a right answer"
    c = sub.add_parser("eval", help=said, description=f"{said[0].upper()}{said[1:]}.")
    c.add_argument("model", metavar="MODEL", help="a name, a folder, a .gguf or a hub id; with --endpoint a model id there")
    c.add_argument(
        "--benchmark", action="append", default=[], metavar="NAME", required=True,
        help="gsm8k, math-500, …, gym:FAMILY, a file of problems, or a .toml of your own; may be repeated",
    )  # fmt: skip
    c.add_argument(
        "--data", action="append", default=[], metavar="[NAME=]FILE",
        help="its problems: a file or a hub id; one a benchmark, in their order or by name",
    )  # fmt: skip
    for flag in FLAGS:
        c.add_argument(
            *both(flag.name), type=_numbers if flag.kind is list else flag.kind, help=flag.help,
            metavar={int: "N", float: "X", list: "N,N"}.get(flag.kind, "NAME"),
        )  # fmt: skip
    c.add_argument(*both("output_dir"), dest="out", type=Path, metavar="DIR", help="default: runs/eval")
    c.add_argument("--budget", metavar="'0.05 USD'", help="a hard ceiling; without it the plan is printed and nothing runs")
    c.add_argument("--rate", metavar="'0.10 USD/hour'", help="what an hour of this machine costs you")
    c.add_argument("--seed", type=int, help="default: 0")
    c.add_argument(*both("report_to"), metavar="A,B", help="tensorboard, wandb, trackio, mlflow or none (default)")
    c.add_argument("--resume", action="store_true", help="go on with the evaluation in --output_dir, under the same flags")
    c.add_argument("--dry-run", action="store_true", help="write the resolved recipe and the plan, run nothing")
    c.add_argument("--json", action="store_true", help="print what it comes to as JSON; everything else goes to stderr")


def _numbers(said: str) -> list[int]:
    try:
        return [int(x) for x in said.replace(" ", "").split(",") if x]
    except ValueError:
        raise argparse.ArgumentTypeError(f"numbers separated by commas, not {said!r}") from None


def run(args: argparse.Namespace) -> int:
    from shoestring.commands import recipes as running
    from shoestring.commands.train import _refuse

    out: Path = args.out or Path("runs") / "eval"
    recipe = recipe_of(args, out)
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        if args.budget is None:
            _refuse(recipe)
        if args.dry_run:
            return running.dry_run(recipe, out)
        code = running.execute(recipe, out, args.resume, args.started)
    if args.json:
        print(json.dumps(told(out), indent=1, ensure_ascii=False))
    return code


def recipe_of(args: argparse.Namespace, out: Path) -> Recipe:
    """The recipe that the flags stand for. Complaints about a value name its flag."""
    import tomlkit

    from shoestring import stages

    places: dict[tuple[str | int, ...], str] = {("base",): "MODEL"}
    top: dict[str, Any] = {}
    for key in ("budget", "rate", "seed", "report_to"):
        if (value := getattr(args, key)) is not None:
            top[key], places[key,] = value, f"--{key}"
    stage: dict[str, Any] = {"use": "evaluate", "benchmarks": args.benchmark, "max_new": MAX_NEW}
    places["stage", 0, "benchmarks"] = "--benchmark"
    if args.data:
        stage["data"], places["stage", 0, "data"] = _data(args.benchmark, args.data), "--data"
    for flag in FLAGS:
        if (value := getattr(args, flag.name)) is not None:
            stage[flag.name], places["stage", 0, flag.name] = value, f"--{flag.name}"
    base = args.model
    if args.endpoint is not None:
        from shoestring.estimate.locate import locate

        stage.setdefault("endpoint_model", args.model)
        stage.setdefault("endpoint_price", "machine")
        try:
            locate(args.model)
        except UserError:
            base = STANDIN
            if args.thinking:
                said = "the thinking is forced in its tokens: give MODEL as a folder and its id there as --endpoint_model"
                raise UserError(f"--thinking at an endpoint: {said}") from None
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", out.resolve().name).strip("-_")[:64] or "eval"
    top |= {"name": name, "base": base, "stage": [stage]}
    top.setdefault("budget", "1000000 USD")  # the plan needs one; without --budget nothing is spent
    return loads(tomlkit.dumps(top), stages.configs(), (), origin="shoestring eval", places=places)


def _data(names: list[str], given: list[str]) -> dict[str, str]:
    """Benchmark → file: by name, as in gsm8k=test.jsonl, or in the order of the benchmarks."""
    out: dict[str, str] = {}
    rest = [n for n in names if not any(g.startswith(f"{n}=") for g in given)]
    for said in given:
        name, mark, path = said.partition("=")
        if mark and name in names:
            out[name] = path
        elif rest:
            out[rest.pop(0)] = said
        else:
            raise UserError(f"--data {said}: {len(given)} files for {len(names)} benchmarks; repeat --benchmark for each")
    return out


def told(folder: Path) -> dict[str, Any]:
    """The JSON of an evaluation: docs/schemas/eval.schema.json."""
    def read(name: str) -> Any:
        path = folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    run, bill = read("run.json"), read("bill.json")
    curves = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("scaling*.json"))]
    return {
        "run": str(folder), "status": run["status"], "reason": run["reason"], "base": run["base"],
        "evaluation": read("eval.json"), "scaling": curves,
        "bill": {
            "currency": bill["currency"], "budget": bill["budget"], "headline": bill["headline"]["total"],
            "marginal": bill["marginal"]["total"], "is_lower_bound": bill["is_lower_bound"],
        },
    }  # fmt: skip
