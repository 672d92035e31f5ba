"""Rent against own hardware: what a useful GPU-hour costs in a machine of one's own, and when buying it pays.

Total cost of ownership by month: straight-line depreciation of the purchase over its life (less what it sells for), interest
on half of the price on average, power (watts x PUE x price), hosting, maintenance and people. Useful hours are
utilisation x 730 x GPUs. Rented hours are paid only while they are used, or, with `rent.utilisation_percent`, with their own
idle share. Pure; `Decimal`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

from shoestring.cost.assumptions import Key, Swing, Value, assumption_rows, corners, middle, not_given_rows, swing_rows, swings
from shoestring.cost.decimals import usd
from shoestring.cost.provisioned import MONTH_HOURS

_N = {"kind": "number", "positive": True}
KEYS = (
    Key("gpus", "GPUs in the machine", unit="GPUs", example="8", whole=True, fact=True, **_N),
    Key("purchase", "the whole machine, delivered", example='{low = "250000 USD", high = "320000 USD", source = "two offers"}',
        positive=True),
    Key("years", "years until it is written off", unit="years", example="4", **_N),
    Key("utilisation_percent", "share of all hours in which it does useful work", "percent", "%", example="60", positive=True),
    Key("watts", "power of the whole machine at work", unit="W", example="8000", **_N),
    Key("idle_watts", "power of the whole machine at rest", "number", "W", example="2500",
        absent="full power is counted in every hour"),
    Key("pue", "power of the building over power of its machines", unit="", example="1.3", **_N),
    Key("usd_per_kwh", "electricity", unit="USD/kWh", per="/kWh", example='"0.12 USD/kWh"', positive=True),
    Key("resale", "what it sells for at the end", example='"30000 USD"', absent="it is worth nothing then"),
    Key("interest_percent", "interest or cost of capital, a year", "percent", "%/year", example="6",
        absent="no interest is counted"),
    Key("hosting_month", "space, network and cooling that the PUE leaves out", example='"600 USD"'),
    Key("maintenance_month", "spare parts, service contract", example='"800 USD"'),
    Key("people_month", "people who keep it running", example='"16h@80"'),
    Key("installation", "racking, networking, first tests", example='"40h@80"'),
    Key("rent.provider", "of the price book", "text", example='"lambda"'),
    Key("rent.sku", "an instance of the price book", "text", example='"gpu_8x_h100_sxm5"'),
    Key("rent.region", "where an instance has several prices", "text", example='"us-east-1"'),
    Key("rent.market", 'on-demand (default) or spot', "text", example='"on-demand"'),
    Key("rent.usd_per_gpu_hour", "a rented GPU for an hour, in place of the book's price", unit="USD/GPU-hour", per="/hour",
        example='"2.50 USD/hour"', positive=True, absent="the book's price of provider and sku"),
    Key("rent.utilisation_percent", "share of the rented hours that do useful work", "percent", "%", example="90",
        positive=True, absent="every rented hour is counted as useful"),
)  # fmt: skip
KEY = {k.name: k for k in KEYS}
NEEDED = ("gpus", "purchase", "years", "utilisation_percent", "watts", "pue", "usd_per_kwh", "rent.usd_per_gpu_hour")
MISSING_COSTS = ("hosting_month", "maintenance_month", "people_month", "installation", "interest_percent")
HEAD = """Rent or buy: shoestring breakeven --own THIS_FILE
Take away the # in front of what you know; gpus, purchase, years, utilisation_percent, watts, pue and usd_per_kwh are
needed, and under [rent] either provider and sku, or usd_per_gpu_hour. What stays out is reported as "not given", never
taken as zero.
Amounts: "120 USD", people's time as "12h@80" (hours at USD an hour), or {low = "100 USD", high = "300 USD", source = "..."}."""


def monthly(v: Mapping[str, Decimal], utilisation: Decimal | None = None) -> dict[str, Decimal]:
    """Dollars of a month by line, in the order of the table. utilisation: a share, in place of the given percentage."""
    share = v["utilisation_percent"] / 100 if utilisation is None else utilisation
    life = v["years"] * 12
    lines = {"depreciation": (v["purchase"] - v.get("resale", Decimal(0))) / life}
    if "installation" in v:
        lines["installation"] = v["installation"] / life
    if "interest_percent" in v:
        lines["interest"] = (v["purchase"] + v.get("resale", Decimal(0))) / 2 * v["interest_percent"] / 100 / 12
    lines["power"] = power(v, share)
    for name in ("hosting", "maintenance", "people"):
        if f"{name}_month" in v:
            lines[name] = v[f"{name}_month"]
    return lines


def power(v: Mapping[str, Decimal], share: Decimal) -> Decimal:
    """Dollars of a month's electricity with this share of hours at work."""
    watts = share * v["watts"] + (1 - share) * v.get("idle_watts", v["watts"])
    return watts / 1000 * v["pue"] * v["usd_per_kwh"] * MONTH_HOURS


def useful_hours(v: Mapping[str, Decimal], utilisation: Decimal | None = None) -> Decimal:
    """GPU-hours of useful work a month."""
    share = v["utilisation_percent"] / 100 if utilisation is None else utilisation
    return v["gpus"] * MONTH_HOURS * share


def rented_usd(v: Mapping[str, Decimal]) -> Decimal:
    """Dollars of a useful rented GPU-hour."""
    return v["rent.usd_per_gpu_hour"] / (v.get("rent.utilisation_percent", Decimal(100)) / 100)


