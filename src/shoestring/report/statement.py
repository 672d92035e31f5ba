"""`bill` of several runs and `compare`, on a terminal and as a page: outcomes, charges, funding, variance, frontier.

`data` is the content of `bill --json` (docs/json/bill.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import frontier, money
from .load import RunFolder, mapping
from .money import OUTCOME_NOTES
from .page import shell
from .style import h, section, table, tag
from .terminal import _row, _say, _table
from .text import DASH, MINUS, decimal, listed, money_places, percent, quantity, resource
from .text import money as dollars

if TYPE_CHECKING:
    from rich.console import Console

PARTS = ("rate", "volume", "efficiency", "waste")
NOTE = (
    "Tied: the accuracies' 95% intervals overlap, so no order is claimed. Training: every stage up to the model, failures "
    "too, evaluations apart. Per 1,000: answers at the evaluation's own speed and machine."
)
SPLIT = (
    "rate: another price than planned; volume: more or less work; efficiency: more or fewer seconds for that work; "
    "waste: idle, failed, preempted, replayed, discarded. They sum to the difference."
)


def print_statement(data: Mapping[str, Any], console: Console) -> None:
    """What follows the bills themselves: outcomes, charges, funding, the plan's variance, and the runs' sums."""
    cur, runs = data["currency"], data["runs"]
    places = money_places(data["marginal"]["total"])

    def usd(value: Any) -> str:
        return dollars(value, cur, places)

    spent = _table(("by outcome", "l"), ("amount", "r"), ("", "w"))
    for outcome, amount in data["outcomes"].items():
        _row(spent, outcome, usd(amount), OUTCOME_NOTES[outcome], style="" if outcome == "useful" else "dim")
    console.print(spent)
    console.print()
    if data["charges"]["lines"]:
        _charges(data, console)
    if data["funding"]:
        paid = _table(("paid from", "l"), ("amount", "r"), ("left", "r"))
        for row in data["funding"]:
            _row(paid, row["source"], usd(row["amount"]), "" if row["left"] is None else dollars(row["left"], cur))
        console.print(paid)
        _say(console, "Credits pay for the cost; they do not lower it.", "dim")
        console.print()
    for run in runs:
        _variance(run, console, f" · {run['run']}" if len(runs) > 1 else "")
    for run in runs:
        for row in run["answers"]:
            _say(console, thousand(row, run["run"] if len(runs) > 1 else "", cur))
    if any(run["answers"] for run in runs):
        console.print()
    if len(runs) > 1:
        sums = _table(("run", "w"), ("headline", "r"), ("marginal", "r"), ("with charges", "r"), title="All runs")
        for run in runs:
            _row(sums, run["run"], usd(run["headline"]), usd(run["marginal"]), usd(run["charges"]["with_marginal"]))
        sums.add_section()
        _row(sums, "sum", usd(data["headline"]["total"]), usd(data["marginal"]["total"]),
             usd(data["charges"]["with_marginal"]), style="bold")  # fmt: skip
        console.print(sums)
        if data["winner"]:
            _say(console, winner(data["winner"], cur))
    _say(console, f"Priced with {data['priced_with']}.", "dim")


def thousand(row: Mapping[str, Any], run: str, currency: str) -> str:
    """One model's price of a thousand answers, in a sentence."""
    whose = f"{run}/{row['model']}" if run else str(row["model"])
    usd = row["usd_per_1000"]
    if usd is None:
        return f"A thousand answers by {whose}: no price, because {row['why_unknown']}."
    low, mid, high = (dollars(usd[k], currency) for k in ("low", "mid", "high"))
    speed = f"{row['tokens_per_answer']:.0f} tokens each, {row['tokens_per_second']:.0f} tokens/s"
    return (
        f"A thousand answers like the evaluation's by {whose} cost {mid} (95%: {low} to {high}; {usd['basis']} in "
        f"{row['stage']}: {speed})."
    )


def winner(w: Mapping[str, Any], currency: str) -> str:
    text = f"The best score is {w['run']}'s ({percent(w['accuracy'])}); alone it cost {dollars(w['headline'], currency)}"
    return text + (f"; its interval overlaps with {listed(w['tied_with'])}: no order is shown." if w["tied_with"] else ".")


