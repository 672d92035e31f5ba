"""A candidate's recipe as commented TOML: why each number is what it is. And what each way learns first, with the source."""

from __future__ import annotations

import json
from decimal import Decimal
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
    pool, spec = asked.pool, json.dumps(asked.pool.spec, ensure_ascii=False)
    parameters = plan.shape.parameters() if plan else asked.shape.parameters() if asked.shape else _parameters(asked.base)
    shots = 2 if pool.solved else 0
    families = max(1, pool.families)
    each = max(1, min(-(-sizes.scored // families), -(-pool.test // families)))
    # a micro-batch holds the longest trace expected beside its prompt
    rows = max(2048, -(-(sizes.max_new + 512) // 512) * 512)
    lora = sizes.method != "full"
    out = [f"# {TITLES[kind]}.", f"# Compiled from a budget of {asked.budget:f} USD by `shoestring init`; on {machine.said}."]
    if plan is not None:
        total = plan.total_usd()
        out += [
            f"# Planned: {_usd(total.mid)} ({_usd(total.low)} to {_usd(total.high)}, {_said(total.basis)}), "
            f"of which {_usd(float(reserve))} is kept until the end",
            "# for the last checkpoint, the export and the final score. Then: shoestring plan FILE, shoestring run FILE.",
        ]
    ceiling = f'budget = "{asked.budget:f} USD"'
    out += ["", f'name = "{asked.name}"', f"{ceiling.ljust(42)} # a hard ceiling; the plan's high end is under it"]
    if machine.offer is None:
        out.append('machine = "this"')
        if asked.rate is not None:
            out.append(f'rate = "{asked.rate:f} USD/hour"')
    else:
        f = machine.offer.facts
        place = f.region + (f"/{f.zone}" if f.zone else "")
        region = f', region = "{place}"' if place else ""
        out.append(f'machine = {{ provider = "{f.provider}", sku = "{f.instance}"{region}, market = "{f.market}" }}')
    out += [f"base = {json.dumps(asked.base, ensure_ascii=False)}", "seed = 0"]

    def stage(use: str, name: str, why: str, *lines: tuple[str, str]) -> None:
        cost = ""
        if plan is not None:
            usd = plan.stage(name).usd
            cost = f" Planned: {_usd(usd.mid)} ({_usd(usd.low)} to {_usd(usd.high)})."
        out.extend(["", f"# {why}{cost}", "[[stage]]", f'use = "{use}"'])
        if name != use:
            out.append(f'name = "{name}"')
        out.extend(f"{line.ljust(42)} # {note}" if note and plan is not None else line for line, note in lines)

    half = 196 * (0.25 / max(1, min(pool.test, each * families))) ** 0.5
    asked_of = min(pool.test, each * families)
    scored = (
        f"per_family = {each}",
        f"{asked_of} of {pool.test} test problems: known to {half:.0f} points; scores may take a fifth of the money",
    )
    longest = f"max_new = {sizes.max_new}"
    why_long = (
        f"tokens of an answer: 95 of 100 worked solutions have at most {pool.tokens}" if pool.tokens
        else "tokens of an answer: no worked solutions to measure by"
    )  # fmt: skip
    stage("evaluate", "score-base", "The base model's score: without it no gain is known.",
          (f"sources = [{spec}]", ""), scored,
          (f"shots = {shots}", "worked examples: the better of both askings counts" if shots else "there are none"),
          (longest, why_long))  # fmt: skip
    stage("curate", "curate", "Problems that the base gets wrong and that no test problem resembles.",
          (f"sources = [{spec}]", ""), (f"against = [{spec}]", "test problems must stay unseen"),
          (f"count = {sizes.count}", f"of {pool.train}: " + _why_count(kind, sizes, pool.train)),
          (f"candidates = {sizes.candidates}", "a pass rate is measured for a few more than are kept"),
          (f"samples = {sizes.samples}", "answers a problem; right ones become traces without being paid twice"),
          (f"shots = {shots}", ""), (longest, ""))  # fmt: skip
    worked = " and the worked solutions." if pool.solved else "; the problems have no worked solutions."
    stage("distill", "distill", "The base's own right answers" + worked,
          (f"samples = {sizes.samples}", "those of curate"), (longest, ""))  # fmt: skip
    adapter = [("lora = 16", "adapters of rank 16 train, the weights stay (TRL's default rank)")] if lora else []
    if sizes.method == "nf4":
        adapter.append(('quantise = "nf4"', "the weights in 4 bits meanwhile: else they do not fit into the memory"))
    why_rate = "3e-4 at 135M (measured), 1e-5 at 32B (s1), a power between" + ("; ten times for adapters" if lora else "")
    stage("sft", "sft", "Learn the traces.",
          (f"epochs = {sizes.epochs:g}", "passes; up to 5 (s1) once every problem is in"), ("batch = 32", ""),
          (f"lr = {rate(parameters, lora):g}", why_rate),
          (f"rows = {rows}", "tokens a micro-batch"), *adapter)  # fmt: skip
    if kind == "sft-grpo":
        stage("evaluate", "score-sft", "What SFT gave; skipped when the money is short.",
              (f"sources = [{spec}]", ""), scored, (longest, ""), ("heldout = false", ""))  # fmt: skip
        stage("grpo", "grpo", "Reinforcement on problems that SFT has not seen, with what is left of the money.",
              (f"steps = {sizes.steps}", "as many as fit after SFT's three fifths: distil first (DeepSeek-R1)"),
              (f"prompts = {PROMPTS}", ""),
              (f"group = {GROUP}", "many answers a problem: rare right ones are what there is to learn from"),
              (f"lr = {8e-6 if parameters < SMALL else 1e-6:g}", "8e-6 measured at 135M; TRL's 1e-6 above 500M"),
              ('scale = "none"', "dr_grpo: 61% against 39 to 57% with the deviation (measured, docs/LOG.md)"),
              (longest, ""), (f"rows = {rows}", ""), *adapter)  # fmt: skip
    stage("evaluate", "score-last", "The final score; the money for it is kept from the start.",
          (f"sources = [{spec}]", ""), scored, (longest, ""))  # fmt: skip
    if plan is None:
        out = [line for line in out if not line.startswith("#")]
    return "\n".join(out) + "\n"


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
