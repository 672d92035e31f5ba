"""`shoestring data validate`: every bad line of a data set, before it costs anything."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
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
    return c


def run(args: argparse.Namespace) -> int:
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
