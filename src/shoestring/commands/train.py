"""`shoestring sft`, `grpo`, `distill`, `evaluate`: one-stage recipes made of flags under the names that TRL uses.

The flags become a recipe, which is written into the run's folder and run like any other: planned, held under its budget,
resumed, billed. A flag that is not given leaves the stage's own default.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

from shoestring.commands import _trl_policy as trl_policy
from shoestring.commands.parser import both, nearest
from shoestring.recipe import Recipe, load, loads
from shoestring.records import UserError

COMMANDS = {
    "sft": "fine-tune on conversations or prompt and completion rows",
    "grpo": "reinforcement learning on problems whose answers can be checked",
    "distill": "verified answers of a teacher (or of the model itself) and worked solutions, as traces for sft",
    "evaluate": "score a model on the test problems of a source",
}
RANK = 16  # TRL's --lora_r
OPTIMISERS = {
    "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw": "adamw", "muon": "muon",
    "adamw_8bit": "adamw8bit", "adamw_bnb_8bit": "adamw8bit", "adamw8bit": "adamw8bit",
}  # fmt: skip
SCHEDULES = {
    "linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant",
    "warmup_stable_decay": "wsd", "wsd": "wsd",
}  # fmt: skip
Places = dict[tuple[str | int, ...], str]  # where a value stands in the recipe → the flag that gave it
PER_DEVICE = 8  # TRL's default batch, where only gradient_accumulation_steps is given


@dataclass(frozen=True)
class Flag:
    """One option: the commands that have it, and the stage key that it sets ("" where it takes part in another)."""

    name: str
    kind: type
    keys: dict[str, str]
    help: str


FLAGS = (
    Flag("learning_rate", float, {"sft": "lr", "grpo": "lr"}, "peak learning rate"),
    Flag("num_train_epochs", float, {"sft": "epochs", "grpo": ""}, "passes over the data"),
    Flag("max_steps", int, {"sft": "", "grpo": "steps"}, "optimiser steps, in place of epochs"),
    Flag("per_device_train_batch_size", int, {"sft": "", "grpo": ""},
         f"rows a micro-batch (default {PER_DEVICE} where only the next is given); of grpo, completions"),
    Flag("gradient_accumulation_steps", int, {"sft": "", "grpo": ""}, "micro-batches a step; a step has the product of both"),
    Flag("num_generations", int, {"grpo": "group", "distill": "samples"}, "answers a problem"),
    Flag("max_completion_length", int, {"grpo": "max_new", "distill": "max_new", "evaluate": "max_new"}, "tokens an answer"),
    Flag("temperature", float, {"grpo": "temperature", "distill": "temperature"}, "of sampling"),
    Flag("warmup_ratio", float, {"sft": "warmup"}, "share of the steps in which the learning rate rises"),
    Flag("weight_decay", float, {"sft": "weight_decay"}, "of AdamW"),
    Flag("optim", str, {"sft": "", "grpo": ""}, "adamw_torch (default), adamw_8bit or muon"),
    Flag("lr_scheduler_type", str, {"sft": "", "grpo": ""},
         "linear, cosine, constant, constant_with_warmup or warmup_stable_decay"),
    Flag("gradient_checkpointing", bool, {"sft": "", "grpo": ""},
         "activations made again in the backward pass (default: as far as the memory asks for it)"),
    Flag("use_peft", bool, {"sft": "", "grpo": ""}, f"train LoRA adapters in place of the weights (rank {RANK})"),
    Flag("lora_r", int, {"sft": "lora", "grpo": "lora"}, "their rank"),
    Flag("lora_alpha", float, {"sft": "lora_alpha", "grpo": "lora_alpha"}, "their scale is lora_alpha / lora_r"),
    Flag("lora_target_modules", list, {"sft": "lora_targets", "grpo": "lora_targets"}, "projections, or all-linear (default)"),
    Flag("use_rslora", bool, {"sft": "rslora", "grpo": "rslora"}, "scale by lora_alpha / sqrt(lora_r)"),
    Flag("load_in_4bit", bool, {"sft": "", "grpo": ""}, "keep the frozen matrices in NF4 (QLoRA)"),
    Flag("max_grad_norm", float, {"sft": "max_norm", "grpo": "max_norm"}, "gradients are clipped to this norm"),
    Flag("teacher_url", str, {"distill": ""}, "an OpenAI-compatible server to ask, as in https://host/v1"),
    Flag("teacher_model", str, {"distill": ""}, "its model id; alone: a local model; with --recorded: whose completions"),
    Flag("teacher_key_env", str, {"distill": ""}, "the environment variable that holds the server's key"),
    Flag("teacher_price", str, {"distill": ""}, "catalogue/model in the price book, or machine for a server on this machine"),
    Flag("recorded", str, {"distill": ""}, "a file of recorded completions as the teacher"),
    Flag("keep", int, {"distill": "keep"}, "verified answers kept a problem"),
    Flag("prefer", str, {"distill": "prefer"}, "short, long or diverse"),
    Flag("rationalise", bool, {"distill": "rationalise"}, "ask once more, with the answer given, where none was right"),
    Flag("self_filter", bool, {"distill": "self_filter"}, "drop mixed languages, long paragraphs, code blocks and loops"),
    Flag("concurrency", int, {"distill": "concurrency"}, "requests in flight at the server"),
    Flag("beta", float, {"grpo": "kl"}, "weight of the KL to a reference policy (default 0: there is none)"),
    Flag("epsilon", float, {"grpo": ""}, "the ratio is held within 1 ± epsilon (default: the loss's own bounds)"),
    Flag("epsilon_high", float, {"grpo": ""}, "its upper bound, where that is another; of cispo, the largest weight"),
    Flag("loss_type", str, {"grpo": "variant"}, "grpo, dr_grpo, bnpo (default), dapo, cispo, sapo, luspo, gspo or ppo"),
    Flag("importance_sampling_level", str, {"grpo": ""},
         "token (default), or sequence: gspo, whose bounds are 3e-4 and 4e-4 unless --epsilon is given"),
    Flag("num_iterations", int, {"grpo": "updates"}, "passes over a step's completions"),
    Flag("scale_rewards", str, {"grpo": ""}, "group (advantages by the group's deviation) or none"),
    Flag("sync_ref_model", bool, {"grpo": ""}, "the policy becomes the reference anew, every --ref_model_sync_steps"),
    Flag("ref_model_sync_steps", int, {"grpo": ""}, "default 512"),
    Flag("vllm_importance_sampling_correction", bool, {"grpo": ""}, "weigh tokens by trainer over engine probability"),
    Flag("vllm_importance_sampling_mode", str, {"grpo": ""}, "token_truncate (default) or token_mask"),
    Flag("vllm_importance_sampling_cap", float, {"grpo": "importance_cap"}, "the largest weight (default 2)"),
    Flag("reward_funcs", list, {"grpo": ""}, "what is paid: graders or file.py:function (default: each problem's own grader)"),
    Flag("reward_weights", list, {"grpo": ""}, "their weights (default: 1 each)"),
    Flag("save_total_limit", int, {"sft": "save_total_limit", "grpo": "save_total_limit"}, "checkpoints kept"),
)  # fmt: skip


def add(sub: Any) -> None:
    for command, said in COMMANDS.items():
        c = sub.add_parser(command, help=said, description=f"{said[0].upper()}{said[1:]}.")
        c.add_argument(*both("model_name_or_path"), dest="model", metavar="MODEL", help="a name, a folder, a .gguf or a hub id")
        c.add_argument(
            *both("dataset_name"), dest="dataset", metavar="DATA",
            help="a file (JSON lines, JSON, CSV, parquet), a hub id, bundled:NAME or reasoning_gym:NAME",
        )  # fmt: skip
        c.add_argument(*both("output_dir"), dest="out", type=Path, metavar="DIR", help=f"default: runs/{command}")
        c.add_argument("--budget", metavar="'0.05 USD'", help="a hard ceiling; without it the plan is printed and nothing runs")
        c.add_argument("--rate", metavar="'0.10 USD/hour'", help="what an hour of this machine costs you")
        c.add_argument("--seed", type=int, help="default: 0")
        if command != "evaluate":
            c.add_argument(*both("dataset_config"), dest="config", metavar="NAME", help="of a hub id")
            c.add_argument(*both("dataset_train_split"), dest="split", metavar="SPLIT", help="of a hub id (default: train)")
        for flag in FLAGS:
            if command in flag.keys:
                c.add_argument(*both(flag.name), **_form(flag.kind), help=flag.help)
        if command in ("sft", "grpo"):
            said = "then score it on this source's test problems"
            c.add_argument("--evaluate", action="append", default=[], metavar="SOURCE", help=said)
        c.add_argument(*both("report_to"), metavar="A,B", help="tensorboard, wandb, trackio, mlflow or none (default)")
        c.add_argument(
            *both("resume_from_checkpoint"), dest="resume", nargs="?", const="true", metavar="true|DIR",
            help="go on with the run in --output_dir from its newest checkpoint",
        )  # fmt: skip
        c.add_argument("--set", action="append", default=[], metavar="STAGE.KEY=VALUE", help="any other key of a stage")
        c.add_argument("--dry-run", action="store_true", help="write the resolved recipe and the plan, run nothing")


def _form(kind: type) -> dict[str, Any]:
    """How argparse reads an option. A truth may stand alone, or with a value as TRL's parser writes it."""
    if kind is bool:
        return {"type": _truth, "nargs": "?", "const": True, "metavar": "true|false"}
    if kind is list:
        return {"type": str, "nargs": "+", "metavar": "NAME"}
    return {"type": kind, "metavar": {int: "N", float: "X"}.get(kind, "NAME")}


