"""Format filters: what is wrong with a problem as it stands, before any model has seen it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from shoestring import answers
from shoestring.records import Problem

MIN_PROMPT, MAX_PROMPT, MAX_ANSWER = 3, 8000, 200  # characters
_IMAGE = re.compile(
    r"!\[[^\]]*\]\(|<img\b|\[asy\]|\b(?:figure|diagram|image|picture) (?:below|above|shown)\b", re.IGNORECASE
)
_PLACEHOLDER = re.compile(r"\b(?:TODO|FIXME|lorem ipsum)\b|\{\{.*?\}\}|\[(?:insert|redacted)[^\]]*\]", re.IGNORECASE)
# controls but line breaks and tabs, surrogates, private use (Unicode's Cc, Cs, Co), and the mark of a broken decoding
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ue000-\uf8ff\ufffd\U000f0000-\U000ffffd\U00100000-\U0010fffd]"
)
_MOJIBAKE = re.compile(r"\u00c3[\u0080-\u00bf]|\u00e2\u20ac[\u0153\u009d\u2122\u201c\u0098-\u009d]|\u00c2[\u00a0-\u00bf]")
_NO_ANSWER = re.compile(
    r"n/a|nan|null|error:.*|no answer|answer not found|see (?:the )?(?:solution|above|below).*", re.IGNORECASE
)
_UNFINISHED = re.compile(r"(?:\w,|\\|\b(?:and|or|the|of|with|if|than|by|an))\s*\Z")


def _broken(text: str) -> bool:
    """Marks of a text damaged on its way: an open code fence, \\begin without \\end, UTF-8 read as Latin-1."""
    if "```" in text and text.count("```") % 2:
        return True
    if "\\begin{" in text and text.count("\\begin{") != text.count("\\end{"):
        return True
    return not text.isascii() and _MOJIBAKE.search(text) is not None


def _open_braces(text: str) -> bool:
    """Whether a closing brace or bracket is missing: of an answer made of more than brackets, [0, 1) being closed."""
    if not any(map(str.isalnum, text)):
        return False
    braces = text.count("{") - text.count("\\{") - text.count("}") + text.count("\\}")
    return braces > 0 or sum(map(text.count, "([")) > sum(map(text.count, ")]"))


def _truncated(problem: Problem) -> bool:
    """The question stops in the middle of a sentence, or the solution in its thinking."""
    solution = problem.solution or ""
    return _UNFINISHED.search(problem.prompt[-40:]) is not None or ("<think>" in solution and "</think>" not in solution)


# each filter: what it finds wrong -> True if the problem has it; the first that matches names the reason
FILTERS: dict[str, Callable[[Problem], bool]] = {
    "empty or too short a question": lambda p: len(p.prompt.strip()) < MIN_PROMPT,
    "question too long": lambda p: len(p.prompt) > MAX_PROMPT,
    "no answer": lambda p: not answers.normalise(p.answer),
    "answer too long to be checked": lambda p: len(p.answer) > MAX_ANSWER,
    "unprintable characters": lambda p: _UNPRINTABLE.search(p.prompt + p.answer) is not None,
    "needs a picture": lambda p: _IMAGE.search(p.prompt) is not None,
    "placeholder text": lambda p: _PLACEHOLDER.search(p.prompt) is not None,
    "broken formatting": lambda p: _broken(p.prompt),
    "unparseable answer": lambda p: _open_braces(p.answer) or _NO_ANSWER.fullmatch(p.answer.strip()) is not None,
    "truncated": _truncated,
    "answer stated in the question": lambda p: (
        answers.extract(p.prompt) is not None and answers.equal(answers.extract(p.prompt), p.answer)
    ),
    "solution ends in another answer": lambda p: (
        p.solution is not None and not answers.equal(answers.extract(p.solution, lenient=True), p.answer)
    ),
}
# those that look at the question's form alone: the first step of a funnel; the others come after duplicates have left
FORMAT = ("empty or too short a question", "question too long", "unprintable characters")


def fault(problem: Problem) -> str | None:
    """The first thing wrong with a problem, a key of FILTERS, or None."""
    return next((why for why, wrong in FILTERS.items() if wrong(problem)), None)


def filter_problems(problems: Sequence[Problem]) -> tuple[list[Problem], Counter[str]]:
    """(the problems without a fault, in order; how many were dropped for which reason)."""
    kept, reasons = [], Counter()
    for p in problems:
        why = fault(p)
        if why is None:
            kept.append(p)
        else:
            reasons[why] += 1
    return kept, reasons


def format_fault(problem: Problem, language: str = "any") -> str | None:
    """What is wrong with the question's form: a key of FORMAT, or "not in English" where that is asked for; or None."""
    from shoestring.data.language import foreign

    why = next((why for why in FORMAT if FILTERS[why](problem)), None)
    return "not in English" if why is None and language == "en" and foreign(problem.prompt) else why


def content_fault(problem: Problem, check: Callable[[Problem], None] | None = None) -> str | None:
    """What is wrong with a problem of sound form: a key of FILTERS outside FORMAT, or None.

    check: a grader's; its ValueError makes the answer an unparseable one. Answers compared as text need none.
    """
    why = next((why for why, wrong in FILTERS.items() if why not in FORMAT and wrong(problem)), None)
    if why is None and check is not None and problem.grader != "exact":
        try:
            check(problem)
        except ValueError:
            return "unparseable answer"
    return why