def _charges(data: Mapping[str, Any], console: Console) -> None:
    many = len(data["runs"]) > 1
    rows = _table(("charged by hand", "w"), ("quantity", "r"), ("each", "r"), ("amount", "r"), ("entry", "r"), ("note", "w"))
    for c in data["charges"]["lines"]:
        what = f"{c['run']}: {c['what']}" if many else c["what"]
        _row(rows, what, f"{quantity(c['quantity'])} {c['unit']}", dollars(c["unit_price"]), dollars(c["amount"]),
             c["entry"], c["note"])  # fmt: skip
    console.print(rows)
    without, full = dollars(data["marginal"]["total"]), dollars(data["charges"]["with_marginal"])
    _say(console, f"Marginal {without} without charges, {full} with them; they do not count against the ceiling.")
    console.print()


def _variance(run: Mapping[str, Any], console: Console, whose: str) -> None:
    found = run["variance"]
    if not found:
        _say(console, f"No variance against the plan{whose}: {run['why_no_variance']}.", "dim")
        return
    small = abs(decimal(found["planned"]) or 0) < 1 and abs(decimal(found["actual"]) or 0) < 1

    def usd(value: Any) -> str:
        d = decimal(value)
        return DASH if d is None else f"{d * 1000 if small else d:,.{3 if small else 2}f}".replace("-", MINUS)

    rows = _table(("stage", "w"), ("planned", "r"), ("actual", "r"), ("differs", "r"), *((p, "r") for p in PARTS),
                  title=f"Against the plan{whose}, in {'thousandths of a USD' if small else 'USD'}")  # fmt: skip
    for line in variance_lines(found):
        _row(rows, line["name"], *(usd(line[k]) for k in ("planned", "actual", "difference", *PARTS)), limit=60)
    rows.add_section()
    last = [usd(found[k]) for k in ("planned", "actual", "difference")] + [usd(found["parts"][k]) for k in PARTS]
    _row(rows, "total", *last, style="bold")
    console.print(rows)
    place = f", {found['outside']} the plan's interval" if found["outside"] else ""
    _say(console, f"{_share(found)}{place}. {SPLIT}", "dim")
    console.print()


def _share(found: Mapping[str, Any]) -> str:
    planned, differs = decimal(found["planned"]), decimal(found["difference"])
    if not planned or differs is None:
        return "Nothing was planned in dollars"
    if not differs:
        return "As planned"
    return f"{percent(abs(differs / planned))} {'over' if differs > 0 else 'under'} the plan"


