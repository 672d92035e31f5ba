"""Drop training problems that the evaluation contains: by operands, by text, or by a run of eight or thirteen words.

Four words in a row that more than 1% of the problems share, or a tenth of a domain's (data.templates), are a template, not
a leak. Three rules look at runs:
* eight words, at least half of them outside templates, in a question with more than twelve words outside templates
  (else one template would wipe out the whole family);
* thirteen words (Brown et al. 2020, appendix C), at least a quarter of them outside templates, in any question;
* eight words, at least half outside templates, and the same normalised answer, in any question.
The same question is known under another label, and the same arithmetic across families.
In a pool of more than SAMPLE problems the templates are counted on a draw of that many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from shoestring import answers
from shoestring.data import templates
from shoestring.data.expressions import expression_key
from shoestring.data.keys import repeating
from shoestring.data.marks import Grams, Marks, among, grams, joined, mark, once_a_row, paired
from shoestring.records import Problem

__all__ = ["Decontaminated", "Index", "build", "decontaminate", "drawn", "expression_key"]

GRAM = 8
LONG_GRAM = 13
MIN_WORDS = 12  # words outside templates
TEMPLATE_GRAM = 4
TEMPLATE_SHARE = 0.01
SAMPLE = 20_000
_TEMPLATE_COUNT = 5  # in a small pool, more problems than this must share a run before it is a template

SAME = "same problem"
OPERANDS = "same operands under another family's name"


@dataclass
class Decontaminated:
    """`kept` in order; `dropped` maps a dropped problem's id to why ("same problem" or "shares 8 words: ...")."""

    kept: list[Problem] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Index:
    """What the evaluation is known by: sorted hashes, and the words of each run. Small, and travels to every worker."""

    templates: np.ndarray
    procedural: frozenset[str]
    keys: np.ndarray
    forms: np.ndarray
    expressions: np.ndarray
    runs: dict[str, dict[int, str]]  # kind -> hash -> the words

    def faults(self, marks: Marks) -> list[str | None]:
        """Why each problem leaves, or None."""
        known = {kind: np.sort(np.fromiter(words, np.uint64, len(words))) for kind, words in self.runs.items()}
        shared: dict[int, str] = {}
        runs = _telling(marks, self.templates)
        for kind in reversed(_KINDS):  # the first kind names the reason
            found, hashes = runs[kind]
            hits = np.flatnonzero(among(hashes, known[kind]))
            least: dict[int, str] = {}
            for at in hits:
                row, words = int(found.row[at]), self.runs[kind][int(hashes[at])]
                least[row] = min(least.get(row, words), words, key=str.split)
            shared.update({row: f"{kind}: {words}" for row, words in least.items()})
        same = among(_keys(marks, self.procedural), self.keys) | among(marks.form, self.forms)
        operands = (marks.expression != 0) & among(marks.expression, self.expressions)
        return [
            SAME if same[i] else OPERANDS if operands[i] else shared.get(i) for i in range(len(marks))
        ]  # fmt: skip


_KINDS = (f"shares {GRAM} words", f"shares {LONG_GRAM} words", f"shares {GRAM} words and the answer")


def drawn(text: np.ndarray, limit: int) -> np.ndarray:
    """Positions of at most `limit` problems, drawn by the hash of their text: the same draw in whatever order they come."""
    if len(text) <= limit:
        return np.arange(len(text))
    return np.sort(np.argsort(text, kind="stable")[:limit])


def build(
    sample: Marks, of_domains: Marks, total: int, evaluation: Marks, words: Sequence[Sequence[str]],
    procedural: frozenset[str],
) -> Index:  # fmt: skip
    """The index of an evaluation set whose questions have these words.

    sample: at most SAMPLE of the `total` training problems, of_domains: those of data.templates.draw; by both templates are
    told. words: the words of each evaluation question. procedural: the families that
    repeat, judged over training and evaluation together (data.keys.repeating).
    """
    common = templates.of_domains(of_domains, TEMPLATE_GRAM)[0]
    known = np.unique(np.concatenate([_templates(sample, total, evaluation), common]))
    runs: dict[str, dict[int, str]] = {}
    for kind, (found, hashes) in _telling(evaluation, known).items():
        runs[kind] = {}
        for at, row, value in zip(found.at, found.row, hashes, strict=True):
            first = at - evaluation.starts[row]
            runs[kind][int(value)] = " ".join(words[int(row)][first : first + found.size])
    return Index(
        known, procedural, np.unique(_keys(evaluation, procedural)), np.unique(evaluation.form),
        np.unique(evaluation.expression[evaluation.expression != 0]), runs,
    )  # fmt: skip


