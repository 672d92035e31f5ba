"""The plan, the funnel, the scores and the bill on a terminal of 80 columns. rich is imported when first needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import quiet
from . import scores as scores_of
from .load import bill_dict, mapping, objects, sunk_ends
from .text import (
    DASH,
    between,
    clean,
    count,
    decimal,
    interval,
    money,
    money_places,
    num,
    p_value,
    percent,
    points,
    quantity,
    resource,
    spread,
)
from .text import figure as number

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SHORT_UNITS = {"machine-second": "s", "second": "s", "seconds": "s"}
BAR = 20  # columns of the widest bar of the funnel


def _table(*columns: tuple[str, str], title: str = "") -> Table:
    """A quiet table; a column is (heading, "l" | "r" | "w"): left, right, or left and wrapping."""
    table = quiet.table(title)
    for heading, kind in columns:
        table.add_column(
            heading,
            justify="right" if kind == "r" else "left",
            no_wrap=kind != "w",
            overflow="fold" if kind == "w" else "ellipsis",
        )
    return table


def _row(table: Table, *cells: Any, style: str = "", limit: int = 300) -> None:
    """A row of plain text: markup and control characters in what a file holds stay text."""
    from rich.text import Text

    table.add_row(*(Text(clean(c, limit)) for c in cells), style=style)


def _say(console: Console, text: str, style: str = "") -> None:
    from rich.text import Text

    console.print(Text(clean(text, 2000), style=style))


def _range(q: Any, show: Callable[[float], str]) -> tuple[str, str]:
    """The middle of a quantity and its interval, apart, so that columns align."""
    mid, _, rest = spread(q, show).partition(" (")
    return mid, rest.removesuffix(")")


BASES = {"measured": "meas", "simulated": "simul", "literature": "liter"}


def _ends(quantity: Any, show: Callable[[float], str]) -> tuple[str, str]:
    """(middle, "low–high") of a quantity, blank where it is not one."""
    q = mapping(quantity)
    if not all(isinstance(q.get(k), int | float) for k in ("low", "mid", "high")):
        return DASH, ""
    return show(q["mid"]), f"{show(q['low'])}–{show(q['high'])}"


def _dollars(v: float) -> str:
    """Four digits after the point for cents, none for hundreds."""
    return f"{v:,.0f}" if v >= 100 else f"{v:.2f}" if v >= 1 else f"{v:.4f}"


def _amount(v: float) -> str:
    return f"{v:,.0f}" if v >= 100 else f"{v:.1f}"


def print_plan(plan: Mapping[str, Any], console: Console) -> None:
    """The plan: a line a stage, the total, what does not fit, what would be cheaper, what is left out, the machine's price."""
    total = mapping(plan.get("total"))
    gpus = bool(num(mapping(plan.get("machine")).get("gpus")))
    columns = [("stage", "l"), ("tokens", "r"), ("minutes", "r"), ("range", "l"), ("USD", "r"), ("range", "l"), ("GiB", "r")]
    if gpus:
        columns[2:4] = [("GPU-h", "r"), ("range", "l")]
    table = _table(*columns, ("basis", "l"), title="Plan")
    bases: set[str] = set()

    def line(name: str, item: Mapping[str, Any], style: str = "") -> None:
        usd = item.get("usd")
        basis = str(mapping(usd).get("basis") or mapping(item.get("minutes")).get("basis") or DASH)
        bases.add(basis)
        memory = mapping(item.get("memory_gib")).get("mid")
        tokens = mapping(item.get("tokens")).get("mid")
        time = _ends(item.get("gpu_hours" if gpus else "minutes"), _amount)
        gib = f"{memory:.1f}" if isinstance(memory, int | float) and memory else ""
        if mapping(item.get("fits")).get("ok") is False:
            gib += "!"
        _row(
            table, name, count(tokens) if tokens else "", *time, *_ends(usd, _dollars), gib, BASES.get(basis, DASH),
            style=style, limit=24,
        )  # fmt: skip

    for s in objects(plan.get("stages")):
        line(str(s.get("name") or s.get("use")), s)
    table.add_section()
    line("total", total, style="bold")
    console.print(table)
    console.print()
    if gpus:
        minutes, between = _ends(total.get("minutes"), _amount)
        _say(console, f"Wall time: {minutes} minutes ({between})")
    if plan.get("budget"):
        over = "; the middle of the plan is over it: the run would stop at the ceiling, with a score"
        _say(console, f"Budget: {plan['budget']}{over if plan.get('over_budget') else ''}")
    _print_terms(plan, console)
    for s in objects(plan.get("stages")):
        fits = mapping(s.get("fits"))
        if fits.get("ok") is False:
            need, there = mapping(s.get("memory_gib")).get("mid"), num(fits.get("available_gib"))
            room = f", which has {there:.1f}" if there is not None else ""
            text = f"! {s.get('name')} needs {number(need, 3)} GiB on {fits.get('on')}{room}"
            _say(console, f"{text}; the largest part is {fits.get('part')} ({number(fits.get('part_gib'), 3)} GiB)", "yellow")
    machine = mapping(plan.get("machine"))
    if machine:
        rate = (
            money(machine["usd_per_hour"]) + " an hour"
            if decimal(machine.get("usd_per_hour")) is not None
            else "price unknown"
        )
        several = num(machine.get("count")) or 1
        words = [machine.get("sku"), rate + (f" each, {several:.0f} of them" if several > 1 else "")]
        words += [machine.get("source"), machine.get("date"), machine.get("note")]
        _say(console, "Machine: " + ", ".join(str(w) for w in words if w), "dim")
    _print_alternatives(plan, console)
    left_out = plan.get("left_out")
    if isinstance(left_out, list) and left_out:
        if any("$" in str(x) for x in left_out):
            _say(console, "Not in these dollars:", "dim")
            for x in left_out:
                _say(console, f"  - {x}", "dim")
        else:
            _say(console, "Not in these dollars: " + "; ".join(str(x) for x in left_out), "dim")
    where = {"literature": "published figures, not this machine", "measured": "this machine, this recipe's own texts"}
    if "literature" in bases and not gpus:
        where["literature"] += "; `shoestring doctor` measures it"
    for basis in sorted(bases):
        _say(console, f"Basis {BASES.get(basis, basis)}: {basis} ({where.get(basis, 'see docs/plan.md')})", "dim")


