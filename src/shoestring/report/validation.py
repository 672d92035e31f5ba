"""`plan --validate` on a terminal: every row, and what the errors come to. rich is imported when first needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import quiet

if TYPE_CHECKING:
    from rich.console import Console


def _figure(value: float | None) -> str:
    """Three digits that count, no exponent below ten million."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def print_validation(report: Mapping[str, Any], console: Console) -> None:
    """The report of `estimate.validate.validate` as a table and a summary."""
    from rich.text import Text

    rows = report["rows"]
    unit = rows[0]["unit"] if rows else ""
    table = quiet.table()
    table.add_column(f"row ({unit})", overflow="fold")
    for heading in ("predicted", "80% interval", "actual", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        predicted, actual = row["predicted"], row["actual"]
        said = row.get("refused") and f"refused: {row['refused']}" or row.get("reason", "")
        name = Text(row["name"])
        if said:
            name.append(f"\n{said}", style="yellow" if row.get("refused") else "dim")
        between = "" if predicted is None else f"{_figure(row['low'])}–{_figure(row['high'])}"
        error = f"{predicted / actual - 1:+.0%}" if predicted is not None and actual else ""
        if row.get("fits") is not None:
            error += "" if row["fits"] else " does not fit"
        table.add_row(name, _figure(predicted), between, _figure(actual), error.strip())
    console.print(table)
    if report["median_error"] is None:
        console.print("No row has both a prediction and an actual.")
    else:
        console.print(
            f"median error {report['median_error']:.1%}, 90th percentile {report['p90_error']:.1%}, "
            f"worst {report['worst_error']:.0%}; within a factor of 2: {report['within_factor_2']:.0%}; "
            f"in the 80% interval: {report['covered']:.0%}"
        )
    if "verdicts" in report:
        console.print(f"fits or not: {report['verdicts_right']} of {report['verdicts']} right")
    if report["refused"]:
        console.print(f"refused, because their own numbers need more than the card's peak: {'; '.join(report['refused'])}")
    console.print("Predictions: literature (published tables and runs), each row without its own cell or run.", style="dim")
