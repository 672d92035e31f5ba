"""1 if the stated final answer is mathematically the gold, else 0: fractions, roots, sets, intervals, tuples, matrices.

Equal texts and plain numbers are decided here; words ("even", "no solution") are compared as words, because an algebra
parser reads "listen" and "silent" as the same product of six letters; the rest goes to math-verify in processes that
can be killed (`_pool`). Needs the extra `math`. The answer must be marked ("Answer: 7", \\boxed{7}, tags), and the last
mark counts.

An answer of more than 2,000 characters or nested more than 40 deep is not handed on ("hostile"); one that takes more
than two seconds of processor time or two GiB pays nothing ("timeout", "memory").
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from shoestring import answers
from shoestring.records import Problem, UserError
from shoestring.rewards import _pool
from shoestring.rewards._quantity import number, numbers
from shoestring.rewards._verdict import Verdict

LONGEST, DEEPEST = 2000, 40
_WRAP = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|textnormal)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s'’-]+[^\W\d_]+)*")
_MEANS = {"pi", "infinity", "infty", "inf", "oo", "nan", "sqrt", "exp", "log", "ln", "sin", "cos", "tan"}


def plain_words(text: str) -> str | None:
    """The words of an answer that is nothing but words, in one form; None where it is, or may be, mathematics.

    "\\text{Even}" and "even" are words, "ab" (a product) is not unless it stands in \\text, "\\text{(C)}" is "c".
    """
    bare = text.strip().strip("$").strip()
    inner = _WRAP.sub(r"\1", bare)
    if "\\" in inner or "{" in inner:
        return None
    wrapped = inner != bare and not _WRAP.sub("", bare).strip(" .$()")
    form = answers.normalise(inner).strip("() ")
    if wrapped and re.fullmatch(r"[a-z]", form):
        return form
    if _WORDS.fullmatch(form) is None or form in _MEANS:
        return None
    longest = max(len(w) for w in re.split(r"[\s'’-]+", form))
    return form if wrapped or longest >= 3 else None


def _depth(text: str) -> int:
    depth = deepest = 0
    for c in text:
        if c in "({[":
            depth += 1
            deepest = max(deepest, depth)
        elif c in ")}]":
            depth -= 1
    return max(deepest, text.count("^"), text.count("\\frac") // 2)


def _cheap(text: str) -> bool:
    """True if a gold is a number, several or words; False if only algebra can tell. Raises ValueError for what is neither."""
    if not answers.normalise(text):
        raise ValueError(f"the gold answer {text[:40]!r} is empty")
    if len(text) > LONGEST or _depth(text) > DEEPEST:
        raise ValueError(f"the gold answer {text[:40]!r}... is too long or too deep to be compared")
    return plain_words(text) is not None or number(text) is not None or numbers(text) is not None


_refusals: dict[str, str] = {}  # gold → why math-verify cannot read it, "" if it can


def _refuse(gold: str) -> None:
    """Raises ValueError if a gold is known to be unreadable."""
    if _refusals.get(gold):
        raise ValueError(f"the gold answer {gold!r} cannot be graded: {_refusals[gold]}")


def _note(gold: str, said: dict[str, Any]) -> None:
    """Remember what the worker said of a gold."""
    if len(_refusals) > 200_000:
        _refusals.clear()
    _refusals[gold] = str(said.get("refused", said.get("stopped", "")))


def _tidy(text: str) -> str:
    """Without the things that mean nothing and that math-verify stumbles over: thin spaces, dollars around, a full stop."""
    text = re.sub(r"\\[,!;:]|\{,\}(?=\d{3})", "", text).strip()
    text = re.sub(r"\\(?:mathrm|text|mathit|operatorname)\s*\{\s*(e|i|pi)\s*\}", r"{\1}", text)  # else cut off as a unit
    text = re.sub(r"(?<!\\)\{(\d{1,3}(?:,\d{3})+)\}", lambda m: m[0].replace(",", ""), text)
    while text[-1:] in (".", "$") or text[:1] == "$":
        text = text.rstrip(".$").lstrip("$").strip()
    return text


def _need() -> None:
    if importlib.util.find_spec("math_verify") is None:
        raise UserError("the grader 'math' needs math-verify: pip install 'shoestring[math]', or use 'exact' or 'numeric'")


def check(problem: Problem) -> None:
    """Raises ValueError if the gold is neither a number, nor words, nor mathematics that math-verify reads."""
    gold = problem.answer
    if _cheap(gold):
        return
    if gold not in _refusals:
        _need()
        _note(gold, _pool.shared("math").run([{"gold": _tidy(gold)}])[0])
    _refuse(gold)


def grade(text: str, problem: Problem) -> float:
    """1.0 or 0.0. Raises ValueError as `check` does, UserError where math-verify is missing and needed."""
    return score_many([text], [problem])[0].score or 0.0


def _value(text: str) -> Fraction | None:
    """A plain number; "12.5%" is left to math-verify, which takes it for 12.5 and for 0.125."""
    return None if "%" in text else number(text)


def _members(stated: str, gold: str) -> bool | None:
    """Are two sets, tuples or intervals of numbers the same? None where algebra must tell."""
    mine, theirs = numbers(stated), numbers(gold)
    if mine is None or theirs is None:
        return None
    if mine[0] and theirs[0] and len(mine[1]) == len(theirs[1]) == 2 and {"oo", "-oo"} & {*theirs[1]}:
        mine, theirs = _open(mine), _open(theirs)  # only an interval has an infinite end
        if mine[0] != theirs[0]:
            return False
    if mine[0] != theirs[0]:
        return None
    same = mine[1] == theirs[1] if mine[0] else set(mine[1]) == set(theirs[1])
    return True if same else None if any(_endless(x) for x in theirs[1]) else False


def _open(found: tuple[str, list[Fraction | str]]) -> tuple[str, list[Fraction | str]]:
    """An interval with its infinite ends open, however they were written."""
    (left, right), (low, high) = found
    return ("(" if low == "-oo" else left) + (")" if high == "oo" else right), [low, high]


def _endless(value: Fraction | str) -> bool:
    """True if a value has no end in decimals (1/3)."""
    if isinstance(value, str):
        return False  # an infinity
    bottom = value.denominator
    while bottom % 2 == 0 or bottom % 5 == 0:
        bottom //= 2 if bottom % 2 == 0 else 5
    return bottom > 1


def _equal(stated: Fraction, gold: Fraction) -> bool:
    """Exactly; a gold without an end in decimals (1/3) to six digits, as the algebra does."""
    return stated == gold or (_endless(gold) and abs(stated - gold) <= abs(gold) / 500_000)


def _here(stated: str | None, gold: str) -> Verdict | None:
    """The verdict, where no algebra is needed for it."""
    if stated is None:
        return Verdict(0.0, "no answer")
    if len(stated) > LONGEST or _depth(stated) > DEEPEST:
        return Verdict(0.0, "hostile", f"{len(stated)} characters, nested {_depth(stated[:100_000])} deep")
    words = plain_words(gold)
    if words is not None:
        said = plain_words(stated) or answers.normalise(stated).strip("() ")
        return Verdict(1.0, "right") if said == words else Verdict(0.0, "wrong")
    if not answers.normalise(stated):
        return Verdict(0.0, "unreadable")
    mine, theirs = _value(stated), _value(gold)
    if mine is not None and theirs is not None:
        return Verdict(1.0, "right") if _equal(mine, theirs) else Verdict(0.0, "wrong")
    same = False if plain_words(stated) is not None else _members(stated, gold)
    if same is not None:
        return Verdict(1.0, "right") if same else Verdict(0.0, "wrong")
    return None


def score_many(texts: Sequence[str], problems: Sequence[Problem], **_: Any) -> list[Verdict]:
    """One verdict a text; what needs algebra is worked on by all cores. Raises as `grade` does."""
    out: list[Verdict | None] = []
    tasks: dict[tuple[str, str | None], list[int]] = {}  # (gold, answer); without an answer the gold itself is looked at
    for i, (text, problem) in enumerate(zip(texts, problems, strict=True)):
        cheap, stated = _cheap(problem.answer), answers.extract(text)
        out.append(_here(stated, problem.answer))
        if out[i] is None:
            tasks.setdefault((problem.answer, stated), []).append(i)
        elif not cheap and problem.answer not in _refusals:
            tasks.setdefault((problem.answer, None), [])
        _refuse(problem.answer)
    if tasks:
        _need()
        sent = [{"gold": _tidy(g)} | ({} if a is None else {"answer": _tidy(a)}) for g, a in tasks]
        for ((gold, stated), at), said in zip(tasks.items(), _pool.shared("math").run(sent), strict=True):
            if "refused" in said and _cheap(gold):
                said = {"unreadable": True}  # the gold was read here; this answer cannot be compared with it
            elif stated is None or "refused" in said:
                _note(gold, said)
                _refuse(gold)
            for i in at:
                out[i] = _verdict(said)
    return out  # pyright: ignore[reportReturnType]  # whatever was None is a task


def _verdict(said: dict[str, Any]) -> Verdict:
    if "stopped" in said:
        return Verdict(0.0, said["stopped"])
    if said.get("unreadable"):
        return Verdict(0.0, "unreadable")
    return Verdict(said["score"], "right" if said["score"] == 1.0 else "wrong")
