"""The report page: one self-contained HTML file that a run leaves behind.

It loads nothing: no script, no font, no picture from anywhere. The content policy in its head forbids all of it, so
that a hostile answer of a model cannot either.
"""

from __future__ import annotations

import os
from pathlib import Path

from . import actuals, curves, domains, frontier, ladder, money, scaling, scores, sections
from .load import RunFolder, load
from .style import CSS, h

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render(run: RunFolder) -> str:
    """The page as text."""
    parts = (
        sections.headline,
        sections.against_dollars,
        frontier.of_run,
        sections.families,
        scores.benchmarks,
        scaling.of_run,
        sections.gains,
        ladder.of_run,
        sections.forgetting,
        curves.curves,
        ladder.watched,
        sections.funnel,
        ladder.rejected,
        domains.domains,
        sections.samples,
        money.bill,
        actuals.against_plan,
        actuals.facts,
    )
    return shell(run.name, "\n".join(made for part in parts if (made := part(run))))


def shell(title: str, body: str) -> str:
    """A page that loads nothing around `body`, which is HTML already."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{h(title, 80)} · shoestring</title><style>{CSS}</style></head>\n"
        f"<body><main>\n{body}\n"
        "<footer>Every number says where it comes from: measured in this run, simulated, or from literature "
        "(a dated price, a published figure). Intervals are 95%.</footer>\n</main></body></html>\n"
    )


def write(run_dir: Path) -> Path:
    """Write report.html into a run folder, whatever the folder holds, and return its path.

    An old page is replaced whole. Raises FileNotFoundError where there is no such folder.
    """
    run_dir = Path(run_dir)
    return replace(run_dir / "report.html", render(load(run_dir)))


def replace(path: Path, text: str) -> Path:
    """Write a file whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, "utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path
