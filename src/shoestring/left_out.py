"""What a plan's dollars do not hold, in words and, where a price exists, in dollars.

The cost of a "$50 model" is the last step's. The steps before it were paid too: by those who trained the base, who asked a
teacher for 59,029 traces, who tried every question twice, graded, failed and tried again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shoestring.cost.prices import PriceBook
from shoestring.plan import Plan
from shoestring.records import Quantity, UserError

# s1 (Muennighoff et al. 2025, arXiv 2501.19393), section 2 and appendices: questions collected and sent to the teacher,
# questions left for the two difficulty passes, the long run over everything that its ablation took (H100-hours)
COLLECTED, TRIED, ABLATION_HOURS = 59_029, 51_581, 394.0
THINKING = 3_600  # tokens of thinking a trace over all of them, on average (the same)
GRADED = 1_200  # tokens of question, answer and attempt that a judge reads a grading; an assumption
KEPT = 1_000  # of which these were trained on
BASES = {  # tokens that the base was trained on, by the family's own report
    "smollm2135m": 2e12, "smollm2360m": 4e12, "smollm21.7b": 11e12, "qwen25": 18e12, "qwen3": 36e12, "llama32": 9e12,
    "llama3": 15e12,
}  # fmt: skip
MFU = (0.55, 0.4, 0.25)  # that a base model's training reaches
CARD = "H100"
DIFFICULTY = ((7.6e9, 500.0), (32.8e9, 500.0))  # the two models that tried every question, tokens an answer (assumed)


@dataclass(frozen=True)
class LeftOut:
    """usd: None where no price exists."""

    what: str
    usd: Quantity | None = None
    note: str = ""

    def text(self) -> str:
        if self.usd is None:
            return self.what
        from shoestring.plan_json import usd

        q = self.usd
        return f"{self.what}: {usd(q.low)} to {usd(q.high)} ({q.basis}{'; ' + self.note if self.note else ''})"

    def to_dict(self) -> dict[str, Any]:
        from shoestring.plan_json import quantity

        return {"what": self.what, "usd": quantity(self.usd) if self.usd else None, "note": self.note}


def of(plan: Plan, book: PriceBook) -> list[LeftOut]:
    """The list for this recipe, the largest sums first as they usually are."""
    found = [_base(plan, book)]
    if given := _given_traces(plan):
        found += _traces(plan, book, given)
    found += [
        LeftOut("the people: choosing problems, reading the report"),
        LeftOut("earlier and abandoned runs"),
        LeftOut("the machine's set-up: installing the packages"),
        LeftOut("storage of the results after the run"),
    ]
    return found


def _given_traces(plan: Plan) -> int:
    """Traces that the recipe trains on and that nothing in it makes."""
    makes = any(t.use == "distill" for t in plan.recipe.stages)
    given = [s.forecast.traces or 0 for s in plan.stages if s.use == "data"]
    return 0 if makes or not any(t.use == "sft" for t in plan.recipe.stages) else sum(given)


def _hourly(book: PriceBook) -> tuple[float, float, float] | None:
    """Dollars of an H100-hour: cheapest, middle and dearest offer on demand."""
    found = sorted(float(o.usd_per_gpu_hour) for o in book.offers(gpu=CARD, market="on-demand") if o.usd_per_gpu_hour)
    return (found[0], found[len(found) // 2], found[-1]) if found else None


def _hours(flops: float, book: PriceBook) -> Quantity | None:
    """Dollars of so many FLOPs of training on H100s."""
    from shoestring.estimate.gpus import gpu

    prices = _hourly(book)
    if prices is None:
        return None
    peak = gpu(CARD).bf16_flops
    low, mid, high = (flops / (peak * m) / 3600 * p for m, p in zip(MFU, prices, strict=True))
    return Quantity(low, mid, high, "literature")


def _base(plan: Plan, book: PriceBook) -> LeftOut:
    name = "".join(c for c in plan.recipe.base.lower() if c.isalnum() or c == ".")
    name = name.replace("qwen2.5", "qwen25").replace("llama3.2", "llama32")
    tokens = next((n for key, n in BASES.items() if key in name), None)
    what = "pre-training of the base model"
    if tokens is None:
        return LeftOut(what)
    usd = _hours(6.0 * plan.shape.active_parameters() * tokens, book)
    return LeftOut(f"{what} on {tokens / 1e12:g} trillion tokens", usd, f"at an MFU of 25% to 55% on {CARD}s")


def _teacher(book: PriceBook, tokens: float) -> Quantity | None:
    """Dollars of so many output tokens at the listed prices of reasoning teachers, cheapest to dearest."""
    words = ("gemini-2.0-flash", "gemini-2.5-flash", "deepseek-reasoner", "deepseek-r1", "gemini-2.5-pro", "o3-mini")
    prices = []
    for sku in book:
        if sku.startswith("teacher:") and sku.endswith("/out") and any(f"/{w}/" in sku for w in words):
            try:
                prices.append(float(book.price(sku).amount))
            except UserError:
                continue
    prices.sort()
    if not prices:
        return None
    return Quantity(prices[0] * tokens, prices[len(prices) // 2] * tokens, prices[-1] * tokens, "literature")


def _judge(book: PriceBook, tokens: float) -> Quantity | None:
    prices = sorted(
        float(book.price(sku).amount)
        for sku in book
        if sku.startswith("teacher:") and sku.endswith("/in") and "claude" in sku and "sonnet" in sku and "@" not in sku
    )
    if not prices:
        return None
    return Quantity(prices[0] * tokens, prices[len(prices) // 2] * tokens, prices[-1] * tokens, "literature")


def _like_s1(plan: Plan) -> bool:
    text = f"{plan.recipe.name} {' '.join(str(getattr(t.config, 'dataset', '')) for t in plan.recipe.stages)}".lower()
    return "s1k" in text or "s1-" in text


def _traces(plan: Plan, book: PriceBook, given: int) -> list[LeftOut]:
    """The teacher's tokens of the traces that are trained on; for s1's set, all that it took to choose them."""
    sft = next(s for s in plan.stages if s.use == "sft")
    if not _like_s1(plan):
        tokens = given * sft.facts.sizes.trace()
        what = f"making the {given:,} traces that it trains on"
        return [LeftOut(what, _teacher(book, tokens), "output tokens of a teacher")]
    prices = _hourly(book)
    out = [
        LeftOut(
            f"{COLLECTED:,} traces of a teacher, of which {KEPT:,} are trained on", _teacher(book, COLLECTED * THINKING),
            f"{THINKING:,} tokens each, listed prices of reasoning teachers",
        )
    ]  # fmt: skip
    flops = sum(2.0 * n * TRIED * t for n, t in DIFFICULTY)
    passes = _hours(flops, book)
    if passes is not None:  # answering reaches a tenth of training's share of the peak, or less
        passes = Quantity(passes.low * 2, passes.mid * 5, passes.high * 15, "literature")
    what = f"two difficulty passes: a 7B and a 32B model try {TRIED:,} questions"
    out.append(LeftOut(what, passes, "500 tokens an answer assumed"))
    judged = _judge(book, 2 * TRIED * GRADED)
    out.append(LeftOut(f"grading {2 * TRIED:,} attempts with a judge", judged, f"{GRADED:,} tokens each assumed"))
    ablations = None
    if prices:
        low, mid, high = prices
        ablations = Quantity(ABLATION_HOURS * low, ABLATION_HOURS * mid, 2 * ABLATION_HOURS * high, "literature")
    out.append(LeftOut("failed and compared runs; the one over all traces took 394 H100-hours", ablations))
    return out
