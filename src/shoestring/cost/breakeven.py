"""Train a small model, prompt a priced API, or prompt it with retrieved passages: cash by month, and when training pays.

Pure: quantities and prices come in as `Value`s, dollars by month go out. A line that nobody gave is named and counted
nowhere, so the totals of an option with such a line are lower bounds; `Verdict.room` is what the missing lines of training
may come to before the answer changes. Queries are a month's; month 0 is what is paid before the first query.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, localcontext
from typing import Any

from shoestring.cost.assumptions import Key, Swing, Value, assumption_rows, corners, middle, not_given_rows, swing_rows, swings
from shoestring.cost.decimals import brief, usd
from shoestring.cost.provisioned import MONTH_HOURS

MILLION = Decimal(1_000_000)
BEYOND = 240  # months looked at, where the answer lies outside the horizon
COMPUTED = {  # lines of a flow that are computed → their category
    "own.training": "training", "own.serving": "serving", "own.fallback": "serving", "api.tokens": "serving",
    "rag.tokens": "serving",
}  # fmt: skip
OPTIONS = {"own": "train a small model", "api": "prompt a priced API", "rag": "prompt it with retrieved passages"}

ONCE, MONTHLY, RETRAIN = "once", "monthly", "every retraining"


@dataclass(frozen=True)
class Line:
    """A line of an option's costs that stands in the file of assumptions under the key of the same name."""

    key: str
    category: str
    when: str

    @property
    def option(self) -> str:
        return self.key.partition(".")[0]


# The categories are those that people budget by: people, experts' labels, data, training, serving, compliance.
LINES = (
    Line("own.people_start", "people", ONCE),
    Line("own.labelling_start", "labelling", ONCE),
    Line("own.data_start", "data", ONCE),
    Line("own.compliance_start", "compliance", ONCE),
    Line("own.people_month", "people", MONTHLY),
    Line("own.compliance_month", "compliance", MONTHLY),
    Line("own.people_retrain", "people", RETRAIN),
    Line("own.labelling_retrain", "labelling", RETRAIN),
    Line("api.people_start", "people", ONCE),
    Line("api.compliance_start", "compliance", ONCE),
    Line("api.people_month", "people", MONTHLY),
    Line("api.compliance_month", "compliance", MONTHLY),
    Line("rag.people_start", "people", ONCE),
    Line("rag.data_start", "data", ONCE),
    Line("rag.compliance_start", "compliance", ONCE),
    Line("rag.people_month", "people", MONTHLY),
    Line("rag.index_month", "data", MONTHLY),
    Line("rag.compliance_month", "compliance", MONTHLY),
)
_HOURS = '"40h@80"'
_N = {"kind": "number", "positive": True}
KEYS = (
    Key("queries", "queries a month", unit="queries/month", example="100000", **_N),
    Key("tokens_in", "tokens of a question", unit="tokens", example="{low = 80, high = 200}", **_N),
    Key("tokens_out", "tokens of an answer", unit="tokens", example="{low = 50, high = 400}", **_N),
    Key("growth_percent", "growth of the queries, a month", "percent", "%/month", example="3", signed=True,
        absent="no growth is counted"),
    Key("own.people_start", "building it: choosing data, training, testing, putting it into service", example=_HOURS),
    Key("own.labelling_start", "experts who write or check answers", example='"100h@120"'),
    Key("own.data_start", "licences of data, cleaning"),
    Key("own.compliance_start", "privacy, security and legal review before it answers anybody", example=_HOURS),
    Key("own.training", "one training, in place of the plan's figure", example='{low = "9 USD", high = "48 USD"}',
        absent="the plan's"),
    Key("own.training_runs", "trainings paid for until one is good", "number", "runs", example="5", positive=True,
        absent="one run is counted, no failed one"),
    Key("own.retrain_every", "months from one training to the next", "number", "months", example="6", positive=True, whole=True,
        absent="no retraining is counted"),
    Key("own.people_retrain", "people's time at each retraining", example=_HOURS),
    Key("own.labelling_retrain", "new labels at each retraining", example='"20h@120"'),
    Key("own.usd_per_hour", "the serving machine", unit="USD/hour", per="/hour", example='"0.60 USD/hour"',
        absent="the recipe's machine"),
    Key("own.decode_tokens_per_second", "tokens a second that it answers with, all users together", unit="tokens/s",
        example="600", absent="the planner's rate", **_N),
    Key("own.prefill_tokens_per_second", "tokens a second that it reads", unit="tokens/s", example="5000",
        absent="the planner's rate", **_N),
    Key("own.utilisation_percent", "share of the paid hours in which it works", "percent", "%", example="30", positive=True,
        absent="whole machines are paid all month, 730 h each"),
    Key("own.fallback_percent", "share of the queries that the small model hands on to the API", "percent", "%", example="10",
        absent="it answers every query"),
    Key("own.people_month", "keeping it running: watching, on call", example='"8h@80"'),
    Key("own.compliance_month", "audits, logs", example='"200 USD"'),
    Key("api.model", "a price of the book, as catalogue/model", "text", example='"litellm/gpt-5-mini"',
        absent="the model of the median price of a query"),
    Key("api.usd_per_mtok_in", "a million tokens read, in place of the book's price", unit="USD/Mtok", example='"0.25 USD"',
        absent="the book's"),
    Key("api.usd_per_mtok_out", "a million tokens written", unit="USD/Mtok", example='"2 USD"', absent="the book's"),
    Key("api.prompt_tokens", "instructions and examples sent with every question", "number", "tokens", example="600",
        absent="the bare question is sent"),
    Key("api.price_change_percent", "change of the API's prices, a year", "percent", "%/year", example="-30", signed=True,
        absent="prices stay"),
    Key("api.people_start", "writing and testing prompts, putting it into service", example=_HOURS),
    Key("api.compliance_start", "review of sending data to a third party", example=_HOURS),
    Key("api.people_month", "keeping it running: changed models, prompts", example='"4h@80"'),
    Key("api.compliance_month", "audits, logs", example='"100 USD"'),
    Key("rag.tokens", "tokens of the passages sent with every question", "number", "tokens", positive=True,
        example="{low = 667, high = 1333}", absent="5 to 10 passages of 100 words"),
    Key("rag.people_start", "building retrieval beside the prompts", example='"80h@80"'),
    Key("rag.data_start", "collecting and cleaning the documents"),
    Key("rag.compliance_start", "review of the documents and of sending them to a third party", example=_HOURS),
    Key("rag.index_month", "vector store, embeddings", example='"50 USD"'),
    Key("rag.people_month", "keeping documents fresh", example='"8h@80"'),
    Key("rag.compliance_month", "audits, logs", example='"100 USD"'),
)  # fmt: skip
KEY = {k.name: k for k in KEYS}
NEEDED = (
    "queries", "tokens_in", "tokens_out", "own.training", "own.usd_per_hour", "own.decode_tokens_per_second",
    "own.prefill_tokens_per_second", "api.usd_per_mtok_in", "api.usd_per_mtok_out", "rag.tokens",
)  # fmt: skip
HEAD = """What only you know about your break-even: shoestring breakeven RECIPE --queries 100000/month --assumptions THIS_FILE
Take away the # in front of what you know. A line that stays out is reported as "not given"; it is never taken as zero.
Amounts: "120 USD", people's time as "12h@80" (hours at USD an hour), or both ends with a source:
{low = "100 USD", mid = "150 USD", high = "300 USD", source = "two offers"}. Write "0 USD" for what truly costs nothing."""

