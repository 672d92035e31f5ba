"""Whether a stage that trains is still worth its money: a fixed held-out probe, answered at intervals (train/stopping.py).

The probe's problems come from the pool that no earlier stage trained on, the same ones in every stage and for every seed;
`sft` never sees them and `grpo` leaves them out of its draws. The answers are journalled: a resumed stage does not ask twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shoestring.records import Problem, StepReport, UserError
from shoestring.stages.context import Context, Events, Journal, Pace, read_lines
from shoestring.stages.prompts import QUESTION, Ask, plain

if TYPE_CHECKING:
    from collections.abc import Generator

    from shoestring.models.tokenizer import Tokenizer
    from shoestring.stages.trainer import Trainer
    from shoestring.train.stopping import Evaluation

PROBLEMS = 96  # of the probe, evenly over families
LOOKS = 6  # intervals that a stage is cut into
MAX_NEW = 48  # tokens an answer, where the stage has no bound of its own
SLOTS = 48

Said = Literal["go", "stop", "enough"]


def held_out(inputs: Mapping[str, Path], stage: str, count: int = PROBLEMS) -> list[Problem]:
    """The probe: up to `count` problems of the pool that were not chosen to train on. UserError where there are none."""
    from shoestring.stages.prompts import from_row

    if "pool" not in inputs:
        raise UserError(f"stage {stage!r}: worth needs problems that are not trained on; put a curate stage before it")
    chosen = {r["id"] for r in read_lines(inputs["problems"])} if "problems" in inputs else set()
    by: dict[str, list[Problem]] = {}
    for row in read_lines(inputs["pool"]):
        if row["id"] not in chosen:
            by.setdefault(row["domain"], []).append(from_row(row))
    each = -(-count // max(1, len(by)))
    # a third of a small pool at most: the rest is there to learn from
    picked = [p for ps in by.values() for p in sorted(ps, key=lambda p: p.id)[: min(each, max(1, len(ps) // 3))]]
    if len(picked) < 2:
        raise UserError(f"stage {stage!r}: no problems are left to probe with for worth; curate fewer")
    return picked


def without(pool: Mapping[str, list[Problem]], probe: Probe | None) -> dict[str, list[Problem]]:
    """The pool less the probe's problems."""
    if probe is None:
        return dict(pool)
    held = {p.id for p in probe.problems}
    left = {family: [p for p in ps if p.id not in held] for family, ps in pool.items()}
    return {family: ps for family, ps in left.items() if ps}


def of(context: Context, inputs: Mapping[str, Path], total: int, max_new: int = MAX_NEW, ask: Ask = QUESTION) -> Probe | None:
    """The stage's probe; None where the recipe does not say what a point is worth."""
    return None if context.worth is None else Probe(context, held_out(inputs, context.stage), total, max_new, ask)


def before_step(
    context: Context, trainer: Trainer, tokenizer: Tokenizer, probe: Probe | None, pace: Pace,
    closing: Callable[[], object] = lambda: None,
) -> Generator[Any, Any, Said]:  # fmt: skip
    """What every stage that trains does ahead of a step: the probe, if it is time, and the step's intent.

    "go": train. "enough": training has stopped paying, finish. "stop": the money is out; `closing` was called and the last
    checkpoint is on disk, so the stage only returns.
    """
    said: Said = "go" if probe is None else (yield from probe.look(trainer, tokenizer))
    if said == "go" and (yield context.intent(trainer.step + 1, pace.upper())) == "stop":
        said = "stop"
    if said == "stop":
        closing()
        yield trainer.stop()
    return said


