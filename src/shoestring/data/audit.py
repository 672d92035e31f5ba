"""Label noise: which gold answers are probably wrong, and how many, from models that agree with each other against the gold.

Two models that err alone seldom err alike; two that give one answer which is not the gold make the gold suspect (the idea of
confident learning, Northcutt et al. 2021, with models in place of a classifier's probabilities). They do sometimes err alike,
so the share of suspects is corrected by how often that happens where a third model confirms the gold.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from shoestring import answers, stats
from shoestring.records import UserError

ASKED = ("question", "prompt", "problem")
SAID = ("response", "completion", "text")
DRAWS = 1000
EXACT = 5  # suspects below which resampling says little of the upper end


@dataclass(frozen=True)
class Suspect:
    """A gold that no model gives and on whose replacement at least two models agree; every model that answered does."""

    question: str
    gold: str
    answer: str
    models: tuple[str, ...]
    row: str = ""  # the question's id, where the rows have one


@dataclass(frozen=True)
class Audit:
    """audited: questions that at least two models answered. share: of wrong golds among them, with a 95% interval.

    coincidence: how often two models give one wrong answer where a third gives the gold; None where no three models
    answered one question: then share is the suspects' own, an upper estimate, and corrected is False. contradicted:
    questions whose gold no model gives, agreed or not.
    """

    questions: int
    audited: int
    models: tuple[str, ...]
    suspects: tuple[Suspect, ...]
    share: float
    interval: stats.Interval
    coincidence: float | None
    corrected: bool
    contradicted: int


@dataclass
class _Question:
    text: str
    gold: str
    id: str = ""
    said: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    right: dict[str, Counter[bool]] = field(default_factory=lambda: defaultdict(Counter))

    def votes(self) -> dict[str, tuple[str, bool]]:
        """A model's commonest answer, and whether it is the gold; a model without a single commonest one has no vote."""
        out = {}
        for model, counts in self.said.items():
            (best, n), *rest = counts.most_common(2)
            if not rest or rest[0][1] < n:
                out[model] = (best, self.right[model][True] > self.right[model][False])
        return out


def audit(rows: Iterable[Mapping[str, Any]], name: str = "rows", seed: int = 0) -> Audit:
    """Rows of graded or ungraded answers: `question`, `answer` (the gold), `model`, and `extracted` or a `response`.

    score: where a row has one, 1 means that a verifier found the answer right, whatever its text. Rows without an answer
    that can be read are passed over. Raises UserError for rows without these columns, and where no question has two models.
    """
    found: dict[tuple[str, str], _Question] = {}
    models: set[str] = set()
    for n, row in enumerate(rows, 1):
        asked, gold, model, said = _read(row, f"{name}:{n}")
        of = found.setdefault((asked, answers.normalise(gold)), _Question(asked, gold, str(row.get("question_id") or "")))
        plain = answers.normalise(said) if said is not None else ""
        if not plain or not answers.normalise(gold):
            continue
        models.add(model)
        score = row.get("score")
        right = answers.equal(said, gold) if score is None else float(score) >= 1.0
        of.said[model]["" if right else plain] += 1
        of.right[model][right] += 1
    voted = [(q, votes) for q in found.values() if len(votes := q.votes()) >= 2]
    if not voted:
        raise UserError(f"{name}: no question is answered by two models; an audit needs two or more, each under its `model`")
    marks = [_marks(votes) for _, votes in voted]
    suspects = [_suspect(q, votes) for (q, votes), m in zip(voted, marks, strict=True) if m[0]]
    share, coincidence = _share(marks)
    return Audit(
        len(found), len(voted), tuple(sorted(models)), tuple(suspects), share, _interval(marks, seed), coincidence,
        coincidence is not None, sum(not any(right for _, right in votes.values()) for _, votes in voted),
    )  # fmt: skip


def _read(row: Mapping[str, Any], where: str) -> tuple[str, str, str, str | None]:
    asked = next((row[k] for k in ASKED if row.get(k)), None)
    said = row.get("extracted")
    if said is None:
        text = next((row[k] for k in SAID if row.get(k) is not None), None)
        if text is None and "extracted" not in row:
            raise UserError(f"{where}: an audit needs `extracted` or a completion ({', '.join(SAID)})")
        said = answers.extract(str(text)) if text is not None else None
    for key, value in (("question", asked), ("answer", row.get("answer")), ("model", row.get("model"))):
        if value in (None, ""):
            raise UserError(f"{where}: an audit needs a column {key!r}")
    return " ".join(str(asked).split()), str(row["answer"]), str(row["model"]), None if said is None else str(said)


Mark = tuple[bool, int, int]  # suspect; pairs of models that err alike beside a third that is right; all such pairs


def _marks(votes: Mapping[str, tuple[str, bool]]) -> Mark:
    """What one question says."""
    given = list(votes.values())
    suspect = not any(right for _, right in given) and len({a for a, _ in given}) == 1
    alike = pairs = 0
    if len(given) >= 3:
        for i, j in combinations(range(len(given)), 2):
            if any(right for k, (_, right) in enumerate(given) if k not in (i, j)):
                pairs += 1
                alike += not given[i][1] and not given[j][1] and given[i][0] == given[j][0]
    return suspect, alike, pairs


def _share(marks: Sequence[Mark]) -> tuple[float, float | None]:
    """(share of wrong golds, how often two err alike). Of right golds the coincidence makes suspects too:
    suspects = share + (1 - share) · coincidence, hence the correction (Rogan and Gladen 1978, sensitivity taken as 1)."""
    suspects = sum(m[0] for m in marks) / len(marks)
    pairs = sum(m[2] for m in marks)
    if not pairs:
        return suspects, None
    alike = sum(m[1] for m in marks) / pairs
    return (max(0.0, (suspects - alike) / (1 - alike)) if alike < 1 else 0.0), alike


def _interval(marks: Sequence[Mark], seed: int) -> stats.Interval:
    """Percentiles of resampled questions; the upper end is at least that of so few suspects (Wilson)."""
    rng = random.Random(seed)
    shares = sorted(_share(rng.choices(marks, k=len(marks)))[0] for _ in range(DRAWS))
    low, high = stats.quantile(shares, 0.025), stats.quantile(shares, 0.975)
    suspects = sum(m[0] for m in marks)
    return low, (max(high, stats.wilson_interval(suspects, len(marks))[1]) if suspects < EXACT else high)


def _suspect(q: _Question, votes: Mapping[str, tuple[str, bool]]) -> Suspect:
    return Suspect(q.text, q.gold, next(a for a, _ in votes.values()), tuple(sorted(votes)), q.id)


def to_dict(found: Audit) -> dict[str, Any]:
    """Plain data, as `shoestring data audit --json` prints it (docs/json/data-audit.md)."""
    return {
        "questions": found.questions, "audited": found.audited, "models": list(found.models),
        "wrong_share": round(found.share, 5), "wrong_ci95": [round(x, 5) for x in found.interval],
        "coincidence": None if found.coincidence is None else round(found.coincidence, 5), "corrected": found.corrected,
        "contradicted": found.contradicted, "basis": "measured",
        "suspects": [
            {"id": s.row, "question": s.question, "gold": s.gold, "answer": s.answer, "models": list(s.models)}
            for s in found.suspects
        ],
    }  # fmt: skip