Flow = dict[str, Decimal]  # line → dollars of one month


def query_usd(v: Mapping[str, Decimal], rag: bool = False, month: int = 1) -> Decimal:
    """Dollars of one query to the API in that month."""
    read = v["tokens_in"] + v.get("api.prompt_tokens", Decimal(0)) + (v["rag.tokens"] if rag else Decimal(0))
    dollars = (read * v["api.usd_per_mtok_in"] + v["tokens_out"] * v["api.usd_per_mtok_out"]) / MILLION
    if change := v.get("api.price_change_percent"):
        dollars *= (1 + change / 100) ** (Decimal(month - 1) / 12)
    return dollars


def queries(v: Mapping[str, Decimal], month: int) -> Decimal:
    return v["queries"] * (1 + v.get("growth_percent", Decimal(0)) / 100) ** (month - 1)


def answered(v: Mapping[str, Decimal]) -> Decimal:
    """The share of queries that the small model answers itself."""
    return 1 - v.get("own.fallback_percent", Decimal(0)) / 100


def busy_hours(v: Mapping[str, Decimal], month: int) -> Decimal:
    """Hours of work of one machine for the month's queries."""
    seconds = v["tokens_in"] / v["own.prefill_tokens_per_second"] + v["tokens_out"] / v["own.decode_tokens_per_second"]
    return queries(v, month) * answered(v) * seconds / 3600


def serving_hours(v: Mapping[str, Decimal], month: int) -> Decimal:
    """Hours paid: the work over the utilisation, or, where that is not given, whole machines all month."""
    busy = busy_hours(v, month)
    if share := v.get("own.utilisation_percent"):
        return busy / (share / 100)
    return MONTH_HOURS * max(Decimal(1), (busy / MONTH_HOURS).to_integral_value(ROUND_CEILING))


