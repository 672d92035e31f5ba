"""Drop training problems that the evaluation contains: by operands, by text, or by a run of eight words.

Four words in a row that more than 1% of the problems share are a family's template, not a leak. A question is compared
by word runs only if more than twelve of its words lie outside templates, and a run counts only if at least half of its
words do: else one template would wipe out the whole family. Arithmetic expressions are compared across families too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from shoestring import answers
from shoestring.data.keys import problem_keys, skeleton
from shoestring.records import Problem

GRAM = 8
MIN_WORDS = 12  # words outside templates
TEMPLATE_GRAM = 4
TEMPLATE_SHARE = 0.01
_TEMPLATE_COUNT = 5  # in a small pool, more problems than this must share a run before it is a template

_Run = tuple[str, ...]


@dataclass
class Decontaminated:
    """`kept` in order; `dropped` maps a dropped problem's id to why ("same problem" or "shares 8 words: ...")."""

    kept: list[Problem] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)


def _runs(words: Sequence[str], size: int) -> list[_Run]:
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


_EXPRESSION = re.compile(r"(?<![\w.])[-(\s]*\d+(?:[\s()]*[-+*/][-\s()]*\d+)+(?![\w]|\.\d)")


def expression_key(prompt: str) -> str | None:
    """Identity of an arithmetic expression across families: its kinds of operation and its operands without order or
    sign. "3 + 5", "Calculate 5 - -3." and "-5 + 3" are one. None for a question without an expression."""
    match = _EXPRESSION.search(prompt)
    if match is None:
        return None
    text = match[0]
    kinds = sorted({"+" if c in "+-" else c for c in re.findall(r"(?<=[\d)])\s*([-+*/])", text)})
    return "".join(kinds) + " " + " ".join(sorted(re.findall(r"\d+", text), key=int))


def _form(problem: Problem) -> str:
    """The question free of its domain: one question is one question under whatever label."""
    return skeleton(problem.prompt) + " | " + " ".join(sorted(answers.numbers(problem.prompt)))


def _templates(texts: Sequence[Sequence[str]]) -> set[_Run]:
    """The short runs that too many texts share."""
    counts = Counter(run for words in texts for run in set(_runs(words, TEMPLATE_GRAM)))
    limit = max(_TEMPLATE_COUNT, TEMPLATE_SHARE * len(texts))
    return {run for run, n in counts.items() if n > limit}


def _telling_runs(words: Sequence[str], templates: set[_Run]) -> set[_Run]:
    """The runs of eight words that would betray a copy; none for a question that is mostly template."""
    own = [True] * len(words)
    for i, run in enumerate(_runs(words, TEMPLATE_GRAM)):
        if run in templates:
            own[i : i + TEMPLATE_GRAM] = [False] * TEMPLATE_GRAM
    if sum(own) <= MIN_WORDS:
        return set()
    return {run for i, run in enumerate(_runs(words, GRAM)) if 2 * sum(own[i : i + GRAM]) >= GRAM}


def decontaminate(training: Sequence[Problem], evaluation: Sequence[Problem]) -> Decontaminated:
    """Split `training` into what the evaluation does not contain and what it does, with reasons."""
    everything = [*training, *evaluation]
    keys = problem_keys(everything)
    words = [answers.words(p.prompt) for p in everything]
    templates = _templates(words)
    eval_keys = set(keys[len(training) :])
    eval_forms = {_form(p) for p in evaluation}
    eval_runs = {run for w in words[len(training) :] for run in _telling_runs(w, templates)}
    eval_expressions = {k for p in evaluation if (k := expression_key(p.prompt))}
    result = Decontaminated()
    for p, key, w in zip(training, keys, words, strict=False):
        shared = _telling_runs(w, templates) & eval_runs
        if key in eval_keys or _form(p) in eval_forms:
            result.dropped[p.id] = "same problem"
        elif expression_key(p.prompt) in eval_expressions:
            result.dropped[p.id] = "same operands under another family's name"
        elif shared:
            result.dropped[p.id] = f"shares {GRAM} words: {' '.join(min(shared))}"
        else:
            result.kept.append(p)
    return result