def _print_terms(plan: Mapping[str, Any], console: Console) -> None:
    """Storage, the result's way out, who pays, and when it would end: lines for what the recipe states of them."""
    rows = [(mapping(plan.get("storage")), "Storage, as long as the lease runs")]
    rows += [(row, "The result's way out, once") for row in objects(plan.get("egress"))]
    for row, what in rows:
        if row:
            usd = mapping(row.get("usd")).get("mid")
            said = _dollars(usd) if isinstance(usd, int | float) else DASH
            _say(console, f"{what}: {row.get('gb'):g} GB, ${said} in the total ({row.get('sku')}, {row.get('date')})")
    if paid := objects(plan.get("funding")):
        said = ", ".join(f"{r.get('source')} {money(r.get('amount'))}" for r in paid)
        _say(console, f"Who pays: {said}; credits lower no total")
    window = mapping(plan.get("window"))
    if window.get("why"):
        _say(console, f"Window {window.get('window')}: {window['why']}: no run would end", "yellow")
    elif window:
        hours, between = _ends(window.get("wall_hours"), _amount)
        used = mapping(window.get("windows")).get("mid")
        text = f"Window {window.get('window')}: opens {window.get('opens')}, ends {window.get('ends')}"
        _say(console, f"{text}: {hours} hours from now ({between}), in {used} window{'' if used == 1 else 's'}")


