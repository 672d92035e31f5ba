"""Is the reward being hacked? What a step's answers look like, against how the stage began, and a warning where it is wrong.

Four signs, each an average of the last steps against the stage's own first ones, so that no model or task has a threshold of
its own. The limits are ours (docs/r1.md says how they were chosen); what they look for is published:

* length: answers grow and are not right more often (Liu et al. 2025, "Understanding R1-Zero-like training", section 3.1:
  GRPO's length bias lengthens the wrong ones). Growth with more right answers is what R1-Zero is known for, and is silent;
* repetition: n-grams that an answer says again (Yeo et al. 2025, "Demystifying long chain-of-thought", section 4: models
  repeat themselves to earn a length reward);
* form: what pays for form earns more, what pays for being right does not;
* entropy: the mean of -log p of what was sampled falls to a fraction (Cui et al. 2025, "The entropy mechanism": reward is
  bought with entropy, and what is used up early is missed later), while many answers are still wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.records import Problem, Trace
from shoestring.rewards._verdict import Verdict
from shoestring.stages.context import Journal

if TYPE_CHECKING:
    from shoestring.rewards._mixture import Mixture

WINDOW = 4  # steps of the beginning, and of what is compared with it
NGRAM = 4  # tokens
LONGER, TOKENS = 2.0, 8.0  # times the length at the start, and so many tokens more
REPEATED = 0.15  # more of an answer's n-grams were there before
FORM = 0.1  # more of what form pays
RIGHT = 0.05  # more right answers than this is progress
COLLAPSED, SOLVED = 0.25, 0.9  # of the entropy at the start, where fewer answers than this are right
FORMS = ("format", "length", "overlong")  # rewards that do not look at what is answered

SIGNS = {
    "length": "answers grow and are not right more often",
    "repetition": "answers repeat themselves",
    "form": "the form is paid more, right answers are not",
    "entropy": "the model says one thing only, and it is not solved",
}


@dataclass(frozen=True)
class Measures:
    """One step's answers. length: tokens that the model wrote; repetition: share of n-grams that were there before; entropy:
    mean of -log p, nats a token; right, form: mean of what pays for being right and for form (None: nothing does)."""

    step: int
    length: float
    repetition: float
    entropy: float
    right: float
    form: float | None = None


class Listening:
    """A mixture that keeps what each of its parts paid until `take` is called. It grades as the mixture does."""

    def __init__(self, inner: Mixture) -> None:
        self.inner = inner
        self.parts: dict[str, list[float]] = {}

    def check(self, problem: Problem) -> None:
        self.inner.check(problem)

    def grade(self, text: str, problem: Problem) -> float:
        return self.inner.grade(text, problem)

    def score_many(self, texts: Sequence[str], problems: Sequence[Problem], **columns: Any) -> list[Verdict]:
        found = self.inner.by_part(texts, problems, **columns)
        for name, verdicts in found.items():
            self.parts.setdefault(name, []).extend(v.score for v in verdicts if v.score is not None)
        return self.inner.summed(found)

    def take(self) -> dict[str, float]:
        """Each part's mean since the last call, unweighted; parts without an opinion are left out."""
        parts, self.parts = self.parts, {}
        return {name: sum(scores) / len(scores) for name, scores in parts.items() if scores}


def listening(mixture: Mixture | None) -> Listening | None:
    return None if mixture is None else Listening(mixture)