def _truth(said: str) -> bool:
    if said.lower() not in ("true", "yes", "1", "false", "no", "0"):
        raise argparse.ArgumentTypeError(f"true or false, not {said!r}")
    return said.lower() in ("true", "yes", "1")


def run(args: argparse.Namespace) -> int:
    from shoestring.commands import recipes as running

    out: Path = args.out or Path("runs") / args.command
    resume = _resumes(args.resume, out)
    if resume and args.model is None and args.dataset is None:
        return running.execute(_again(args, out), out, True, args.started)
    recipe = _recipe(args, out)
    if args.budget is None:
        _refuse(recipe)
    if args.dry_run:
        return running.dry_run(recipe, out)
    return running.execute(recipe, out, resume, args.started)


def _again(args: argparse.Namespace, out: Path) -> Recipe:
    """The recipe that the run in `out` began with. What would make it another run is refused, never ignored."""
    from shoestring import stages

    others = ("rate", "seed", "config", "split", "evaluate", *(f.name for f in FLAGS))
    given = [n for n in others if getattr(args, n, None) not in (None, [])] + (["dry-run"] if args.dry_run else [])
    if given:
        raise UserError(
            f"--{given[0]} cannot change a run that is resumed; only --budget and --report_to can "
            "(or give all of the flags that the run began with)"
        )
    changes = [f'{k}="{v}"' for k, v in (("budget", args.budget), ("report_to", args.report_to)) if v is not None]
    return load(out / "recipe.toml", stages.configs(), [*args.set, *changes])