def variance_lines(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines with a name each: the stage, and the resource where a stage has several, and what is special about it."""
    stages = [line["stage"] for line in found["lines"]]
    out = []
    for line in found["lines"]:
        name = line["stage"] if stages.count(line["stage"]) == 1 else f"{line['stage']}, {resource(line['resource'])}"
        out.append({**line, "name": name + ("" if line["kind"] == "both" else f" ({line['kind']})")})
    return out


def print_comparison(c: frontier.Comparison, console: Console) -> None:
    """A line a model with its interval and both prices, then where it stands."""
    rows = _table(("model", "w"), ("accuracy", "r"), ("95%", "r"), ("training", "r"), ("per 1,000", "r"), ("interval", "r"),
                  title="Accuracy against what it costs")  # fmt: skip
    for m in sorted(c.models, key=lambda m: m.training):
        a, s = m.accuracy, m.serving.usd
        asked = (dollars(s.mid), f"{dollars(s.low)}–{dollars(s.high)}") if s else ("unknown", "")
        _row(rows, m.name, percent(float(a.mid)), f"{100 * a.low:.0f}–{100 * a.high:.0f}", dollars(m.training), *asked)
    console.print(rows)
    console.print()
    for title, places in (("By training dollars", c.training), ("By dollars a thousand answers", c.serving)):
        if places:
            _say(console, f"{title}:", "bold")
            for name, placed in places.items():
                _say(console, f"  {name}: {frontier.verdict(placed)}")
    for m in c.models:
        if m.serving.usd is None:
            _say(console, f"No serving price for {m.name}: {m.serving.why}", "yellow")
    for name, why in c.unplaced:
        _say(console, f"Not placed: {name}: {why}", "yellow")
    _say(console, NOTE, "dim")


def page(data: Mapping[str, Any], folders: Sequence[RunFolder]) -> str:
    """The bill as a page that loads nothing: every run's lines, then what they come to."""
    cur, runs = data["currency"], data["runs"]
    names = [r["run"] for r in runs]
    head = f'<header><p class="eyebrow"><b>shoestring</b> · bill of {h(listed(names), 300)}</p>'
    marginal, full = (h(dollars(v, cur)) for v in (data["marginal"]["total"], data["charges"]["with_marginal"]))
    title = f"{'At least ' if data['is_lower_bound'] else ''}{marginal} for {len(runs)} run{'s' if len(runs) > 1 else ''}"
    title += f", {full} with what was charged by hand" if data["charges"]["lines"] else ""
    body = f'{head}<h1>{title}.</h1><p class="small">Priced with {h(data["priced_with"])}.</p></header>'
    if len(runs) > 1:
        body += _sums(data, cur)
    body += _outcome_section(data, cur)
    if data["charges"]["lines"] and len(runs) > 1:
        body += section("Charged by hand", "", money.charge_table(data["charges"], cur, many=True))
    if data["funding"]:
        th = [("paid from", "nw"), ("amount", "r"), ("left", "r")]
        rows = [[h(r["source"]), h(dollars(r["amount"], cur)), DASH if r["left"] is None else h(dollars(r["left"], cur))]
                for r in data["funding"]]  # fmt: skip
        body += section("Who paid", "Credits pay for the cost; they do not lower it.", table(th, rows, label="funding"))
    for run, folder in zip(runs, folders, strict=True):
        shown = {k: run[k] for k in ("budget", "is_lower_bound", "lines", "charges")} | {
            "currency": cur, "headline": {"total": run["headline"]}, "marginal": {"total": run["marginal"]},
            "sunk": data["sunk"],
        }  # fmt: skip
        if len(runs) > 1:
            body += f"<section><h2>{h(run['run'], 100)}</h2></section>"
        body += money.bill(replace(folder, bill=shown)) + variance_section(run, cur)
        if run["answers"]:
            said = "".join(f"<p>{h(thousand(row, '', cur), 400)}</p>" for row in run["answers"])
            body += section("What answers cost", f"At the evaluation's own speed and machine. {tag('measured')}", said)
    return shell(f"bill of {listed(names)}", body)


def _sums(data: Mapping[str, Any], cur: str) -> str:
    places = money_places(data["marginal"]["total"])
    th = [("run", "nw"), ("budget", "r"), ("headline", "r"), ("marginal", "r"), ("with charges", "r")]
    rows = []
    for r in data["runs"]:
        amounts = (r["headline"], r["marginal"], r["charges"]["with_marginal"])
        rows.append([h(r["run"], 100), h(dollars(r["budget"], cur)), *(h(dollars(a, cur, places)) for a in amounts)])
    sums = (data["headline"]["total"], data["marginal"]["total"], data["charges"]["with_marginal"])
    last = ["sum", h(dollars(data["budget"], cur)), *(h(dollars(a, cur, places)) for a in sums)]
    lead = h(winner(data["winner"], cur), 600) if data["winner"] else ""
    return section("All runs", lead, table(th, rows, last, "all runs"))


def _outcome_section(data: Mapping[str, Any], cur: str) -> str:
    places = money_places(data["marginal"]["total"])
    rows = [[h(k), h(dollars(v, cur, places)), h(OUTCOME_NOTES[k])] for k, v in data["outcomes"].items()]
    th = [("outcome", "nw"), ("amount", "r"), ("what it is", "text")]
    last = ["marginal", h(dollars(data["marginal"]["total"], cur, places)), ""]
    lead = f"Every metered dollar has one outcome. {tag('measured')}"
    return section("What the money became", lead, table(th, rows, last, "outcomes"))


def variance_section(run: Mapping[str, Any], cur: str) -> str:
    title, found = "Against the plan, line by line", mapping(run.get("variance"))
    if not found:
        return section(title, f"Not shown: {h(run.get('why_no_variance'))}.", "")
    places = money_places(found["planned"])

    def cell(value: Any) -> str:
        return DASH if value is None else h(dollars(value, cur, places))

    th = [("line", "nw"), ("planned", "r"), ("actual", "r"), ("difference", "r"), *((p, "r") for p in PARTS)]
    three = ("planned", "actual", "difference")
    rows = [[h(x["name"], 100), *(cell(x[k]) for k in (*three, *PARTS))] for x in variance_lines(found)]
    last = ["total", *(cell(found[k]) for k in three), *(cell(found["parts"][k]) for k in PARTS)]
    return section(title, f"{h(_share(found))}. {h(SPLIT)} {tag('measured')}", table(th, rows, last, "variance"))
