"""A budget compiled into recipes: three candidates whose plan's high end, with what stopping safely takes, fits under it.

Nothing here knows what a step costs: `plan.make` does. Each candidate is a ladder of sizes, from the least that is worth
running to all that the problems give; the search takes the highest rung that fits. What each number is for stands in the
recipe's comments (compile_text.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal
from typing import Any, Literal

from shoestring import compile_text, plan, recipe, stages
from shoestring.cost.price import Offer
from shoestring.cost.prices import PriceBook
from shoestring.estimate import lengths
from shoestring.estimate.flops import ModelShape
from shoestring.estimate.machine import Profile
from shoestring.records import Problem, UserError

Kind = Literal["distil-sft", "sft-grpo", "lora"]
Method = Literal["full", "lora", "nf4"]
KINDS: tuple[Kind, ...] = ("distil-sft", "sft-grpo", "lora")
LEAST_PROBLEMS = 16  # below that a trained model is noise
RL_LEFT = 0.6  # of the problems at most are learnt from in sft-grpo: the rest is what GRPO draws from
SFT_SHARE = Decimal("0.6")  # of what start and scores leave: what sft-grpo's first half may take
SCORE_SHARE = Decimal("0.2")  # of the budget that the evaluations may take
SCORED = (300, 200, 100, 48, 24, 12)  # questions of a score, the most that this buys
EPOCHS = (2.5, 3.0, 4.0, 5.0)  # once every problem is in; s1 trained five
SAMPLES = (2, 4, 8)
STEPS = (4, 6, 8, 12, 18, 24, 36, 50, 75, 100, 150, 200, 300, 400, 600, 800)
ENOUGH = 600  # problems of SFT from which GRPO is worth its money: 400 taught 135M little, 680 most (docs/LOG.md)
WORTH = 12  # steps of GRPO below which nothing was ever measured
RENTED_FROM = Decimal(2)  # dollars from which a rented GPU is looked at: below, its minutes of start eat the budget
TRIED = 6  # rented machines that are tried, the cheapest first


@dataclass(frozen=True)
class Pool:
    """What the problems hold. tokens: of a worked solution, 95th percentile (0: none is there); families: domains."""

    spec: str
    train: int
    test: int
    families: int
    solved: int
    tokens: int


@dataclass(frozen=True)
class Machine:
    """`offer` None: this machine."""

    offer: Offer | None = None

    @property
    def said(self) -> str:
        if self.offer is None:
            return "this machine"
        f = self.offer.facts
        return f"{f.provider} {f.instance} ({f.gpus} x {f.gpu}), {f.market}, {self.offer.usd_per_hour.normalize():f} USD/hour"


@dataclass(frozen=True)
class Sizes:
    """The numbers of a candidate. scored: questions a score; steps: of GRPO, 0 for none."""

    count: int
    epochs: float = 2.0
    samples: int = 1
    steps: int = 0
    scored: int = SCORED[-1]
    max_new: int = 64
    method: Method = "full"

    @property
    def candidates(self) -> int:
        return self.count + max(1, self.count // 16)


@dataclass(frozen=True)
class Candidate:
    """One way to spend the budget. `plan` is None where it does not fit; `least` is what it would need (None: it cannot run
    at all, and `why_not` says why). reserve: dollars for the last checkpoint, the export and the final evaluation."""

    kind: Kind
    machine: Machine
    sizes: Sizes
    text: str
    plan: plan.Plan | None
    reserve: Decimal
    least: Decimal | None
    why_not: str = ""
    whole: bool = False  # nothing more can be bought with these problems


@dataclass(frozen=True)
class Asked:
    """What is compiled. shape, profile: for tests and for models that are not here."""

    budget: Decimal
    base: str
    pool: Pool
    book: PriceBook
    name: str
    rate: Decimal | None = None
    shape: ModelShape | None = None
    profile: Profile | None = None


def pool_of(spec: str, train: Sequence[Problem], test: Sequence[Problem]) -> Pool:
    solved = sorted(lengths.tokens(p.solution) for p in train if p.solution)
    most = int(solved[int(0.95 * (len(solved) - 1))]) if len(solved) >= len(train) / 2 and solved else 0
    return Pool(spec, len(train), len(test), len({p.domain for p in [*train, *test]}), len(solved), most)


def make(asked: Asked, gpu: str = "") -> list[Candidate]:
    """The three candidates, whether they fit or not. Raises UserError for what no budget would mend."""
    if asked.pool.train < LEAST_PROBLEMS or not asked.pool.test:
        raise UserError(
            f"{asked.pool.spec}: {asked.pool.train} problems to learn from and {asked.pool.test} to score by; "
            f"at least {LEAST_PROBLEMS} and 1 are needed"
        )
    if asked.shape is None:
        plan.shape_of(asked.base)  # an unknown base is told before anything else
    machines = _rented(asked.book, gpu) if gpu else [Machine()]
    out = [_best(asked, kind, machines) for kind in KINDS]
    if not gpu and asked.budget >= RENTED_FROM:
        rented = _best(asked, "lora", _rented(asked.book, ""))
        if rented.plan is not None:
            out[-1] = rented
    return out


def chosen(candidates: Sequence[Candidate]) -> Candidate:
    """The one that is written where the user names none: sft-grpo where enough is left for both of its halves, else the
    first that fits: more examples helped more than reinforcement did. UserError with the least budget that works."""
    fitting = {c.kind: c for c in candidates if c.plan is not None}
    if (both := fitting.get("sft-grpo")) and both.sizes.steps >= WORTH and (both.sizes.count >= ENOUGH or both.whole):
        return both
    for kind in KINDS:
        if kind in fitting:
            return fitting[kind]
    needs = [c for c in candidates if c.least is not None]
    if not needs:
        raise UserError("init: no candidate can run: " + "; ".join(f"{c.kind}: {c.why_not}" for c in candidates))
    least = min(needs, key=lambda c: c.least or Decimal(0))
    raise UserError(
        f"init: the budget is too small: the least that works is {least.least:f} USD ({least.kind}, {least.sizes.count} "
        f"problems, scored on {least.sizes.scored}, on {least.machine.said}); raise --budget, take a smaller base, or measure "
        "this machine with `shoestring doctor` (a plan without measurements is wide)"
    )


def _rented(book: PriceBook, gpu: str) -> list[Machine]:
    """Machines with one GPU first, the cheapest GPU-hour first, one a kind. UserError for a GPU that nobody rents out."""
    found: dict[str, Machine] = {}
    offers = book.offers(gpu=gpu, market="on-demand")
    for o in sorted(offers, key=lambda o: (o.facts.gpus != 1, o.usd_per_hour)):
        if o.facts.gpus and _trains(o.facts.gpu):
            found.setdefault(f"{o.facts.gpu}/{o.facts.gpus}", Machine(o))
    if gpu and not found:
        raise UserError(f'init: no on-demand price is known for a GPU "{gpu}" with bf16; see `shoestring prices`')
    return list(found.values())[:TRIED]


def _trains(name: str) -> bool:
    """Whether the planner knows the card and it computes in bf16, which the trainer does."""
    from shoestring.estimate import gpus

    try:
        return gpus.gpu(name).has_bf16
    except UserError:
        return False


def _best(asked: Asked, kind: Kind, machines: Sequence[Machine]) -> Candidate:
    """On the first machine that takes the model and fits the budget; else the one that needs least."""
    tried = []
    for machine in machines:
        try:
            made = _search(asked, kind, machine)
        except UserError as e:  # a card that the planner does not know, a price that is ambiguous
            made = Candidate(kind, machine, Sizes(0), "", None, Decimal(0), None, str(e))
        if made.plan is not None:
            return made
        tried.append(made)
    if not tried:
        return Candidate(kind, Machine(), Sizes(0), "", None, Decimal(0), None, "no machine is known for it")
    return min(tried, key=lambda c: (c.least is None, c.least or Decimal(0)))


def _search(asked: Asked, kind: Kind, machine: Machine) -> Candidate:
    pool = asked.pool
    max_new = max(32, -(-int(1.3 * pool.tokens) // 16) * 16) if pool.tokens else 256
    cap = int(pool.train * (RL_LEFT if kind == "sft-grpo" else 1.0))
    base = Sizes(min(LEAST_PROBLEMS, cap), max_new=max_new, steps=STEPS[0] if kind == "sft-grpo" else 0)

    known: dict[Sizes, plan.Plan] = {}

    def planned(sizes: Sizes) -> plan.Plan:
        if sizes in known:
            return known[sizes]
        text = compile_text.recipe(asked, kind, machine, sizes)
        made = recipe.loads(text, stages.configs(), origin=f"{asked.name}.toml")
        sku = asked.book.machine_sku(made.machine, made.rate)
        known[sizes] = plan.make(made, asked.book, sku, asked.shape, asked.profile)
        return known[sizes]

    methods: tuple[Method, ...] = ("lora", "nf4") if kind == "lora" else ("full", "lora", "nf4")
    for method in methods:
        base = replace(base, method=method)
        least = planned(base)
        if not _too_big(least):
            break
    else:
        why = f"the model does not fit into the memory of {machine.said}"
        return Candidate(kind, machine, base, "", None, Decimal(0), None, why)
    if needs(least) > asked.budget:
        return Candidate(kind, machine, base, "", None, reserve(least), _up(needs(least)), "the budget is too small")

    def fits(sizes: Sizes, budget: Decimal) -> bool:
        made = planned(sizes)
        return needs(made) <= budget and not _too_big(made)

    for scored in sorted({min(n, pool.test) for n in SCORED}, reverse=True):
        tried = planned(replace(base, scored=scored))
        if _high(tried, "evaluate") <= SCORE_SHARE * asked.budget and needs(tried) <= asked.budget:
            base = replace(base, scored=scored)
            break
    rungs = _ladder(base, cap)

    def halved(sizes: Sizes) -> bool:
        """Whether traces and SFT take at most their share of what start, scores and the end leave."""
        made = planned(sizes)
        learning, rl = _high(made, "curate", "distill", "sft"), _high(made, "grpo")
        rest = asked.budget - (needs(made) - learning - rl)
        return learning <= SFT_SHARE * rest and needs(made) <= asked.budget and not _too_big(made)

    at = _highest(rungs, halved if kind == "sft-grpo" else lambda s: fits(s, asked.budget))
    sizes = rungs[at]
    whole = at == len(rungs) - 1
    if kind == "sft-grpo":
        longer = [replace(sizes, steps=n) for n in STEPS]
        at = _highest(longer, lambda s: fits(s, asked.budget))
        sizes, whole = longer[at], whole and at == len(longer) - 1
    made = planned(sizes)
    text = compile_text.recipe(asked, kind, machine, sizes, made, reserve(made))
    return Candidate(kind, machine, sizes, text, made, reserve(made), _up(needs(least)), whole=whole)


def _ladder(base: Sizes, cap: int) -> list[Sizes]:
    """More problems first, then more passes over them, then more attempts a problem."""
    counts, n = [base.count], float(base.count)
    while n < cap:
        n = min(n * 1.2, cap)
        if int(n) > counts[-1]:
            counts.append(int(n))
    out = [replace(base, count=c) for c in counts]
    out += [replace(out[-1], epochs=e) for e in EPOCHS]
    return out + [replace(out[-1], samples=s) for s in SAMPLES]


def _highest(rungs: Sequence[Sizes], fits: Callable[[Sizes], bool]) -> int:
    """The index of the highest rung that fits, the first being known to; costs grow with the rungs."""
    low, high = 0, len(rungs)
    while high - low > 1:
        half = (low + high) // 2
        low, high = (half, high) if fits(rungs[half]) else (low, half)
    return low


def _too_big(made: plan.Plan) -> bool:
    return any(s.forecast.fits is False for s in made.stages)


def reserve(made: plan.Plan) -> Decimal:
    """Dollars for the last checkpoint, the export and the final evaluation at its high end."""
    return Decimal(repr(made.safe_stop_seconds())) * made.usd_per_second


def _high(made: plan.Plan, *uses: str) -> Decimal:
    return sum((Decimal(repr(s.usd.high)) for s in made.stages if s.use in uses), Decimal(0))


def needs(made: plan.Plan) -> Decimal:
    """The plan's high end, and what stopping safely takes beside the final evaluation that is in it."""
    last = made.final_evaluation()
    inside = Decimal(repr(last.usd.high)) if last is not None else Decimal(0)
    return Decimal(repr(made.total_usd().high)) + max(Decimal(0), reserve(made) - inside)