def _resumes(said: str | None, out: Path) -> bool:
    """Whether to resume. A run goes on from its own newest checkpoint only; another folder is refused."""
    if said is None or said.lower() in ("false", "no"):
        return False
    if said.lower() in ("true", "yes"):
        return True
    path, own = Path(said).resolve(), out.resolve()
    newest = max((p.parent for p in own.glob("checkpoints/*/*/manifest.json")), key=lambda p: p.stat().st_mtime, default=None)
    if path in (own, newest):
        return True
    raise UserError(
        f"--resume_from_checkpoint {said}: a run goes on from its newest checkpoint{f', {newest}' if newest else ''}; "
        f"give --output_dir and --resume_from_checkpoint true, or start from these weights with --model_name_or_path"
    )


def _recipe(args: argparse.Namespace, out: Path) -> Recipe:
    """The recipe that the flags stand for. Complaints about a value name its flag."""
    import tomlkit

    from shoestring import stages

    for flag, value in (("--model_name_or_path", args.model), ("--dataset_name", args.dataset)):
        if value is None:
            raise UserError(f"{args.command}: {flag} is missing; `shoestring {args.command} --help` shows what is needed")
    places: Places = {}
    top: dict[str, Any] = {}
    for key, flag in (("budget", "--budget"), ("rate", "--rate"), ("seed", "--seed"), ("report_to", "--report_to")):
        value = getattr(args, key)
        if value is not None:
            top[key], places[key,] = value, flag
    top |= {"name": re.sub(r"[^A-Za-z0-9_-]+", "-", out.resolve().name).strip("-_")[:64] or args.command, "base": args.model}
    top.setdefault("budget", "1000000 USD")  # the plan needs one; `_refuse` never lets it be spent
    places["base",] = "--model_name_or_path"
    tables = _stages(args)
    at = len(tables) - 1
    for flag in FLAGS:
        if key := flag.keys.get(args.command):
            value = getattr(args, flag.name, None)
            if value is not None:
                tables[at][key], places["stage", at, key] = value, f"--{flag.name}"
    _steps(args, tables, places, at)
    _choices(args, tables, places, at)
    _adapters(args, tables, places, at)
    _teacher(args, tables, places, at)
    _rewards(args, tables, places, at)
    trl_policy.add_keys(args, tables[at], places, at)
    tables += [{"use": "evaluate", "name": "score", "sources": args.evaluate}] if getattr(args, "evaluate", None) else []
    text = tomlkit.dumps(top | {"stage": tables})
    return loads(text, stages.configs(), args.set, origin=f"shoestring {args.command}", places=places)