def flows(option: str, v: Mapping[str, Decimal], months: int) -> list[Flow]:
    """The dollars of each line in month 0, 1 … months."""
    lines = [line for line in LINES if line.option == option and line.key in v]
    runs = v.get("own.training_runs", Decimal(1))
    every = int(v.get("own.retrain_every", Decimal(0)))
    out: list[Flow] = []
    with localcontext(prec=28):
        for month in range(months + 1):
            again = option == "own" and month > 0 and every > 0 and month % every == 0
            due = {ONCE} if month == 0 else {MONTHLY, RETRAIN} if again else {MONTHLY}
            flow = {line.key: v[line.key] for line in lines if line.when in due}
            if option == "own" and (month == 0 or again):
                flow["own.training"] = v["own.training"] * runs
            if month > 0 and option == "own":
                flow["own.serving"] = serving_hours(v, month) * v["own.usd_per_hour"]
                if handed := queries(v, month) * (1 - answered(v)):
                    flow["own.fallback"] = handed * query_usd(v, month=month)
            elif month > 0:
                flow[f"{option}.tokens"] = queries(v, month) * query_usd(v, option == "rag", month)
            out.append(flow)
    return out


def running(flow: list[Flow]) -> list[Decimal]:
    """Cumulative dollars by month."""
    total, out = Decimal(0), []
    for month in flow:
        total += sum(month.values(), Decimal(0))
        out.append(total)
    return out


@dataclass(frozen=True)
class Answer:
    """month: from which the small model stays the cheaper one up to the horizon; None: never. saving: dollars at the horizon.
    crosses: the first month in which it is ahead, even if it falls back again."""

    month: int | None
    saving: Decimal
    crosses: int | None


def answer(v: Mapping[str, Decimal], against: str, months: int) -> Answer:
    own, other = running(flows("own", v, months)), running(flows(against, v, months))
    ahead = [mine <= theirs for mine, theirs in zip(own, other, strict=True)]
    month = next((m for m in range(months + 1) if all(ahead[m:])), None)
    return Answer(month, other[-1] - own[-1], next((m for m, yes in enumerate(ahead) if yes), None))


@dataclass(frozen=True)
class Verdict:
    """Training against one alternative. best, worst: all stated intervals at their good and at their bad ends.

    later: where the middle says never within the horizon, the month beyond it (up to BEYOND) if all goes on alike.
    from_queries: the least monthly queries, to 1%, from which training pays within the horizon; None: no number up to a
    thousand million. room: what the lines that were not given may come to, in sum, before the middle's answer changes: those
    of training where it pays, else those of the alternative.
    """

    against: str
    mid: Answer
    best: Answer
    worst: Answer
    later: int | None
    from_queries: Decimal | None
    room: Decimal
    swings: list[Swing[Answer]]


@dataclass(frozen=True)
class Result:
    months: int
    values: Mapping[str, Value]
    not_given: tuple[Key, ...]
    flows: Mapping[str, list[Flow]]  # by option, at the middle
    totals: Mapping[str, tuple[Decimal, Decimal, Decimal]]  # by option, at the horizon: low, mid, high
    verdicts: tuple[Verdict, ...]


def compare(values: Mapping[str, Value], months: int) -> Result:
    """Raises KeyError for a needed value that is missing (NEEDED): the caller knows how to ask for it."""
    for name in NEEDED:
        if name not in values:
            raise KeyError(name)
    v = middle(values)
    verdicts = tuple(_verdict(values, against, months) for against in ("api", "rag"))
    missing = tuple(k for k in KEYS if k.name not in values and k.kind != "text")
    return Result(
        months, values, missing, {o: flows(o, v, months) for o in OPTIONS},
        {o: _ends(values, o, months) for o in OPTIONS}, verdicts,
    )  # fmt: skip


@dataclass(frozen=True)
class _Total:
    """What `corners` orders by, for one option's total: less is more saved."""

    saving: Decimal
    month: int | None = None


def _ends(values: Mapping[str, Value], option: str, months: int) -> tuple[Decimal, Decimal, Decimal]:
    def total(v: Mapping[str, Decimal]) -> _Total:
        return _Total(-running(flows(option, v, months))[-1])

    best, worst = corners(values, total)
    return -best.saving, -total(middle(values)).saving, -worst.saving