def _up(x: Decimal) -> Decimal:
    """Up to three significant digits: a budget to type."""
    step = Decimal(1).scaleb(x.adjusted() - 2)
    return ((x / step).to_integral_value(ROUND_CEILING) * step).normalize()


def to_dict(c: Candidate, recommended: bool) -> dict[str, Any]:
    """One candidate of docs/json/init.md."""
    made = c.plan

    def quantity(q: Any) -> dict[str, Any]:
        return {"low": q.low, "mid": q.mid, "high": q.high, "basis": q.basis}

    return {
        "name": c.kind, "what": compile_text.TITLES[c.kind], "fits": made is not None, "recommended": recommended,
        "why_not": c.why_not, "machine": c.machine.said, "least_usd": None if c.least is None else f"{c.least:f}",
        "usd": quantity(made.total_usd()) if made else None,
        "reserve_usd": f"{c.reserve.quantize(Decimal('0.000001')):f}" if made else None,
        "left_over_usd": f"{(made.recipe.budget - needs(made)).quantize(Decimal('0.000001')):f}" if made else None,
        "takes_everything": c.whole,
        "sizes": {
            "problems": c.sizes.count, "candidates": c.sizes.candidates, "samples": c.sizes.samples, "epochs": c.sizes.epochs,
            "grpo_steps": c.sizes.steps, "max_new": c.sizes.max_new, "scored": c.sizes.scored, "method": c.sizes.method,
        } if made else None,
        "stages": [
            {"use": s.use, "name": s.name, "usd": quantity(s.usd), "minutes": quantity(s.seconds.scaled(1 / 60))}
            for s in made.stages
        ] if made else [],
        "learns_first": [{"text": t, "basis": b, "source": s} for t, b, s in compile_text.LEARNS[c.kind]],
        "recipe": c.text if made else None,
    }  # fmt: skip