def repetition(tokens: Sequence[int]) -> float:
    """The share of n-grams of four tokens that an answer has said before; 0 for fewer than eight tokens."""
    grams = [tuple(tokens[i : i + NGRAM]) for i in range(len(tokens) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if len(tokens) >= 2 * NGRAM else 0.0


def measure(step: int, traces: Iterable[Trace], parts: Mapping[str, float] | None = None) -> Measures:
    """parts: what each reward of a mixture paid in the mean; without them the score is what pays for being right."""
    own = list(traces)
    said = [[t for t, s in zip(a.tokens, a.sampled, strict=True) if s] for a in own]
    logprobs = [x for a in own for x, s in zip(a.logprobs, a.sampled, strict=True) if s]
    scores = [a.score for a in own if a.score is not None]
    right = sum(scores) / max(1, len(scores))
    form = None
    if parts:
        heard = [v for k, v in parts.items() if k not in FORMS and ".py:" not in k]
        right = sum(heard) / len(heard) if heard else right
        formal = [v for k, v in parts.items() if k in FORMS]
        form = sum(formal) / len(formal) if formal else None
    return Measures(
        step, sum(map(len, said)) / max(1, len(said)), sum(map(repetition, said)) / max(1, len(said)),
        -sum(logprobs) / max(1, len(logprobs)), right, form,
    )  # fmt: skip


def signs(seen: Sequence[Measures]) -> dict[str, tuple[float, float]]:
    """sign → (at the start, now), of those that are there. Nothing before two windows of steps."""
    if len(seen) < 2 * WINDOW:
        return {}

    def mean(key: str, part: Sequence[Measures]) -> float:
        return sum(getattr(m, key) or 0.0 for m in part) / len(part)

    first, last = seen[:WINDOW], seen[-WINDOW:]
    start = {f.name: mean(f.name, first) for f in fields(Measures)}
    now = {f.name: mean(f.name, last) for f in fields(Measures)}
    better = now["right"] - start["right"] >= RIGHT
    found = {
        "length": not better and now["length"] >= LONGER * start["length"] and now["length"] - start["length"] >= TOKENS,
        "repetition": now["repetition"] - start["repetition"] >= REPEATED,
        "form": not better and all(m.form is not None for m in seen) and now["form"] - start["form"] >= FORM,
        "entropy": start["entropy"] > 0 and now["entropy"] <= COLLAPSED * start["entropy"] and now["right"] < SOLVED,
    }
    return {k: (start[k], now[k]) for k, there in found.items() if there}


class Watch:
    """The measures of a stage, kept in a file, so that a resumed one compares with the same beginning."""

    def __init__(self, path: Path, stage: str, step: int) -> None:
        """step: steps done; what a killed attempt noted beyond is measured again."""
        self.journal, self.stage = Journal(path), stage
        rows = [r for r in self.journal.rows() if r["step"] <= step]
        self.seen = [Measures(**{f.name: r[f.name] for f in fields(Measures)}) for r in sorted(rows, key=lambda r: r["step"])]
        self.said = {k for r in rows for k in r["signs"]}

    def look(self, step: int, traces: Iterable[Trace], parts: Mapping[str, float] | None = None) -> dict[str, Any]:
        """The report's own measures of step `step`; a sign that is new is said aloud."""
        m = measure(step, traces, parts)
        self.seen.append(m)
        found = signs(self.seen)
        self.journal.append(str(step), [asdict(m) | {"signs": sorted(found)}])
        out: dict[str, Any] = {"repetition": round(m.repetition, 4), "entropy": round(m.entropy, 4)}
        if m.form is not None:
            out |= {"form": round(m.form, 4), "right": round(m.right, 4)}
        if found:
            out["watch"] = {k: [round(a, 4), round(b, 4)] for k, (a, b) in found.items()}
        new = [k for k in found if k not in self.said]
        self.said |= set(new)
        head = f"{self.stage}: step {step}: watch the reward"
        lines = [f"{head}: {SIGNS[k]} ({k} {found[k][0]:.3g} → {found[k][1]:.3g})" for k in new]
        return out | ({"notice": "\n".join(lines)} if lines else {})


def together(*extras: Mapping[str, Any]) -> dict[str, Any]:
    """Measures of several sources as one; what each says aloud is said on a line of its own."""
    out: dict[str, Any] = {}
    for e in extras:
        notice = "\n".join(str(x["notice"]) for x in (out, e) if x.get("notice"))
        out |= e
        if notice:
            out["notice"] = notice
    return out