def _keys(marks: Marks, procedural: frozenset[str]) -> np.ndarray:
    chosen = np.array([name in procedural for name in marks.names] or [False])
    return np.where(chosen[marks.domain], marks.operands, marks.wording)


def _templates(sample: Marks, total: int, evaluation: Marks) -> np.ndarray:
    """Sorted hashes of the short runs that too many questions share."""
    scale = total / max(1, len(sample))
    counts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, marks in (("training", sample), ("evaluation", evaluation)):
        found = grams(marks, TEMPLATE_GRAM)
        counts[name] = np.unique(found.hash[once_a_row(found)], return_counts=True)
    everything = np.concatenate([counts["training"][0], counts["evaluation"][0]])
    weights = np.concatenate([counts["training"][1] * scale, counts["evaluation"][1]])
    runs, at = np.unique(everything, return_inverse=True)
    limit = max(_TEMPLATE_COUNT, TEMPLATE_SHARE * (total + len(evaluation)))
    return runs[np.bincount(at, weights=weights, minlength=len(runs)) > limit]


def _telling(marks: Marks, known: np.ndarray) -> dict[str, tuple[Grams, np.ndarray]]:
    """By kind: the runs that would betray a copy, and the hash by which each is compared."""
    own = np.ones(len(marks.words), np.int64)
    short = grams(marks, TEMPLATE_GRAM)
    for at in short.at[among(short.hash, known)][None, :] + np.arange(TEMPLATE_GRAM)[:, None]:
        own[at] = 0
    upto = np.concatenate(([0], np.cumsum(own)))
    eight, long = _at_least(grams(marks, GRAM), upto, 2), _at_least(grams(marks, LONG_GRAM), upto, 4)
    rich = (upto[marks.starts[1:]] - upto[marks.starts[:-1]]) > MIN_WORDS
    telling = _only(eight, rich[eight.row])
    return {
        _KINDS[0]: (telling, telling.hash),
        _KINDS[1]: (long, long.hash),
        _KINDS[2]: (eight, paired(eight.hash, marks.answer[eight.row])),
    }


def _at_least(found: Grams, upto: np.ndarray, part: int) -> Grams:
    """The runs of which at least one word in `part` stands outside templates."""
    return _only(found, part * (upto[found.at + found.size] - upto[found.at]) >= found.size)


def _only(found: Grams, keep: np.ndarray) -> Grams:
    return Grams(found.at[keep], found.row[keep], found.hash[keep], found.size)


def families(training: Marks, evaluation: Marks) -> frozenset[str]:
    """The procedural families of two sets together."""
    both = joined([training, evaluation])
    found = repeating(both.domain, both.skeleton, len(both.names))
    return frozenset(name for name, yes in zip(both.names, found, strict=True) if yes)


def decontaminate(training: Sequence[Problem], evaluation: Sequence[Problem]) -> Decontaminated:
    """Split `training` into what the evaluation does not contain and what it does, with reasons."""
    mine, theirs = mark(training), mark(evaluation)
    sample = mine.take(drawn(mine.text, SAMPLE))
    words = [answers.words(p.prompt) for p in evaluation]
    by_domain = mine.take(templates.drawn(mine))
    index = build(sample, by_domain, len(mine), theirs, words, families(mine, theirs))
    result = Decontaminated()
    for p, why in zip(training, index.faults(mine), strict=True):
        if why is None:
            result.kept.append(p)
        else:
            result.dropped[p.id] = why
    return result
