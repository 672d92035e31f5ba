"""What a finished stage found, for the console: where the problems of a pool went, and the traps among its families."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from shoestring.records import Artifact
from shoestring.report import terminal


def show(artifacts: Iterable[Artifact], console: Any) -> None:
    for a in artifacts:
        if a.kind == "funnel":
            terminal.print_funnel(json.loads(a.path.read_text()), console)
        elif a.kind == "traps":
            for t in json.loads(a.path.read_text()):
                if t["verdict"] != "ok":
                    console.print(
                        f"trap: always answering {t['commonest_answer']!r} is right for {t['share']:.0%} of {t['family']}"
                        f" ({'left out' if t['verdict'] == 'refuse' else 'kept, watch it'})"
                    )