def _print_alternatives(plan: Mapping[str, Any], console: Console, most: int = 5) -> None:
    """The cheapest changes of the recipe, each with what is given up."""
    found = objects(plan.get("alternatives"))
    if not found:
        return
    table = _table(("USD", "r"), ("saves", "r"), ("minutes", "r"), ("what could be cheaper, and the trade", "w"))
    before = num(mapping(mapping(plan.get("total")).get("usd")).get("mid"))
    for a in found[:most]:
        usd, minutes = (mapping(a.get(k)).get("mid") for k in ("usd", "minutes"))
        saved = num(mapping(a.get("saving")).get("mid"))
        share = f"{saved / before:.0%}" if saved is not None and before else DASH
        unfit = " (does not fit into memory)" if a.get("fits") is False else ""
        text = f"{a.get('change')}{unfit}: {a.get('trade')}"
        cells = [_dollars(usd) if isinstance(usd, int | float) else DASH, share]
        _row(table, *cells, _amount(minutes) if isinstance(minutes, int | float) else DASH, text)
    console.print(table)
    if len(found) > most:
        _say(console, f"{len(found) - most} more with --json", "dim")
    console.print()


def print_bill(bill: Any, console: Console, run: Mapping[str, Any] | None = None) -> None:
    """The bill: its lines, the three totals apart, and where each price comes from. `bill` is bill.json or a `Bill`."""
    data = bill_dict(bill)
    cur = str(data.get("currency") or "USD")
    head, marginal = (mapping(data.get(k)).get("total") for k in ("headline", "marginal"))
    places = money_places(marginal if decimal(marginal) is not None else head)
    lines = objects(data.get("lines"))
    refs: dict[str, int] = {}
    table = _table(
        *(("stage", "l"), ("resource", "w"), ("quantity", "r"), ("unit price", "r")),
        *(("amount", "r"), ("outcome", "l"), ("", "r")),
        title="Bill",
    )
    for line in lines:
        ref = mapping(line.get("price_ref"))
        mark = ""
        if ref.get("source"):
            text = ", ".join(str(x) for x in (ref.get("source"), ref.get("date"), ref.get("note")) if x)
            mark = f"[{refs.setdefault(text, len(refs) + 1)}]"
        unit = str(line.get("unit") or "")
        metered = f"{quantity(line.get('quantity'))} {SHORT_UNITS.get(unit, unit)}"
        cells = [line.get("stage"), resource(line.get("resource")), metered, money(line.get("unit_price"), cur)]
        cells += [money(line.get("amount"), cur, places), line.get("outcome"), mark]
        _row(table, *cells, style="" if line.get("outcome") == "useful" else "dim", limit=60)
    table.add_section()
    _row(table, "marginal", "", "", "", money(marginal, cur, places), "", "", style="bold")
    console.print(table)
    console.print()
    at_least = "at least " if data.get("is_lower_bound") else ""
    totals = _table(("", "l"), ("", "r"), ("", "w"))
    totals.show_header, totals.box = False, None
    budget = num(str(data.get("budget") or "").split(" ")[0])
    _row(totals, "Headline", at_least + money(head, cur), "the winning run", style="bold")
    _row(totals, "Marginal", at_least + money(marginal, cur), "everything that this recipe caused, failures too")
    spent = num(marginal)
    if budget is not None:
        left = ""
        if spent is not None:
            left = f"{money(budget - spent, cur)} left" if budget >= spent else "OVER THE BUDGET"
        _row(totals, "Budget", money(budget, cur), left)
    for s in objects(data.get("sunk")):
        about = [s.get("what") or s.get("name") or s.get("item"), s.get("source"), s.get("date")]
        about = [x for x in about if x != "unknown"]
        _row(totals, "Sunk", between(*sunk_ends(s), cur), ", ".join(str(x) for x in about if x), style="dim")
    console.print(totals)
    if data.get("is_lower_bound"):
        _say(console, "A price is unknown, so the totals are lower bounds.", "yellow")
    for text, i in refs.items():
        _say(console, f"[{i}] {text}", "dim")
    if run and run.get("status") not in (None, "finished"):
        _say(console, f"The run {run.get('status')}" + (f": {run['reason']}" if run.get("reason") else ""), "yellow")


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return DASH
    ends = interval(row.get("ci95"))
    return percent(row.get("accuracy")) + (f" {100 * ends[0]:.0f}–{100 * ends[1]:.0f}" if ends else "")