class Probe:
    """`look` at the start of a stage and at every interval of its `total` steps."""

    def __init__(self, context: Context, problems: list[Problem], total: int, max_new: int, ask: Ask) -> None:
        assert context.worth is not None
        self.context, self.problems, self.total, self.max_new, self.ask = context, problems, total, max_new, ask
        self.worth = context.worth
        self.every = max(1, -(-total // LOOKS))
        self.journal = Journal(context.folder / "probe.jsonl")
        self.pace = context.first(45.0)

    def look(self, trainer: Trainer, tokenizer: Tokenizer) -> Generator[Any, Any, Said]:
        """Evaluate, if it is time: "enough" where training has stopped paying, "stop" where the money is out."""
        step = trainer.step
        if step % self.every:
            return "go"
        if str(step) not in self.journal.chunks:
            if (yield self.context.intent(step + 1, self.pace.upper(), "probe")) == "stop":
                return "stop"
            yield from self._ask(trainer, tokenizer)
        return "enough" if self._enough(step) else "go"

    def _ask(self, trainer: Trainer, tokenizer: Tokenizer) -> Events:
        from shoestring.generate.engine import Engine, Request
        from shoestring.stages.workbench import sample

        context, step = self.context, trainer.step
        began = context.clock()
        stop = tokenizer.ends
        requests = [Request(tokenizer.chat(plain(p, self.ask)), self.max_new, stop=stop) for p in self.problems]
        reasons: Counter[str] = Counter()
        traces = sample(Engine(trainer.model, SLOTS), requests, self.problems, tokenizer, context.stage, reasons=reasons)
        right = [int(t.score == 1.0) for t in traces]
        seconds = context.clock() - began
        self.pace.add(seconds)
        self.journal.append(
            str(step), [{"step": step, "usd": context.accrued(), "cost": context.usd(seconds), "right": right}]
        )  # fmt: skip
        tokens = sum(len(t.tokens) for t in traces)
        yield StepReport(
            f"{context.stage}.probe", len(self.journal.chunks), LOOKS, seconds, tokens, tokens,
            reward=sum(right) / len(right), extra=self.told(step) | {"verdicts": dict(reasons)},
        )  # fmt: skip

    def _evaluations(self, step: int) -> list[Evaluation]:
        """Those up to `step`; a step after it, in the journal of a killed attempt, is not reached yet."""
        from shoestring.train.stopping import Evaluation

        rows = sorted((r for r in self.journal.rows() if r["step"] <= step), key=lambda r: r["step"])
        return [Evaluation(r["step"], r["usd"], tuple(r["right"])) for r in rows]

    def _enough(self, step: int) -> bool:
        from shoestring.train.stopping import judge

        verdict = judge(self._evaluations(step), self.worth)
        return verdict is not None and verdict.stop

    def told(self, step: int) -> dict[str, Any]:
        """The report's own measures of the probe at `step`, and what is said aloud."""
        from shoestring.train.stopping import CONFIDENCE, judge

        evaluations = self._evaluations(step)
        cost = sum(r["cost"] for r in self.journal.rows() if r["step"] <= step)
        out: dict[str, Any] = {
            "at_step": step, "problems": len(self.problems), "usd_probes": cost, "worth_usd_per_point": self.worth,
        }  # fmt: skip
        head = f"{self.context.stage}: probe at step {step}: {evaluations[-1].accuracy:.1%} of {len(self.problems)}"
        if (v := judge(evaluations, self.worth)) is None:
            return out | {"notice": head}
        does = "pays" if v.pays else "does not pay"
        notice = (
            f"{head}, {v.gain:+.1f} points for ${v.usd:.4f} since step {v.since}, at least {v.low:+.1f} with "
            f"{CONFIDENCE:.0%} confidence: {does} at ${self.worth:g} a point (probes so far ${cost:.4f})"
        )
        if v.stop:
            notice += f"\n{self.context.stage}: stopped early at step {step} of {self.total}"
        return out | {
            "since_step": v.since, "gain_points": round(v.gain, 3), "low_points": round(v.low, 3), "usd_since": v.usd,
            "pays": v.pays, "early_stop": v.stop, "notice": notice,
        }  # fmt: skip
