"""The break-even and the rent-or-buy answer in words and on a terminal. Takes the JSON of both (docs/json/breakeven.md)."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from . import quiet
from .text import DASH, clean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SHOWN = 8  # assumptions of the sensitivity that are printed; the JSON and the page have all
NAMES = {"own": "train", "api": "prompt the API", "rag": "prompt with passages"}
FROM = {"measured": "measured", "simulated": "simulated", "literature": "literature", "given": "given by you"}


def usd(amount: Any) -> str:
    """Dollars for people: two places from a dollar on, more below."""
    x = Decimal(amount)
    if x == 0:
        return "$0"
    sign, size = ("-" if x < 0 else ""), abs(x)
    if size >= 1:
        return f"{sign}${size:,.2f}"
    return f"{sign}${float(size):.3g}" if size >= Decimal("0.0001") else f"{sign}${size:.6f}"


def number(value: Any) -> str:
    """A decimal string in four significant digits, thousands apart."""
    if value is None:
        return DASH
    x = Decimal(value)
    if abs(x) >= 1000:
        return f"{x:,.0f}"
    text = f"{float(x):.4g}"
    return text if "e" not in text else f"{x:f}".rstrip("0")


def month(value: int | None) -> str:
    return "never" if value is None else f"month {value}"


def said(v: Mapping[str, Any], months: int) -> str:
    """One verdict in a sentence."""
    what = "prompting the API" if v["against"] == "api" else "prompting it with passages"
    if v["month"] is not None:
        head = f"training is cheaper than {what} from month {v['month']} on, and saves {usd(v['saving_usd'])} by month {months}"
    else:
        more = usd(-Decimal(v["saving_usd"]))
        head = f"training does not pay against {what} within {months} months: it costs {more} more"
        if v["beyond_horizon"] is not None:
            head += f"; it would from month {v['beyond_horizon']} on"
        elif v["ahead_first_in"] is not None:
            head += f"; it is ahead in month {v['ahead_first_in']} and falls back"
    ends = f"{month(v['best'])} with every interval at its good end, {month(v['worst'])} at its bad one"
    volume = "at no volume" if v["from_queries"] is None else f"from about {number(v['from_queries'])} queries a month"
    return f"{head} ({ends}). It pays {volume}."


def room(v: Mapping[str, Any]) -> str:
    """How much of what was not given the answer bears."""
    if v["month"] is not None:
        return f"the lines of training that were not given may come to {usd(v['room_usd'])} in all before that answer changes"
    return f"the lines of the alternative that were not given would have to come to {usd(v['room_usd'])} in all to change it"


def print_breakeven(data: Mapping[str, Any], screen: Console) -> None:
    """The verdicts, the lines of every option, the cash by month, what the answer hangs on, and what was not given."""
    months = data["months"]
    for v in data["verdicts"]:
        _say(screen, said(v, months)[0].upper() + said(v, months)[1:], "bold")
    table = _table(("line", "l"), ("category", "l"), *((NAMES[o["option"]], "r") for o in data["options"]),
                   title=f"dollars over {months} months")  # fmt: skip
    rows: dict[str, list[str]] = {}
    for i, o in enumerate(data["options"]):
        for line in o["lines"]:
            rows.setdefault(f"{line['line'].partition('.')[2]}|{line['category']}", [DASH] * 3)[i] = usd(line["usd"])
        for key in o["not_given"]:
            name = key.partition(".")[2]
            at = next((r for r in rows if r.startswith(f"{name}|")), f"{name}|")
            rows.setdefault(at, [DASH] * 3)[i] = "not given"
    for key, cells in rows.items():
        table.add_row(*key.split("|"), *cells)
    total = [(">= " if o["is_lower_bound"] else "") + usd(o["total_usd"]["mid"]) for o in data["options"]]
    table.add_row("total", "", *total, style="bold")
    spread = [f"{usd(o['total_usd']['low'])} to {usd(o['total_usd']['high'])}" for o in data["options"]]
    table.add_row("interval", "", *spread)
    screen.print(table)
    served = data["serving"]
    _say(screen, f"a thousand queries: {usd(served['usd_per_1000'] or 0)} on the serving machine "
         f"({float(served['utilisation']):.2%} of its paid hours at work), {usd(served['api_usd_per_1000'])} from the API, "
         f"{usd(served['rag_usd_per_1000'])} with passages (simulated from the assumptions below)")  # fmt: skip
    table = _table(("month", "r"), *((NAMES[o["option"]], "r") for o in data["options"]), title="cash paid by then, dollars")
    for row in _thinned(data["cash_flow"]):
        table.add_row(str(row["month"]), *(usd(row[o["option"]]["cumulative_usd"]) for o in data["options"]))
    screen.print(table)
    _print_sensitivity(data["verdicts"][0]["sensitivity"], "against prompting the API", screen)
    _print_assumptions(data, screen)
    for v in data["verdicts"]:
        _say(screen, f"against {NAMES[v['against']]}: {room(v)}")


def print_own(data: Mapping[str, Any], screen: Console) -> None:
    """Rent or buy."""
    owned, b = data["owned_usd_per_gpu_hour"], data["break_even"]
    least = ">= " if data["is_lower_bound"] else ""
    ends = f"{usd(owned['low'])} to {usd(owned['high'])}"
    _say(screen, f"An hour of useful work of one GPU: {least}{usd(owned['mid'])} owned ({ends}), "
         f"{usd(data['rented_usd_per_gpu_hour'])} rented (simulated from the assumptions below).", "bold")  # fmt: skip
    if b["month"] is None:
        more = usd(-Decimal(data["saving_usd"]))
        _say(screen, f"Buying does not pay within its life: it costs {more} more than renting the same work.", "bold")
    else:
        _say(screen, f"Buying pays from month {b['month']} on ({month(b['best'])} at the good ends, {month(b['worst'])} at the "
             f"bad ones) and saves {usd(data['saving_usd'])} over its life.", "bold")  # fmt: skip
    if b["utilisation"] is None:
        _say(screen, "At no utilisation is the owned hour the cheaper one.")
    else:
        _say(screen, f"The owned hour is the cheaper one from {float(b['utilisation']):.1%} utilisation on: "
             f"{number(b['gpu_hours_a_month'])} useful GPU-hours a month.")  # fmt: skip
    table = _table(("line", "l"), ("USD a month", "r"), title="owning it")
    for name, amount in data["monthly_usd"].items():
        table.add_row(name, usd(amount))
    screen.print(table)
    _print_sensitivity(data["sensitivity"], "when buying pays", screen)
    _print_assumptions(data, screen)


def _print_sensitivity(rows: list[Any], what: str, screen: Console) -> None:
    table = _table(("assumption", "l"), ("from", "r"), ("to", "r"), ("answer there", "r"), ("and there", "r"), ("", "w"),
                   title=f"what the answer hangs on, {what}")  # fmt: skip
    for r in rows[:SHOWN]:
        note = f"flips at {number(r['flips_at'])}" if r["flips"] else ""
        swing = "" if r["range"] == "stated" else "halved, doubled"
        table.add_row(r["assumption"], number(r["low"]), number(r["high"]), month(r["month_at_low"]), month(r["month_at_high"]),
                      "; ".join(x for x in (note, swing) if x))  # fmt: skip
    screen.print(table)


def _print_assumptions(data: Mapping[str, Any], screen: Console) -> None:
    table = _table(("assumed", "l"), ("value", "r"), ("unit", "l"), ("basis", "l"), ("", "w"), title="assumptions")
    for a in data["assumptions"]:
        value = number(a["mid"]) + (f" ({number(a['low'])} to {number(a['high'])})" if a["low"] != a["high"] else "")
        table.add_row(a["key"], value, a["unit"], FROM[a["basis"]], clean(a["note"], 160))
    screen.print(table)
    table = _table(("not given", "l"), ("what it is", "w"), ("so", "w"), title="not given")
    for a in data["not_given"]:
        table.add_row(a["key"], a["what"], a["meaning"])
    screen.print(table)


def _thinned(rows: list[Any]) -> list[Any]:
    """At most 13 months: the first, every so many, the last."""
    step = max(1, -(-(len(rows) - 1) // 12))
    return [r for i, r in enumerate(rows) if i % step == 0 or i == len(rows) - 1]


def _say(screen: Console, text: str, style: str = "") -> None:
    from rich.text import Text

    screen.print(Text(text, style=style))


def _table(*columns: tuple[str, str], title: str = "") -> Table:
    table = quiet.table(title)
    for i, (heading, kind) in enumerate(columns):
        table.add_column(heading, justify="right" if kind == "r" else "left", overflow="fold", no_wrap=i == 0)
    return table
