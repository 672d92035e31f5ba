"""A candidate's recipe as commented TOML: why each number is what it is. And what each way learns first, with the source."""

from __future__ import annotations

import json
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from shoestring.compile import Asked, Kind, Machine, Sizes
    from shoestring.plan import Plan

Basis = Literal["measured", "simulated", "literature"]
SMALL = 5e8  # weights below which the rates measured on 135M hold
GROUP, PROMPTS = 12, 8

TITLES = {
    "distil-sft": "distil, then fine-tune: all the money into verified traces",
    "sft-grpo": "fine-tune, then reinforce: three fifths of what can be spent into traces, the rest into GRPO",
    "lora": "distil, then train adapters (LoRA): the weights stay, the largest model for the memory",
}
LEARNS: dict[str, list[tuple[str, Basis, str]]] = {
    "distil-sft": [
        ("the form of an answer, then the steps of the worked solutions: strict accuracy of a 135M model rose from 0% to 61% "
         "(its answers read kindly: 21%) in 680 problems and 2.5 epochs", "measured", "the quickstart on 2 cores, seed 0"),
        ("more distinct worked examples help more than anything else tried: 400 traces at a rate of 1e-4 left the score where "
         "it was (26%), 960 at 3e-4 took it from 22% to 60%", "measured", "docs/LOG.md, tried and dropped"),
        ("distil first: Qwen-32B reached 72.6 on AIME 2024 by distillation, 47.0 by reinforcement learning alone", "literature",
         "DeepSeek-R1 (Guo et al. 2025), table 6"),
        ("families that are not trained are forgotten: 19% to 7%", "measured", "the quickstart on 2 cores, seed 0"),
    ],
    "sft-grpo": [
        ("as distil-sft on fewer problems, then fewer slips in what it can already do: GRPO added 1.3, 5.3 and 1.3 points to "
         "SFT in three seeds of 18 steps", "measured", "the quickstart on 2 cores, docs/LOG.md"),
        ("nothing where every answer of a group scores alike: problems out of reach of SFT stay so", "literature",
         "DAPO (Yu et al. 2025), section 3.2"),
        ("it can harm: in groups of 8, over their deviation and with a rate of 5e-5, the score fell from 57% to 39%",
         "measured", "docs/LOG.md"),
    ],
    "lora": [
        ("the form of an answer, as full training does; less of new knowledge, and less is forgotten", "literature",
         "LoRA Learns Less and Forgets Less (Biderman et al. 2024)"),
        ("in memory: 18 bytes a weight of full training become 2, or about 0.5 in NF4, beside the adapter's own", "literature",
         "LoRA (Hu et al. 2021), QLoRA (Dettmers et al. 2023)"),
    ],
}  # fmt: skip


def rate(parameters: int, lora: bool) -> float:
    """SFT's peak learning rate: a power of the size through two points, 3e-4 at 135M (measured: docs/LOG.md) and 1e-5 at 32.5B
    (s1, Muennighoff et al. 2025, section 4); ten times that for adapters, at most 1e-3 (Biderman et al. 2024)."""
    full = min(3e-4, 3e-4 * (135e6 / max(parameters, 1)) ** 0.62)
    return float(f"{min(1e-3, 10 * full) if lora else full:.2g}")


def recipe(
    asked: Asked, kind: Kind, machine: Machine, sizes: Sizes, plan: Plan | None = None, reserve: Decimal = Decimal(0)
) -> str:
    """The recipe as text. With `plan` it is commented, with the dollars of each stage; without, bare (it is read ten times as
    often as it is written, and reading comments takes most of that time)."""
    w = _Writer(asked, kind, machine, sizes, plan)
    out = [*w.head(reserve), *w.top(), *w.score_base(), *w.curate(), *w.distill(), *w.sft()]
    if kind == "sft-grpo":
        out += [*w.score_between(), *w.grpo()]
    out += w.score_last()
    if plan is None:
        out = [line for line in out if not line.startswith("#")]
    return "\n".join(out) + "\n"