@dataclass(frozen=True)
class Answer:
    """usd_per_gpu_hour: of useful work, owned. month: in which the cash paid for the machine falls below the rent of the same
    work, None where that is not within its life. saving: dollars over its life against renting."""

    usd_per_gpu_hour: Decimal
    month: int | None
    saving: Decimal


def answer(v: Mapping[str, Decimal]) -> Answer:
    with localcontext(prec=28):
        lines = monthly(v)
        hours = useful_hours(v)
        total = sum(lines.values(), Decimal(0))
        owned, rented = cash(v)
        month = next((m for m in range(len(owned)) if all(a <= b for a, b in zip(owned[m:], rented[m:], strict=True))), None)
        return Answer(total / hours, month, (rented_usd(v) * hours - total) * v["years"] * 12)


def cash(v: Mapping[str, Decimal]) -> tuple[list[Decimal], list[Decimal]]:
    """Cumulative dollars by month of the machine's life, owned and rented. Resale comes back with the last month."""
    months = max(1, int(v["years"] * 12))
    running = sum((x for k, x in monthly(v).items() if k not in ("depreciation", "installation")), Decimal(0))
    rent = rented_usd(v) * useful_hours(v)
    begin = v["purchase"] + v.get("installation", Decimal(0))
    owned = [begin + running * m for m in range(months + 1)]
    owned[-1] -= v.get("resale", Decimal(0))
    return owned, [rent * m for m in range(months + 1)]


def least_utilisation(v: Mapping[str, Decimal]) -> Decimal | None:
    """The share of hours from which an owned useful hour is the cheaper one; None: not even at 100%.

    Both sides are linear in the share u: fixed + u * more = rent * gpus * 730 * u.
    """
    with localcontext(prec=28):
        fixed = sum(monthly(v, Decimal(0)).values(), Decimal(0))
        more = power(v, Decimal(1)) - power(v, Decimal(0))
        gain = rented_usd(v) * v["gpus"] * MONTH_HOURS - more
        if gain <= 0 or fixed > gain:
            return None
        return fixed / gain


@dataclass(frozen=True)
class Result:
    values: Mapping[str, Value]
    not_given: tuple[Key, ...]
    lines: Mapping[str, Decimal]
    hours: Decimal
    rented: Decimal
    mid: Answer
    best: Answer
    worst: Answer
    least_utilisation: Decimal | None
    owned_cash: list[Decimal]
    rented_cash: list[Decimal]
    swings: list[Swing[Answer]]

    @property
    def is_lower_bound(self) -> bool:
        return any(k.name in MISSING_COSTS for k in self.not_given)

    @property
    def least_hours(self) -> Decimal | None:
        """Useful GPU-hours a month from which owning is the cheaper way."""
        return None if self.least_utilisation is None else self.least_utilisation * self.values["gpus"].mid * MONTH_HOURS


def compare(values: Mapping[str, Value]) -> Result:
    """Raises KeyError for a needed value that is missing (NEEDED), ValueError for values that contradict one another."""
    for name in NEEDED:
        if name not in values:
            raise KeyError(name)
    v = middle(values)
    if v.get("resale", Decimal(0)) > v["purchase"]:
        raise ValueError("resale is more than purchase")
    if v.get("idle_watts", Decimal(0)) > v["watts"]:
        raise ValueError("idle_watts is more than watts")
    if v["pue"] < 1:
        raise ValueError("pue is below 1: a building cannot use less power than its machines")
    best, worst = corners(values, answer)
    owned, rented = cash(v)
    missing = tuple(k for k in KEYS if k.name not in values and k.kind != "text")
    return Result(
        values, missing, monthly(v), useful_hours(v), rented_usd(v), answer(v), best, worst, least_utilisation(v), owned,
        rented, [s for s in swings(values, KEYS, answer) if s.width],
    )  # fmt: skip


def to_dict(result: Result) -> dict[str, Any]:
    """docs/json/breakeven.md, the part about hardware. Amounts are decimal strings in US dollars."""

    def share(x: Decimal | None) -> str | None:
        return None if x is None else f"{x.quantize(Decimal('0.0001')):f}"

    a = result.mid
    return {
        "assumptions": assumption_rows(result.values, KEY),
        "not_given": not_given_rows(result.not_given),
        "is_lower_bound": result.is_lower_bound,
        "monthly_usd": {k: usd(x) for k, x in result.lines.items()},
        "useful_gpu_hours_a_month": share(result.hours),
        "owned_usd_per_gpu_hour": {
            "low": usd(min(result.best.usd_per_gpu_hour, a.usd_per_gpu_hour)), "mid": usd(a.usd_per_gpu_hour),
            "high": usd(max(result.worst.usd_per_gpu_hour, a.usd_per_gpu_hour)), "basis": "simulated",
        },
        "rented_usd_per_gpu_hour": usd(result.rented),
        "break_even": {
            "month": a.month, "best": result.best.month, "worst": result.worst.month,
            "utilisation": share(result.least_utilisation), "gpu_hours_a_month": share(result.least_hours),
        },
        "saving_usd": usd(a.saving),
        "cash_flow": [
            {"month": m, "owned_usd": usd(o), "rented_usd": usd(r)}
            for m, (o, r) in enumerate(zip(result.owned_cash, result.rented_cash, strict=True))
        ],
        "sensitivity": swing_rows(result.swings),
    }  # fmt: skip
