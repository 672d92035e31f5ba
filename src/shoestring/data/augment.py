"""More problems from the ones at hand, each with an answer that was computed, never guessed.

* `perturbed`: other numbers in a template that carries a solver (data.solvers); the solver works the answer out.
* `shuffled`: the options of a choice problem in another order; the answer's letter follows its option.
* `paraphrased`: other words from a model; kept only if its numbers are the same and the model, asked the new question, gives
  the old answer by the problem's own grader.

A new problem keeps licence and grader; its source says how it was made. One that cannot be made is left out and counted.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shoestring import answers
from shoestring.data.solvers import SOLVERS, solve
from shoestring.records import Problem

Ask = Callable[[Sequence[str]], Sequence[str]]  # texts → a reply each, such as a model behind an endpoint
Right = Callable[[str, Problem], bool]  # whether a reply answers the problem: the grader's verdict
BOUND = {"number_sequence"}  # families whose numbers follow from one another: others would leave no rule to find
TRIES = 12  # draws of numbers for one new problem
_NUMBER = re.compile(r"\d+")
_OPTION = re.compile(r"^(?P<mark>\(?(?P<letter>[A-Z])[).:])(?P<gap>[ \t]+)(?P<text>\S.*)$", re.MULTILINE)
_REFERS = re.compile(
    r"\b(?:all|none|both|neither|either) of (?:the|these|them)|\b(?:above|below|previous|preceding)\b"
    r"|\(?\b[A-Z]\)? (?:and|or|nor) \(?[A-Z]\b|\bonly \(?[A-Z]\b"
    r"|\b[Oo]ptions? \(?[A-Z]\b|\b[Cc]hoices? \(?[A-Z]\b|\b(?:first|last|next) (?:option|choice|one)\b",
    re.IGNORECASE,
)  # fmt: skip
REWRITE = (
    "Rewrite this problem in other words. Keep every number, every condition and what is asked; do not solve it. "
    "Write the new problem only.\n\n{prompt}"
)


@dataclass
class Augmented:
    """problems: the new ones; left_out: why others were not made, counted."""

    problems: list[Problem] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def perturbed(problems: Sequence[Problem], count: int = 1, seed: int = 0) -> Augmented:
    """Up to `count` new problems of each that a solver knows, with other numbers of as many digits.

    Of the question's numbers those that the answer depends on are redrawn: the ones whose change changes what the solver
    works out. The solver must have found the gold answer of the original, or its template is not trusted.
    """
    made = Augmented()
    known = {p.prompt for p in problems}
    for p in problems:
        if p.domain not in SOLVERS:
            made.left_out["no solver"] += 1
        elif p.domain in BOUND:
            made.left_out["its numbers follow from one another"] += 1
        elif _worked(p.domain, p.prompt) is None or not answers.equal(_worked(p.domain, p.prompt), p.answer):
            made.left_out["the solver does not find its answer"] += 1
        else:
            rng = random.Random(f"{seed}/{p.id}")
            for _ in range(count):
                new = next((n for _ in range(TRIES) if (n := _redrawn(p, rng)) is not None and n.prompt not in known), None)
                if new is None:
                    made.left_out["no other numbers that the solver takes"] += 1
                    break
                known.add(new.prompt)
                made.problems.append(new)
    return made


def _worked(domain: str, prompt: str) -> str | None:
    """The answer that the family's solver works out."""
    try:
        found = SOLVERS[domain](prompt)
    except (ValueError, ZeroDivisionError, IndexError, OverflowError):
        return None
    return found[1] if found is not None else None


def _redrawn(p: Problem, rng: random.Random) -> Problem | None:
    """One draw: every number that matters, anew with as many digits."""
    old = _worked(p.domain, p.prompt)
    spans = [m.span() for m in _NUMBER.finditer(p.prompt)]
    moved = [s for s in spans if _worked(p.domain, _with(p.prompt, {s: _draw(p.prompt[slice(*s)], rng)})) not in (old, None)]
    if not moved:
        return None
    prompt = _with(p.prompt, {s: _draw(p.prompt[slice(*s)], rng) for s in moved})
    answer = _worked(p.domain, prompt)
    if answer is None or prompt == p.prompt or not answers.normalise(answer):
        return None
    source = f"{p.source} perturbed".strip()
    solution = solve(p.domain, prompt, answer)
    if solution is None:
        return None
    rest = {"solution": solution, "grader": p.grader, "grader_args": p.grader_args, "licence": p.licence, "domain": p.domain}
    return Problem.make(prompt, answer, source=source, **rest)


def _draw(number: str, rng: random.Random) -> str:
    """Another number of as many digits; a leading zero stays where the text has one."""
    if len(number) == 1:
        return str(rng.randrange(1, 10))
    if number[0] == "0":
        return number[0] + "".join(str(rng.randrange(10)) for _ in number[1:])
    return str(rng.randrange(10 ** (len(number) - 1), 10 ** len(number)))