class _Writer:
    """The parts of one candidate's recipe, in lines."""

    def __init__(self, asked: Asked, kind: Kind, machine: Machine, sizes: Sizes, plan: Plan | None) -> None:
        self.asked, self.machine, self.sizes, self.plan = asked, machine, sizes, plan
        self.kind: Kind = kind
        self.lora = sizes.method != "full"
        self.sources = f"sources = [{json.dumps(asked.pool.spec, ensure_ascii=False)}]", ""
        # a micro-batch holds the longest trace expected beside its prompt
        self.rows = max(2048, -(-(sizes.max_new + 512) // 512) * 512)
        self.longest = f"max_new = {sizes.max_new}"

    @cached_property
    def parameters(self) -> int:
        if self.plan:
            return self.plan.shape.parameters()
        return self.asked.shape.parameters() if self.asked.shape else _parameters(self.asked.base)

    @property
    def shots(self) -> int:
        return 2 if self.asked.pool.solved else 0

    @property
    def adapter(self) -> list[tuple[str, str]]:
        out = [("lora = 16", "adapters of rank 16 train, the weights stay (TRL's default rank)")] if self.lora else []
        if self.sizes.method == "nf4":
            out.append(('quantise = "nf4"', "the weights in 4 bits meanwhile: else they do not fit into the memory"))
        return out

    @property
    def scored(self) -> tuple[str, str]:
        """How many problems a score asks, with what that leaves unknown (two standard errors, half the answers right)."""
        test, families = self.asked.pool.test, max(1, self.asked.pool.families)
        each = max(1, min(-(-self.sizes.scored // families), -(-test // families)))
        asked_of = min(test, each * families)
        half = 196 * (0.25 / max(1, asked_of)) ** 0.5
        note = f"{asked_of} of {test} test problems: known to {half:.0f} points; scores may take a fifth of the money"
        return f"per_family = {each}", note

    def head(self, reserve: Decimal) -> list[str]:
        out = [
            f"# {TITLES[self.kind]}.",
            f"# Compiled from a budget of {self.asked.budget:f} USD by `shoestring init`; on {self.machine.said}.",
        ]
        if self.plan is not None:
            total = self.plan.total_usd()
            out += [
                f"# Planned: {_usd(total.mid)} ({_usd(total.low)} to {_usd(total.high)}, {_said(total.basis)}), "
                f"of which {_usd(float(reserve))} is kept until the end",
                "# for the last checkpoint, the export and the final score. Then: shoestring plan FILE, shoestring run FILE.",
            ]
        return out

    def top(self) -> list[str]:
        """The recipe's own keys: name, budget, machine, base, seed."""
        asked, ceiling = self.asked, f'budget = "{self.asked.budget:f} USD"'
        out = ["", f'name = "{asked.name}"', f"{ceiling.ljust(42)} # a hard ceiling; the plan's high end is under it"]
        if self.machine.offer is None:
            out.append('machine = "this"')
            if asked.rate is not None:
                out.append(f'rate = "{asked.rate:f} USD/hour"')
        else:
            f = self.machine.offer.facts
            place = f.region + (f"/{f.zone}" if f.zone else "")
            region = f', region = "{place}"' if place else ""
            out.append(f'machine = {{ provider = "{f.provider}", sku = "{f.instance}"{region}, market = "{f.market}" }}')
        return [*out, f"base = {json.dumps(asked.base, ensure_ascii=False)}", "seed = 0"]

    def stage(self, use: str, name: str, why: str, *lines: tuple[str, str]) -> list[str]:
        """lines: (key = value, why it is so)."""
        cost = ""
        if self.plan is not None:
            usd = self.plan.stage(name).usd
            cost = f" Planned: {_usd(usd.mid)} ({_usd(usd.low)} to {_usd(usd.high)})."
        out = ["", f"# {why}{cost}", "[[stage]]", f'use = "{use}"']
        if name != use:
            out.append(f'name = "{name}"')
        return out + [f"{line.ljust(42)} # {note}" if note and self.plan is not None else line for line, note in lines]

    def score_base(self) -> list[str]:
        tokens = self.asked.pool.tokens
        why_long = (
            f"tokens of an answer: 95 of 100 worked solutions have at most {tokens}" if tokens
            else "tokens of an answer: no worked solutions to measure by"
        )  # fmt: skip
        why_shots = "worked examples: the better of both askings counts" if self.shots else "there are none"
        return self.stage(
            "evaluate", "score-base", "The base model's score: without it no gain is known.",
            self.sources, self.scored, (f"shots = {self.shots}", why_shots), (self.longest, why_long),
        )  # fmt: skip

    def curate(self) -> list[str]:
        pool, sizes = self.asked.pool, self.sizes
        against = f"against = [{json.dumps(pool.spec, ensure_ascii=False)}]"
        return self.stage(
            "curate", "curate", "Problems that the base gets wrong and that no test problem resembles.",
            self.sources, (against, "test problems must stay unseen"),
            (f"count = {sizes.count}", f"of {pool.train}: " + _why_count(self.kind, sizes, pool.train)),
            (f"candidates = {sizes.candidates}", "a pass rate is measured for a few more than are kept"),
            (f"samples = {sizes.samples}", "answers a problem; right ones become traces without being paid twice"),
            (f"shots = {self.shots}", ""), (self.longest, ""),
        )  # fmt: skip

    def distill(self) -> list[str]:
        worked = " and the worked solutions." if self.asked.pool.solved else "; the problems have no worked solutions."
        return self.stage("distill", "distill", "The base's own right answers" + worked,
                          (f"samples = {self.sizes.samples}", "those of curate"), (self.longest, ""))  # fmt: skip

    def sft(self) -> list[str]:
        more = "; ten times for adapters" if self.lora else ""
        return self.stage(
            "sft", "sft", "Learn the traces.",
            (f"epochs = {self.sizes.epochs:g}", "passes; up to 5 (s1) once every problem is in"), ("batch = 32", ""),
            (f"lr = {rate(self.parameters, self.lora):g}", f"3e-4 at 135M (measured), 1e-5 at 32B (s1), a power between{more}"),
            (f"rows = {self.rows}", "tokens a micro-batch"), *self.adapter,
        )  # fmt: skip

    def score_between(self) -> list[str]:
        return self.stage("evaluate", "score-sft", "What SFT gave; skipped when the money is short.",
                          self.sources, self.scored, (self.longest, ""), ("heldout = false", ""))  # fmt: skip

    def grpo(self) -> list[str]:
        return self.stage(
            "grpo", "grpo", "Reinforcement on problems that SFT has not seen, with what is left of the money.",
            (f"steps = {self.sizes.steps}", "as many as fit after SFT's three fifths: distil first (DeepSeek-R1)"),
            (f"prompts = {PROMPTS}", ""),
            (f"group = {GROUP}", "many answers a problem: rare right ones are what there is to learn from"),
            (f"lr = {8e-6 if self.parameters < SMALL else 1e-6:g}", "8e-6 measured at 135M; TRL's 1e-6 above 500M"),
            ('scale = "none"', "dr_grpo: 61% against 39 to 57% with the deviation (measured, docs/LOG.md)"),
            (self.longest, ""), (f"rows = {self.rows}", ""), *self.adapter,
        )  # fmt: skip

    def score_last(self) -> list[str]:
        return self.stage("evaluate", "score-last", "The final score; the money for it is kept from the start.",
                          self.sources, self.scored, (self.longest, ""))  # fmt: skip


def _why_count(kind: Kind, sizes: Sizes, train: int) -> str:
    if kind == "sft-grpo":
        return "as many as three fifths of the money teach; others are left for GRPO"
    return "all of them" if sizes.count >= train else "as many as the money teaches"


def _parameters(base: str) -> int:
    from shoestring.plan import shape_of

    return shape_of(base).parameters()


def _said(basis: str) -> str:
    return {"measured": "measured", "simulated": "simulated"}.get(basis, "from literature")


def _usd(x: float) -> str:
    return f"${x:.2f}" if x >= 1 else f"${x:.2g}" if x >= 0.0001 else f"${x:.6f}"
