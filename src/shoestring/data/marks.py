"""What the free steps must know of a problem, as numbers in columns: hashes of its text, keys, numbers and words.

Everything that reads text is done once a problem, here; the rules (dedupe, minhash, decontaminate) work on whole columns.
A column of a few bytes a problem is small enough to decide over millions at once. Hashes have 64 bits: among two million
texts the chance that any two collide is 1e-7.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from shoestring import answers
from shoestring.data.expressions import expression_key
from shoestring.data.keys import problem_key, skeleton
from shoestring.records import Problem

HASHES = ("text", "form", "expression", "operands", "wording", "skeleton", "numbers", "answer")
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Marks:
    """One entry a problem in each array but `words` and `names`.

    text [N]: the question, case and white space aside; form: numbers masked, with the numbers sorted; expression: the
    arithmetic in it (0: none); operands, wording: the key of a procedural question and of prose (data.keys);
    skeleton: numbers masked; numbers: the numbers in order; answer: normalised. All uint64.
    domain [N] int32 indexes `names`. words [W] uint64: a hash a word; those of problem i are words[starts[i]:starts[i+1]].
    """

    text: np.ndarray
    form: np.ndarray
    expression: np.ndarray
    operands: np.ndarray
    wording: np.ndarray
    skeleton: np.ndarray
    numbers: np.ndarray
    answer: np.ndarray
    domain: np.ndarray
    names: tuple[str, ...]
    words: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.text)

    def take(self, rows: np.ndarray) -> Marks:
        """The problems at `rows` (positions, in that order)."""
        lengths = np.diff(self.starts)[rows]
        starts = np.concatenate(([0], np.cumsum(lengths)))
        at = np.repeat(self.starts[:-1][rows] - starts[:-1], lengths) + np.arange(starts[-1])
        columns = {name: getattr(self, name)[rows] for name in (*HASHES, "domain")}
        return Marks(**columns, names=self.names, words=self.words[at], starts=starts)


@lru_cache(maxsize=200_000)
def hash64(text: str) -> int:
    """64 bits of a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _hash(text: str) -> int:
    return hash64.__wrapped__(text)


def mixed(values: np.ndarray) -> np.ndarray:
    """Every bit of a uint64 spread over all of its bits (the finaliser of splitmix64; Steele et al., OOPSLA 2014)."""
    v = values ^ (values >> np.uint64(30))
    v = v * np.uint64(0xBF58476D1CE4E5B9)
    v ^= v >> np.uint64(27)
    v *= np.uint64(0x94D049BB133111EB)
    return v ^ (v >> np.uint64(31))


def paired(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """One hash for a pair of hashes; their order counts."""
    return mixed(left * _ODD + right)


def plain(prompt: str) -> str:
    """The question by which exact duplicates are known: case and white space do not count."""
    return " ".join(prompt.casefold().split())


def mark(problems: Sequence[Problem]) -> Marks:
    """The marks of the problems, in order."""
    columns: dict[str, list[int]] = {name: [] for name in HASHES}
    words: list[int] = []
    starts = [0]
    codes: dict[str, int] = {}
    domain = [codes.setdefault(p.domain, len(codes)) for p in problems]
    for p in problems:
        form, said = skeleton(p.prompt), answers.words(p.prompt)
        numbers = answers.numbers(p.prompt)
        expression = expression_key(p.prompt)
        columns["text"].append(_hash(plain(p.prompt)))
        columns["form"].append(_hash(f"{form} | {' '.join(sorted(numbers))}"))
        columns["expression"].append(_hash(expression) if expression else 0)
        columns["operands"].append(_hash(problem_key(p, True)))
        columns["wording"].append(_hash(problem_key(p, False, said)))
        columns["skeleton"].append(_hash(form))
        columns["numbers"].append(_hash(" ".join(numbers)))
        columns["answer"].append(_hash(answers.normalise(p.answer)))
        words.extend(map(hash64, said))
        starts.append(len(words))
    made = {name: np.array(values, np.uint64) for name, values in columns.items()}
    return Marks(
        **made, domain=np.array(domain, np.int32), names=tuple(codes), words=np.array(words, np.uint64),
        starts=np.array(starts, np.int64),
    )  # fmt: skip


@dataclass(frozen=True)
class Grams:
    """Runs of `size` words: where each begins in `words`, whose it is, and its hash."""

    at: np.ndarray
    row: np.ndarray
    hash: np.ndarray
    size: int


def grams(marks: Marks, size: int) -> Grams:
    """Every run of `size` words that stays inside one problem, in order."""
    lengths = np.diff(marks.starts)
    row = np.repeat(np.arange(len(marks)), lengths)
    at = np.flatnonzero(np.arange(len(marks.words)) + size <= marks.starts[1:][row])
    made = np.zeros(len(at), np.uint64)
    for i in range(size):
        made = made * _ODD + marks.words[at + i]
    return Grams(at, row[at], mixed(made), size)


def once_a_row(found: Grams) -> np.ndarray:
    """Positions in `found` of the first of each (problem, run), so that a run said twice in a problem counts once."""
    return np.unique(paired(found.hash, found.row.astype(np.uint64)), return_index=True)[1]


def among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which values stand in `known` (sorted, distinct)."""
    if not len(known):
        return np.zeros(len(values), bool)
    at = np.searchsorted(known, values)
    return known[np.minimum(at, len(known) - 1)] == values


def joined(parts: Iterable[Marks]) -> Marks:
    """Marks one after another; the codes of domains are made anew."""
    parts = list(parts)
    codes: dict[str, int] = {}
    domain = [np.array([codes.setdefault(n, len(codes)) for n in p.names] or [0], np.int32)[p.domain] for p in parts]
    lengths = np.concatenate([np.diff(p.starts) for p in parts] or [np.zeros(0, np.int64)])
    columns = {name: np.concatenate([getattr(p, name) for p in parts] or [np.zeros(0, np.uint64)]) for name in HASHES}
    return Marks(
        **columns, domain=np.concatenate(domain or [np.zeros(0, np.int32)]), names=tuple(codes),
        words=np.concatenate([p.words for p in parts] or [np.zeros(0, np.uint64)]),
        starts=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
    )  # fmt: skip
