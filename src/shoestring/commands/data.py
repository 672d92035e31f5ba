"""`shoestring data`: every bad line of a data set and the gold answers that are probably wrong, before they cost anything, and
more problems from the ones at hand."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoestring.commands import _one_stage
from shoestring.records import Problem, UserError

SHOWN = 20  # bad lines printed; --json has all


def add(sub: Any) -> argparse.ArgumentParser:
    c = sub.add_parser("data", help="look a data set over", description="Look a data set over before a run.")
    inner = c.add_subparsers(dest="data_command", metavar="command", required=True)
    said = "check every row: JSON lines, JSON, CSV (also .gz), parquet, a hub id, or a problem source"
    v = inner.add_parser("validate", help=said, description=f"{said}. Exit code 2 if a row is bad.")
    v.add_argument("file", metavar="FILE", help="a path, a hub id such as org/name, or bundled:NAME")
    v.add_argument(
        "--format", default="auto", choices=["auto", "messages", "prompt_completion", "alpaca", "sharegpt", "problems"],
        help="default: by the columns of the first row",
    )  # fmt: skip
    v.add_argument("--split", default="train", help="of a hub id, and of rows that state one (default: train)")
    v.add_argument("--config", default="", help="of a hub id")
    v.add_argument("--model", help="count tokens with this model's tokenizer and template")
    v.add_argument("--json", action="store_true", help="everything, as one JSON object")
    said = "estimate the share of wrong gold answers from models that agree with each other against the gold, and list them"
    a = inner.add_parser("audit", help=said, description=f"{said}. Needs answers of two models or more.")
    a.add_argument("file", metavar="FILE", help="rows of question, answer, model, and response or extracted (score if known)")
    a.add_argument("--seed", type=int, default=0, help="of the interval's resampling (default: 0)")
    a.add_argument("--json", action="store_true", help="everything, as one JSON object (docs/json/data-audit.md)")
    said = (
        "more problems with answers that were computed: other numbers where a solver knows, or options in another order; "
        "or in other words by a server (--paraphrase), kept where its answers agree with the gold"
    )
    m = inner.add_parser("augment", help=said, description=f"{said}. What cannot be made is counted.")
    m.add_argument("file", metavar="SOURCE", help="FILE?prompt=COLUMN&answer=COLUMN, bundled:NAME, gym:NAME or a hub id")
    m.add_argument("--out", type=Path, required=True, metavar="FILE", help="the new problems, JSON lines")
    m.add_argument("--how", choices=["perturb", "shuffle"], help="numbers (default), or options")
    m.add_argument("--count", type=int, default=1, metavar="N", help="new problems of each with perturb (default: 1)")
    m.add_argument("--split", default="train", choices=["train", "test"], help="of rows that state one (default: train)")
    m.add_argument("--seed", type=int, default=0, help="of the numbers and the order (default: 0)")
    m.add_argument("--json", action="store_true", help="everything, as one JSON object (docs/json/data-augment.md)")
    _one_stage.server_arguments(m, "paraphrase", "rewrites each problem and answers what it wrote")
    m.add_argument("--checks", type=int, metavar="N", help="answers to a paraphrase that must all be right (default: 2)")
    m.add_argument("--max-new", type=int, metavar="N", help="tokens of a reply (default: 1024)")
    m.add_argument("--resume", action="store_true", help="go on with the run in FILE.run")
    return c


def run(args: argparse.Namespace) -> int:
    return {"audit": _audit, "augment": _augment, "validate": _validate}[args.data_command](args)


def _augment(args: argparse.Namespace) -> int:
    from shoestring.data import augment, sources
    from shoestring.stages.workbench import gradable

    if (server := _one_stage.table(args, "paraphrase", ("checks", "max_new"))) is not None:
        return _paraphrase(args, server)
    if args.resume:
        raise UserError("--resume is for --paraphrase: what is computed here is done in one go")
    args.how = args.how or "perturb"
    if args.count < 1 or (args.how == "shuffle" and args.count != 1):
        raise UserError(f"--count {args.count}: at least 1, and with --how shuffle exactly 1")
    if args.out.exists():
        raise UserError(f"{args.out} exists; name another file")
    given = sources.load(args.file, args.split, gradable)  # pyright: ignore[reportArgumentType]
    perturb = args.how == "perturb"
    made = augment.perturbed(given, args.count, args.seed) if perturb else augment.shuffled(given, args.seed)
    for p in made.problems:
        gradable(p)  # a ValueError here is a fault of ours: nothing is written
    if not made.problems:
        why = ", ".join(f"{n} {w}" for w, n in made.left_out.most_common())
        raise UserError(f"{args.file}: not one new problem can be made ({why})")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draft = args.out.with_name(args.out.name + ".part")
    draft.write_text("".join(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in made.problems), encoding="utf-8")
    draft.replace(args.out)
    told = {
        "out": str(args.out), "how": args.how, "seed": args.seed, "given": len(given), "made": len(made.problems),
        "left_out": dict(made.left_out.most_common()), "paid": None,
    }  # fmt: skip
    return _told(told, args)


def _paraphrase(args: argparse.Namespace, server: dict[str, Any]) -> int:
    """A run of one paraphrase stage in FILE.run; what it kept is copied to FILE."""
    if args.how is not None or args.count != 1:
        raise UserError("--how and --count are for what is computed here: leave them out with --paraphrase")
    if args.out.exists() and not args.resume:
        raise UserError(f"{args.out} exists; name another file, or --resume to go on with its run")
    folder = args.out.with_name(args.out.name + ".run")
    stage = {"use": "paraphrase", "sources": [args.file], "split": args.split, "teacher": server}
    stage |= {k: v for k in ("checks", "max_new") if (v := getattr(args, k)) is not None}
    places = {"sources": "SOURCE", "teacher": "--paraphrase", "checks": "--checks", "max_new": "--max-new"}
    code = _one_stage.run(args, "data augment", stage, places, folder, args.resume and (folder / "run.json").exists())
    if not (folder / "paraphrases.jsonl").exists():
        return code
    args.out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "paraphrases.jsonl", args.out)
    kept = json.loads((folder / "stages" / "paraphrase" / "told.json").read_text(encoding="utf-8"))
    told = {
        "out": str(args.out), "how": "paraphrase", "seed": args.seed, "given": kept["given"], "made": kept["made"],
        "left_out": kept["left_out"], "paid": _one_stage.paid(folder),
    }  # fmt: skip
    _told(told, args)
    return code


def _told(told: dict[str, Any], args: argparse.Namespace) -> int:
    if args.json:
        print(json.dumps(told, indent=1, ensure_ascii=False))
        return 0
    print(f"{told['made']} new problems from {told['given']} in {args.out}")
    for why, n in told["left_out"].items():
        print(f"  left out: {n} ({why})")
    return 0


def _audit(args: argparse.Namespace) -> int:
    from shoestring.data import audit, sources

    def rows() -> Iterator[dict[str, Any]]:
        for row in sources.rows(args.file):
            if row.data is None:
                raise UserError(f"{row.where}: {row.wrong}")
            yield row.data

    made = audit.to_dict(audit.audit(rows(), args.file, args.seed))
    if args.json:
        print(json.dumps(made, indent=1, ensure_ascii=False))
        return 0
    for s in made["suspects"][:SHOWN]:
        who = " and ".join(s["models"])
        print(f"{s['id'] or _short(s['question'])}: gold {_short(s['gold'])!r}, {who} say {_short(s['answer'])!r}")
    if len(made["suspects"]) > SHOWN:
        print(f"... and {len(made['suspects']) - SHOWN} more (--json lists all)")
    low, high = made["wrong_ci95"]
    how = (
        f"corrected for {made['coincidence']:.2%} of pairs that err alike" if made["corrected"]
        else "not corrected: no question has three models' answers, so chance agreement is in it"
    )  # fmt: skip
    who = ", ".join(made["models"])
    print(f"{args.file}: {made['audited']} of {made['questions']} questions answered by two or more of {who}")
    print(f"wrong gold answers: {made['wrong_share']:.2%} (95%: {low:.2%} to {high:.2%}; measured, {how})")
    print(f"{len(made['suspects'])} suspects; {made['contradicted']} questions whose gold no model gives")
    return 0


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= 60 else plain[:57] + "..."


def _validate(args: argparse.Namespace) -> int:
    from shoestring.data import sources, validate
    from shoestring.stages.workbench import gradable

    length = _length(args.model) if args.model else None
    rows = sources.rows(args.file, args.split, args.config)
    found = validate.inspect(rows, args.file, args.format, length, gradable)
    if not found.rows:
        raise UserError(f"{args.file}: no rows in the split {args.split!r}")
    made = found.to_dict()
    print(json.dumps(made, indent=1, ensure_ascii=False) if args.json else "\n".join(_lines(made)))
    return 2 if found.bad else 0


def _lines(made: dict[str, Any]) -> list[str]:
    out = [f"{b['where']}: {b['kind']}: {b['message']}" for b in made["lines"][:SHOWN]]
    if len(made["lines"]) > SHOWN:
        out.append(f"... and {len(made['lines']) - SHOWN} more (--json lists all)")
    format = made["format"] or "no known format"
    out.append(f"{made['name']}: {made['rows']} rows of {format}: {made['good']} good, {made['bad']} bad")
    out += [f"  {kind}: {n}" for kind, n in made["by_class"].items()]
    if made["duplicates"]:
        out.append(f"  duplicates among the good: {made['duplicates']} (the first at {made['first_duplicate']})")
    if made["tokens"]:
        t = made["tokens"]
        out.append(
            f"  tokens a row: {t['min']} to {t['max']}, mean {t['mean']}, median {t['median']}, 95% at most {t['p95']}; "
            f"{t['total']} in all"
        )
    return out


def _length(model: str) -> Callable[[Any], int]:
    """Tokens of a row as training sees it: prompt by the template (or bare), the answer, and the end of the turn."""
    from shoestring import export
    from shoestring.models.tokenizer import Tokenizer

    tokenizer = Tokenizer(export.base_folder(model))

    def length(item: Any) -> int:
        if isinstance(item, Problem):
            asked = tokenizer.chat([{"role": "user", "content": item.prompt}])
            return len(asked) + len(tokenizer.encode(item.solution or "")) + 1
        prompt, answer = item.messages[:-1], item.messages[-1]["content"]
        head = tokenizer.encode(prompt[0]["content"]) if item.plain else tokenizer.chat(prompt)
        return len(head) + len(tokenizer.encode(answer)) + 1

    return length
