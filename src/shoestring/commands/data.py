"""`shoestring data`: every bad line of a data set, and the gold answers that are probably wrong, before they cost anything."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any

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
    return c


def run(args: argparse.Namespace) -> int:
    return _audit(args) if args.data_command == "audit" else _validate(args)


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
