"""An argument parser whose complaints are one line with the nearest right word. Exit code 2."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Options are never abbreviated: a mistyped one must not mean another."""

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **rest)

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '([^']*)'", message)
        for action in self._actions if wrong else ():
            if wrong and isinstance(action.choices, Iterable) and f"argument {_name(action)}" in message:
                known = [str(c) for c in action.choices]
                what = "command" if isinstance(action, argparse._SubParsersAction) else _name(action)
                message = f"unknown {what} {wrong[1]!r}{nearest(wrong[1], known)}"
        said = " ".join(message.split())
        print(f"{self.prog}: {said} ({self.prog} --help lists what there is)", file=sys.stderr)
        raise SystemExit(2)


def _name(action: argparse.Action) -> str:
    return "/".join(action.option_strings) or str(action.metavar or action.dest)


def nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def parse(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments. What is not known is one line with the nearest option of that command."""
    args, rest = parser.parse_known_args(argv)
    if rest:
        inner = parser
        while subs := [a for a in inner._actions if isinstance(a, argparse._SubParsersAction)]:
            inner = subs[0].choices[getattr(args, subs[0].dest)]
        options = [o for a in inner._actions for o in a.option_strings if o.startswith("--")]
        unknown = rest[0].partition("=")[0]
        if not unknown.startswith("-"):
            inner.error(f"unexpected argument {unknown!r}")
        inner.error(f"unknown option {unknown}{nearest(unknown, options) or nearest(unknown.replace('-', '_'), options)}")
    return args


def both(name: str) -> tuple[str, ...]:
    """--learning_rate and --learning-rate: TRL spells options with underscores, command lines with dashes."""
    return tuple(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))
