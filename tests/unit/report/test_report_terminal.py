"""The tables on a terminal of 80 columns, and the numbers in words that page and terminal share."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))
import report_fixture as fixture

from shoestring.records import Bill, BillLine, PriceRef
from shoestring.report import charts, terminal, text


def printed(call: Any, *args: Any, width: int = 80) -> str:
    out = io.StringIO()
    call(*args, Console(file=out, width=width, force_terminal=False))
    shown = out.getvalue()
    assert max((len(line) for line in shown.splitlines()), default=0) <= width
    return shown


def test_plan() -> None:
    shown = printed(terminal.print_plan, fixture.plan())
    for expected in (
        "evaluate",
        "190k",
        "0.0036",
        "0.0027–0.0045",
        "simulated",
        "Budget: 0.05 USD",
        "Not in these dollars",
    ):
        assert expected in shown
    assert "…" not in shown


def test_bill_keeps_the_totals_apart() -> None:
    shown = printed(terminal.print_bill, fixture.bill())
    for expected in (
        "Headline",
        "$0.0131",
        "Marginal",
        "$0.0134",
        "replayed",
        "[1] AWS EC2",
        "2026-11-20",
        "$1,000 – $30,000",
        "unknown",
    ):
        assert expected in shown
    assert "…" not in shown


def test_bill_from_the_record_with_an_unknown_price() -> None:
    lines = (
        BillLine(
            "sft",
            "this/machine-second",
            "12.5",
            "second",
            "0.0001",
            "0.001250",
            "useful",
            PriceRef("list", "2026-01-01"),
        ),
        BillLine("sft", "h100/machine-second", "10", "second", None, None, "failed", None),
    )
    shown = printed(terminal.print_bill, Bill("USD", "0.001", "0.001250", "0.001250", (), True, lines))
    assert (
        "at least $0.00125" in shown and "lower bounds" in shown and "OVER THE BUDGET" in shown and "unknown" in shown
    )


def test_bill_of_a_stopped_run() -> None:
    out = io.StringIO()
    run = fixture.run() | {"status": "stopped", "reason": "the budget is reached"}
    terminal.print_bill(fixture.bill(), Console(file=out, width=80), run)
    assert "The run stopped: the budget is reached" in out.getvalue()


@pytest.mark.parametrize("width", [80, 120, 40])
def test_scores(width: int) -> None:
    shown = printed(terminal.print_scores, fixture.scores(), fixture.gains(), width=width)
    if width >= 80:
        for expected in ("66.4% 61–72", "+7.2", "+3.1 to +11.3", "< 0.001", "3.066", "8.0%", "base-few-shot"):
            assert expected in shown


def test_funnel() -> None:
    shown = printed(terminal.print_funnel, fixture.funnel())
    assert "5,874" in shown and "2,952" in shown and "█" in shown


def test_markup_and_control_characters_stay_text() -> None:
    rows = [
        {"step": "[red]x[/red]\x1b[31m", "before": 3, "after": float("nan")},
        {"step": "[bold]", "before": None, "after": 2},
    ]
    shown = printed(terminal.print_funnel, rows)
    assert "[bold]" in shown and "\x1b" not in shown


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"stages": None},
        {"stages": [{}], "total": 3, "left_out": 4, "machine": []},
        {"lines": [{}], "sunk": [3, {}]},
    ],
)
def test_odd_shapes_are_printed(bad: dict[str, Any]) -> None:
    printed(terminal.print_plan, bad)
    printed(terminal.print_bill, bad)
    printed(terminal.print_scores, [bad], [bad])
    printed(terminal.print_funnel, [bad])


def test_import_is_cheap() -> None:
    code = "import sys; import shoestring.report.terminal, shoestring.report.page; "
    code += "print(sorted({'rich', 'torch', 'numpy', 'matplotlib'} & {m.split('.')[0] for m in sys.modules}))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0.01320000", "$0.0132"),
        ("0.05", "$0.05"),
        ("0.5", "$0.50"),
        ("0", "$0"),
        (12.4, "$12.40"),
        ("1250", "$1,250"),
        ("0.00002311", "$0.0000231"),
        ("-3", "−$3.00"),
        (None, "unknown"),
        (float("nan"), "unknown"),
        ("abc", "unknown"),
        (True, "unknown"),
    ],
)
def test_money(value: Any, expected: str) -> None:
    assert text.money(value) == expected


def test_other_words() -> None:
    assert text.money("3", "EUR") == "€3.00" and text.money("3", "CHF") == "3.00 CHF"
    assert text.points(0.434) == "+43.4" and text.points(-0.0001) == "0.0" and text.percent(None) == "–"
    assert text.count(1_070_000) == "1.07M" and text.count(999) == "999" and text.figure(0.000123) == "0.000123"
    assert text.duration(588) == "9 min 48 s" and text.duration(-1) == "–"
    assert (
        text.moment(0) == "1970-01-01 00:00 UTC" and text.moment("2026-01-02T03:04:05+00:00") == "2026-01-02 03:04 UTC"
    )
    assert text.listed(["a", "b", "c"]) == "a, b and c" and text.listed([]) == ""


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-0.3, 0.7), (0, 1e-9), (1e9, 3e9), (5, 5), (float("nan"), 1), (0, float("inf"))]
)
def test_ticks_stay_inside_and_are_few(low: float, high: float) -> None:
    found = charts.ticks(low, high)
    assert 1 <= len(found) <= 12
    if high > low and high < float("inf"):
        span = high - low
        assert all(low - 1e-6 * span <= t <= high + 1e-6 * span for t in found)


def test_resources_are_named_for_people() -> None:
    assert text.resource("this:aws/m7i.large/us-east-1/-/on-demand/machine-second") == "this machine"
    assert text.resource("aws/m7i.large/us-east-1/-/on-demand/machine-second") == "aws/m7i.large/us-east-1/on-demand"
    assert text.resource("deepseek/r1/output-token") == "deepseek/r1/output-token"