def _verdict(values: Mapping[str, Value], against: str, months: int) -> Verdict:
    def solve(v: Mapping[str, Decimal]) -> Answer:
        return answer(v, against, months)

    mid = solve(middle(values))
    best, worst = corners(values, solve)
    later = None
    if mid.month is None:
        further = answer(middle(values), against, BEYOND)
        later = further.month if further.month is not None and further.month > months else None
    skip = "api." if against == "rag" else "rag."
    shared = ("api.usd", "api.prompt", "api.price")  # passages are sent to the same API
    used = {k: x for k, x in values.items() if not k.startswith(skip) or k.startswith(shared)}
    moved = [s for s in swings(used, KEYS, lambda v: solve({**middle(values), **v})) if s.width]
    return Verdict(against, mid, best, worst, later, _from_queries(values, against, months), abs(mid.saving), moved)


def _from_queries(values: Mapping[str, Value], against: str, months: int) -> Decimal | None:
    """By doubling, then halving. Whole machines make steps, so that this is the first crossing found, not a law."""
    base = middle(values)

    def pays(n: Decimal) -> bool:
        return answer({**base, "queries": n}, against, months).month is not None

    high = Decimal(1)
    while not pays(high):
        high *= 2
        if high > 10**9:
            return None
    low = high / 2
    while high - low > high / 100 and high > 1:
        half = (low + high) / 2
        low, high = (low, half) if pays(half) else (half, high)
    return high.to_integral_value(ROUND_CEILING)


def to_dict(result: Result) -> dict[str, Any]:
    """docs/json/breakeven.md. Amounts are decimal strings in US dollars."""
    v = middle(result.values)
    missing = {k.name for k in result.not_given}
    options = []
    for option, what in OPTIONS.items():
        months = result.flows[option]
        keys = dict.fromkeys(k for flow in months for k in flow)
        low, mid, high = result.totals[option]
        unknown = [line.key for line in LINES if line.option == option and line.key in missing]
        options.append(
            {
                "option": option, "what": what, "start_usd": usd(sum(months[0].values(), Decimal(0))),
                "month_1_usd": usd(sum(months[1].values(), Decimal(0))) if len(months) > 1 else None,
                "total_usd": {"low": usd(low), "mid": usd(mid), "high": usd(high), "basis": _basis(result.values)},
                "is_lower_bound": bool(unknown), "not_given": unknown,
                "lines": [
                    {"line": k, "category": category(k), "usd": usd(sum((f.get(k, Decimal(0)) for f in months), Decimal(0)))}
                    for k in keys
                ],
            }
        )  # fmt: skip
    cumulative = {o: running(f) for o, f in result.flows.items()}
    return {
        "months": result.months,
        "break_even_month": {x.against: x.mid.month for x in result.verdicts},
        "assumptions": assumption_rows(result.values, KEY),
        "not_given": not_given_rows(result.not_given),
        "options": options,
        "serving": {
            "busy_hours": brief(busy_hours(v, 1)), "paid_hours": brief(serving_hours(v, 1)),
            "utilisation": brief(busy_hours(v, 1) / serving_hours(v, 1)),
            "usd_per_1000": usd(1000 * serving_hours(v, 1) * v["own.usd_per_hour"] / (queries(v, 1) * answered(v)))
            if answered(v) else None,
            "api_usd_per_1000": usd(1000 * query_usd(v)), "rag_usd_per_1000": usd(1000 * query_usd(v, True)),
        },
        "cash_flow": [
            {"month": m} | {
                o: {"usd": usd(sum(result.flows[o][m].values(), Decimal(0))), "cumulative_usd": usd(cumulative[o][m])}
                for o in OPTIONS
            }
            for m in range(result.months + 1)
        ],
        "verdicts": [
            {
                "against": x.against, "month": x.mid.month, "best": x.best.month, "worst": x.worst.month,
                "ahead_first_in": x.mid.crosses, "beyond_horizon": x.later, "saving_usd": usd(x.mid.saving),
                "saving_best_usd": usd(x.best.saving), "saving_worst_usd": usd(x.worst.saving),
                "from_queries": brief(x.from_queries), "room_usd": usd(x.room), "sensitivity": swing_rows(x.swings),
            }
            for x in result.verdicts
        ],
    }  # fmt: skip


def category(line: str) -> str:
    """The category of a flow's line."""
    if line in COMPUTED:
        return COMPUTED[line]
    return next(x.category for x in LINES if x.key == line)


def _basis(values: Mapping[str, Value]) -> str:
    """Of a sum: what a forecast of several sources is worth is its weakest part's. Anything assumed makes it simulated."""
    found = {x.basis for x in values.values()}
    return found.pop() if len(found) == 1 else "simulated"
