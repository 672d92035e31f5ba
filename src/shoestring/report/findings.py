"""What a finished stage found, for the console: where the problems of a pool went, and the traps among its families."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from shoestring.records import Artifact
from shoestring.report import terminal


def show(artifacts: Iterable[Artifact], console: Any) -> None:
    for a in artifacts:
        if a.kind in ("funnel", "rejected"):
            terminal.print_funnel(json.loads(a.path.read_text()), console)
        elif a.kind == "traces" and (found := a.meta.get("invalid")) and found["replies"]:
            console.print(invalid(found, a.meta), highlight=False, markup=False)
        elif a.kind == "traps":
            for t in json.loads(a.path.read_text()):
                if t["verdict"] != "ok":
                    console.print(
                        f"trap: always answering {t['commonest_answer']!r} is right for {t['share']:.0%} of {t['family']}"
                        f" ({'left out' if t['verdict'] == 'refuse' else 'kept, watch it'})"
                    )


def invalid(found: Mapping[str, Any], meta: Mapping[str, Any]) -> str:
    """One line: the measured share of invalid replies before and after filtering, and what asking took."""

    def share(key: str) -> str:
        return "none" if found[key] is None else f"{found[key]:.1%}"

    asked = f"; {meta['teacher']}: {meta['teacher_tokens']['in'] + meta['teacher_tokens']['cached']:,} tokens read, " \
        f"{meta['teacher_tokens']['out']:,} written, price {meta['teacher_price']}" if meta.get("teacher") else ""
    return (
        f"invalid (measured; the grader does not find them right): {share('before')} of {found['replies']:,} replies, "
        f"{share('after_form')} of the {found['formed']:,} in good form, {share('kept')} of what was kept{asked}"
    )