def print_scores(scores: Sequence[Mapping[str, Any]], gains: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Accuracy with 95% intervals: models overall, then family by family, then the gain of each stage by itself."""
    rows = [dict(r) for r in scores if isinstance(r, Mapping)]
    for benchmark, title in (("unseen", "Unseen problems"), ("untrained", "Families that were not trained")):
        chosen: dict[tuple[str, str], dict[str, Any]] = {}
        for r in rows:
            if str(r.get("benchmark")) == benchmark and not str(r.get("model")).startswith("base-"):
                key = (str(r.get("model")), str(r.get("family")))
                if key not in chosen or chosen[key].get("extraction") == "lenient":
                    chosen[key] = r
        models = list(dict.fromkeys(m for m, _ in chosen))
        families = sorted(dict.fromkeys(f for _, f in chosen), key=lambda f: f == "macro")
        if not families:
            continue
        room = max(1, (console.width - 32) // 14)  # the first model and the last ones, where not all fit
        kept = models if len(models) <= room else [*models[:1], *models[len(models) - room + 1 :]] if room > 1 else models[-1:]
        table = _table(
            ("family", "l"),
            ("n", "r"),
            *((clean(m, 13), "r") for m in kept),
            ("commonest", "r"),
            title=f"{title}: accuracy and 95% interval",
        )
        for family in families:
            if family == "macro":
                table.add_section()
            found = [chosen[m, family] for m in models if (m, family) in chosen]
            always = next((x for r in found if (x := num(r.get("commonest_answer_baseline"))) is not None), None)
            cells = [_cell(chosen.get((m, family))) for m in kept]
            _row(
                table,
                family,
                number(found[0].get("n"), 6),
                *cells,
                percent(always),
                style="bold" if family == "macro" else "",
                limit=18,
            )
        console.print(table)
        console.print()
        for m in models:
            if m not in kept and (m, "macro") in chosen:
                _say(console, f"{m}: macro {_cell(chosen[m, 'macro'])}", "dim")
    scores_of.print_benchmarks(rows, console)
    texts = [r for r in rows if str(r.get("benchmark")) == "heldout-text" and num(r.get("loss")) is not None]
    if texts:
        _say(
            console,
            "Held-out text, nats a token: " + ", ".join(f"{r.get('model')} {number(r.get('loss'), 4)}" for r in texts),
        )
    ways = [r for r in rows if str(r.get("model")).startswith("base-") and r.get("family") == "macro"]
    if ways:
        asked = ", ".join(f"{str(r.get('model')).removeprefix('base-')} {_cell(r)}" for r in ways)
        _say(console, f"The base model in every way it was asked (the best one counts): {asked}", "dim")
    found_gains = [g for g in gains if isinstance(g, Mapping) and num(g.get("gain")) is not None]
    if found_gains:
        notes: dict[str, int] = {}
        table = _table(
            *(("from → to", "l"), ("benchmark", "l"), ("points", "r")),
            *(("95% interval", "r"), ("p", "r"), ("", "l")),
            title="Gains",
        )
        for g in found_gains:
            ends = interval(g.get("ci95"))
            bounds = f"{points(ends[0])} to {points(ends[1])}" if ends else DASH
            mark = f"[{notes.setdefault(str(g['note']), len(notes) + 1)}]" if g.get("note") else ""
            cells = [f"{g.get('from')} → {g.get('to')}", g.get("benchmark"), points(g.get("gain")), bounds]
            _row(table, *cells, p_value(g.get("p_value")), mark)
        console.print(table)
        console.print()
        for text, i in notes.items():
            _say(console, f"[{i}] {text}", "dim")


def print_funnel(funnel: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The funnel: what each step kept of what came before, as numbers and as a bar."""
    steps = [s for s in funnel if isinstance(s, Mapping) and num(s.get("after")) is not None]
    most = max([x for s in steps for k in ("before", "after") if (x := num(s.get(k))) is not None], default=0.0)
    table = _table(("step", "w"), ("kept", "r"), ("dropped", "r"), ("", "l"), ("why", "w"), title="Funnel")
    for s in steps:
        after = num(s.get("after")) or 0.0
        before = num(s.get("before"))
        lost = "" if before is None else number(max(0.0, before - after), 9)
        bar = "█" * max(1 if after > 0 else 0, round(BAR * after / most)) if most else ""
        _row(table, s.get("step"), number(after, 9), lost, bar, s.get("why") or "")
    console.print(table)
    console.print()