def _with(text: str, changes: dict[tuple[int, int], str]) -> str:
    for (a, b), new in sorted(changes.items(), reverse=True):
        text = text[:a] + new + text[b:]
    return text


def shuffled(problems: Sequence[Problem], seed: int = 0) -> Augmented:
    """Each choice problem with its options ("A) …" lines) in another order.

    Left out: fewer than two options, letters that are not A, B, C … in order, options that speak of one another ("all of the
    above", "A and B"), two options alike, and an answer that is none of the letters.
    """
    made = Augmented()
    for p in problems:
        new = _shuffled(p, random.Random(f"{seed}/{p.id}"))
        if isinstance(new, str):
            made.left_out[new] += 1
        else:
            made.problems.append(new)
    return made


def _shuffled(p: Problem, rng: random.Random) -> Problem | str:
    options = list(_OPTION.finditer(p.prompt))
    letters = [m["letter"] for m in options]
    if len(options) < 2 or letters != [chr(ord("A") + i) for i in range(len(options))]:
        return "no options A, B, C …"
    texts = [m["text"].strip() for m in options]
    gold = p.answer.strip().strip("().").upper()
    if gold not in letters:
        return "the answer is no letter of its options"
    if len({answers.normalise(t) for t in texts}) < len(texts):
        return "two options are alike"
    if any(_REFERS.search(t) for t in texts) or _between(p.prompt, options):
        return "options speak of one another"
    order = list(range(len(texts)))
    while order == sorted(order):
        rng.shuffle(order)
    prompt = _with(p.prompt, {m.span("text"): texts[order[i]] for i, m in enumerate(options)})
    letter = letters[order.index(letters.index(gold))]
    answer = p.answer.replace(gold, letter, 1) if gold in p.answer else letter
    return Problem.make(
        prompt, answer, grader=p.grader, grader_args=p.grader_args, source=f"{p.source} shuffled".strip(),
        licence=p.licence, domain=p.domain,
    )  # fmt: skip


def _between(prompt: str, options: Sequence[re.Match[str]]) -> bool:
    """Whether text stands between the options: an option of several lines would be torn apart."""
    gaps = (prompt[a.end() : b.start()] for a, b in zip(options, options[1:], strict=False))
    return any(gap.strip() for gap in gaps)


def paraphrased(
    problems: Sequence[Problem], ask: Ask, right: Right, prompt: str = REWRITE, attempts: int = 1
) -> Augmented:
    """Each problem in other words, if its numbers are all there and no others, and `attempts` answers to it are all right.

    ask: first for the new words, then for the new question's answers. right: the grader. The old answer stays; what a model
    answers only decides whether the paraphrase is kept. Raises ValueError if `ask` gives another number of replies, or
    attempts < 1.
    """
    if attempts < 1:
        raise ValueError(f"attempts = {attempts}: a paraphrase is answered at least once")
    made = Augmented()
    new = drafts(problems, _replies(ask, [prompt.format(prompt=p.prompt) for p in problems]), made.left_out)
    said = _replies(ask, [p.prompt for p in new for _ in range(attempts)])
    made.problems = agreed(
        new, [[right(text, p) for text in said[i * attempts : (i + 1) * attempts]] for i, p in enumerate(new)], made.left_out
    )
    return made


def drafts(problems: Sequence[Problem], said: Sequence[str | None], left_out: Counter[str]) -> list[Problem]:
    """The problems in the words of `said`, with the old answers, not yet to be trusted. None: nothing was said.

    left_out counts what is no paraphrase: no other words, other numbers, the same words as another problem's.
    """
    made: list[Problem] = []
    known = {answers.normalise(p.prompt) for p in problems}
    for p, reply in zip(problems, said, strict=True):
        text = (reply or "").strip()
        if reply is None:
            left_out["no reply"] += 1
        elif not text or answers.normalise(text) in known:
            left_out["no other words"] += 1
        elif sorted(answers.numbers(text)) != sorted(answers.numbers(p.prompt)):
            left_out["other numbers"] += 1
        else:
            known.add(answers.normalise(text))
            new = Problem.make(
                text, p.answer, grader=p.grader, grader_args=p.grader_args, source=f"{p.source} paraphrased".strip(),
                licence=p.licence, domain=p.domain,
            )  # fmt: skip
            made.append(new)
    return made


def agreed(new: Sequence[Problem], right: Sequence[Sequence[bool]], left_out: Counter[str]) -> list[Problem]:
    """Those of which every answer was graded right by the old gold, and there was one; the others are counted."""
    made: list[Problem] = []
    for p, verdicts in zip(new, right, strict=True):
        if verdicts and all(verdicts):
            made.append(p)
        else:
            left_out["answered otherwise" if verdicts else "not answered"] += 1
    return made


def _replies(ask: Ask, texts: Sequence[str]) -> list[str]:
    if not texts:
        return []
    said = list(ask(texts))
    if len(said) != len(texts):
        raise ValueError(f"the model gave {len(said)} replies to {len(texts)} requests")
    return said
