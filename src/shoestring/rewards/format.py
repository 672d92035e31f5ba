"""1 if an answer has the wanted form, whatever it says, else 0. To be mixed with a grader, at a small weight.

Grader argument `form`: "answer" (default: a marked answer stands after any thinking, once), "think" (the text is
<think>thinking</think> and an answer, both not empty, the tags once each), "boxed" (one closed \\boxed{} after any
thinking).
"""

from __future__ import annotations

import re

from shoestring import answers
from shoestring.records import Problem

FORMS = ("answer", "think", "boxed")
_MARK = re.compile(r"\banswer[ \t]{0,8}\*{0,2}[ \t]{0,8}:|\\boxed\{|<answer>", re.IGNORECASE)


def _form(problem: Problem) -> str:
    form = problem.grader_args.get("form", "answer")
    if form not in FORMS:
        raise ValueError(f"grader argument form = {form!r} must be one of {', '.join(FORMS)}")
    return form


def check(problem: Problem) -> None:
    """Raises ValueError if the form is unknown. The gold is not read."""
    _form(problem)


def grade(text: str, problem: Problem) -> float:
    """1.0 or 0.0. Raises ValueError as `check` does."""
    form = _form(problem)
    opened, closed = text.count("<think>"), text.count("</think>")
    if form == "think":
        thinking, tag, rest = text.strip().partition("</think>")
        well = opened == closed == 1 and thinking.startswith("<think>") and bool(tag)
        return float(well and bool(thinking.removeprefix("<think>").strip()) and bool(rest.strip()))
    stated = answers.extract(text)
    body = text[text.rfind("</think>") + len("</think>") :] if closed else text
    if form == "boxed":
        return float(stated is not None and body.count("\\boxed{") == 1)
    return float(stated is not None and len(_MARK.findall(body)) == 1)


def examples(problem: Problem) -> tuple[list[str], list[str]]:
    """Texts with and without the form."""
    good = {"answer": "so\nAnswer: x", "think": "<think>so</think>x", "boxed": "so \\boxed{x}"}[_form(problem)]
    return [good], ["", "x", "<think>so", "Answer:", "\\boxed{", "</think>"]