def _stages(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The stage tables, the one that the command is named after last."""
    if args.command == "evaluate":
        return [{"use": "evaluate", "sources": [args.dataset]}]
    give = {"sft": "traces", "grpo": "pool", "distill": "problems"}[args.command]
    data = {"use": "data", "dataset": args.dataset, "give": give}
    data |= {k: v for k, v in (("split", args.split), ("config", args.config)) if v is not None}
    return [data, {"use": args.command}]


def _steps(args: argparse.Namespace, tables: list[dict[str, Any]], places: Places, at: int) -> None:
    """Batch and length of the training, which TRL states in other words than the stages do."""
    if args.command not in ("sft", "grpo"):
        return
    from shoestring import stages

    table, defaults = tables[at], stages.module(args.command).Config()
    per, times, steps, epochs = (
        getattr(args, n)
        for n in ("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "num_train_epochs")
    )
    for name, value in (("per_device_train_batch_size", per), ("gradient_accumulation_steps", times), ("max_steps", steps)):
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be a whole number from 1")
    group = table.get("group", getattr(defaults, "group", 1))
    key = "batch" if args.command == "sft" else "prompts"
    if per is not None or times is not None:
        rows = (per or PER_DEVICE) * (times or 1)
        if rows % group:
            raise UserError(
                f"--per_device_train_batch_size × --gradient_accumulation_steps = {rows} completions a step, "
                f"which must be a multiple of --num_generations {group}"
            )
        table[key], places["stage", at, key] = rows // group, "--per_device_train_batch_size"
    each = table.get(key, getattr(defaults, key))
    if args.command == "sft" and steps is not None:
        table["epochs"], places["stage", at, "epochs"] = steps * each / _rows(tables[0]), "--max_steps"
    elif args.command == "grpo" and steps is None and epochs is not None:
        if epochs <= 0:
            raise UserError(f"--num_train_epochs {epochs}: must be above zero")
        table["steps"], places["stage", at, "steps"] = max(1, round(epochs * _rows(tables[0]) / each)), "--num_train_epochs"


def _choices(args: argparse.Namespace, tables: list[dict[str, Any]], places: Places, at: int) -> None:
    """Optimiser, schedule and recomputation, which have other names there."""
    for flag, key, known in (("optim", "optimiser", OPTIMISERS), ("lr_scheduler_type", "schedule", SCHEDULES)):
        said = getattr(args, flag, None)
        if said is None:
            continue
        if said not in known:
            raise UserError(f"--{flag} {said}: unknown{nearest(said, list(known)) or '; there are ' + ', '.join(known)}")
        tables[at][key], places["stage", at, key] = known[said], f"--{flag}"
    again = getattr(args, "gradient_checkpointing", None)
    if again is not None:
        tables[at]["recompute"], places["stage", at, "recompute"] = "full" if again else "none", "--gradient_checkpointing"


def _adapters(args: argparse.Namespace, tables: list[dict[str, Any]], places: Places, at: int) -> None:
    """--use_peft makes a LoRA of the flags beside it; without it they would do nothing, and are refused."""
    if args.command not in ("sft", "grpo"):
        return
    table = tables[at]
    if not args.use_peft:
        belong = ("lora_r", "lora_alpha", "lora_target_modules", "use_rslora", "load_in_4bit")
        if given := [f for f in belong if getattr(args, f)]:
            raise UserError(f"--{given[0]} belongs to adapters: add --use_peft")
        table.pop("rslora", None)  # --use_rslora false
        return
    table.setdefault("lora", RANK)
    places.setdefault(("stage", at, "lora"), "--use_peft")
    if table["lora"] < 1:
        raise UserError(f"--lora_r {table['lora']}: must be a whole number from 1")
    if (names := table.get("lora_targets")) is not None:
        table["lora_targets"] = ",".join(names)
    if args.load_in_4bit:
        table["quantise"], places["stage", at, "quantise"] = "nf4", "--load_in_4bit"


def _teacher(args: argparse.Namespace, tables: list[dict[str, Any]], places: Places, at: int) -> None:
    """The teacher's table, made of the flags that begin with its name."""
    if args.command != "distill":
        return
    named = {"url": "teacher_url", "recorded": "recorded", "model": "teacher_model", "key_env": "teacher_key_env",
             "price": "teacher_price"}  # fmt: skip
    given = {key: getattr(args, flag) for key, flag in named.items() if getattr(args, flag) is not None}
    if given:
        tables[at]["teacher"], places["stage", at, "teacher"] = given, f"--{named[next(iter(given))]}"


def _rewards(args: argparse.Namespace, tables: list[dict[str, Any]], places: Places, at: int) -> None:
    """The table name → weight of --reward_funcs and --reward_weights."""
    names, weights = getattr(args, "reward_funcs", None), getattr(args, "reward_weights", None)
    if names is None:
        if weights is not None:
            raise UserError("--reward_weights belongs to --reward_funcs")
        return
    if weights is not None and len(weights) != len(names):
        raise UserError(f"--reward_weights: {len(weights)} weights for {len(names)} rewards")
    try:
        made = [float(w) for w in weights or ["1"] * len(names)]
    except ValueError:
        raise UserError(f"--reward_weights {' '.join(weights or ())}: must be numbers") from None
    tables[at]["rewards"] = dict(zip(names, made, strict=True))
    places["stage", at, "rewards"] = "--reward_funcs"


def _rows(table: dict[str, Any]) -> int:
    """How many rows the data stage will hand over."""
    from shoestring.data import sources
    from shoestring.stages import data

    config = data.Config(**{k: v for k, v in table.items() if k not in ("use", "name")})
    stated = sources.count(config.dataset, config.split, config.config)
    return stated or (len(data.traces(config)) if data.gives(config) == "traces" else len(data.read(config)))


def _round_up(usd: float) -> str:
    """To two significant digits, never below a cent: 0.0123 → "0.02", 101 → "110"."""
    place = Decimal(10) ** max(-2, Decimal(str(usd)).adjusted() - 1)
    return f"{(Decimal(str(usd)) / place).to_integral_value(ROUND_CEILING) * place:f}"


def _refuse(recipe: Recipe) -> None:
    """Without a budget: the plan on the screen, and one line with the budget that it takes."""
    from shoestring import plan
    from shoestring.commands.recipes import console, planned
    from shoestring.report import terminal

    made, book = planned(recipe)
    terminal.print_plan(plan.to_dict(made, book) | {"budget": ""}, console())
    cost = made.total_usd()
    enough = _round_up(1.2 * max(cost.high, float(made.least_usd())))
    raise UserError(
        f"no --budget: this plan takes about {cost.mid:.4f} USD here ({cost.low:.4f} to {cost.high:.4f}); "
        f'add a ceiling, such as --budget "{enough} USD"'
    )
