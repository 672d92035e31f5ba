"""Drop repeated problems: the same text, the same operands in another order, nearly the same text. The first stays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shoestring.data import minhash, templates
from shoestring.data.keys import problem_keys
from shoestring.data.marks import mark, plain
from shoestring.records import Problem


def repeats(text: np.ndarray) -> np.ndarray:
    """Position of the first equal entry, for each entry that repeats an earlier one; -1 for one that is new. [N]"""
    _, first, back = np.unique(text, return_index=True, return_inverse=True)
    at = first[back]
    return np.where(at == np.arange(len(text)), -1, at)


def exact(problems: Sequence[Problem]) -> list[Problem]:
    """Problems whose text is new, case and white space aside; order kept.

    The domain does not count: one question listed under two domains is one question.
    """
    codes: dict[str, int] = {}
    text = np.array([codes.setdefault(plain(p.prompt), len(codes)) for p in problems], np.int64)
    return [p for p, of in zip(problems, repeats(text), strict=True) if of < 0]


def by_operands(problems: Sequence[Problem]) -> list[Problem]:
    """Problems whose key is new (3 + 5 and 5 + 3 are one problem); order kept.

    Word problems of a family without a template are compared by all of their words, not by their numbers alone.
    """
    codes: dict[str, int] = {}
    keys = np.array([codes.setdefault(k, len(codes)) for k in problem_keys(problems)], np.int64)
    return [p for p, of in zip(problems, repeats(keys), strict=True) if of < 0]


def near(problems: Sequence[Problem]) -> list[Problem]:
    """Problems that are no near copy of an earlier one (data.minhash says what that is); order kept."""
    marks = mark(problems)
    known = minhash.templates(marks.take(templates.drawn(marks)))
    return [p for p, of in zip(problems, minhash.copies(minhash.sign(marks, known)), strict=True) if of < 0]
