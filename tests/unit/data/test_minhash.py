"""Near duplicates against slow, obvious twins: sets of words for the overlap, Python integers for the minima."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring import answers
from shoestring.data import dedupe, minhash, templates
from shoestring.data.marks import mark
from shoestring.records import Problem

VOCABULARY = ["river", "stone", "lantern", "basket", "copper", "meadow", "thimble", "cotton", "harvest", "window", "button", "ladder"]
TEXTS = st.lists(st.sampled_from(VOCABULARY + ["3", "17"]), min_size=0, max_size=40).map(lambda w: " ".join(["q", *w]))
NONE = np.zeros(0, np.uint64)


def problems(*texts: str, domain: str = "") -> list[Problem]:
    return [Problem.make(t, "7", domain=domain) for t in texts]


def runs(text: str) -> set[tuple[str, ...]]:
    words = answers.words(text)
    return {tuple(words[i : i + minhash.SHINGLE]) for i in range(len(words) - minhash.SHINGLE + 1)}


def jaccard(a: str, b: str) -> float:
    return len(runs(a) & runs(b)) / max(1, len(runs(a) | runs(b)))


def prose(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"w{rng.randrange(900)}" for _ in range(n)]


@settings(max_examples=25, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_minima_are_those_of_python_integers(texts: list[str]) -> None:
    marks = mark(problems(*texts))
    found = minhash.shingles(marks, NONE)
    signed = minhash.sign(marks, NONE)
    for row in range(len(texts)):
        own = [int(h) for h in found.hash[found.row == row]]
        assert len(own) == len(set(own)) == len(runs(texts[row]))
        assert signed.told[row] == (len(own) >= minhash.MIN_SHINGLES)
        for i in range(minhash.MINIMA if own else 0):
            least = min((h * int(minhash._FACTOR[i]) + int(minhash._SHIFT[i])) % 2**64 >> 32 for h in own)
            assert signed.sketch[row, i] == least % 256


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXTS, min_size=2, max_size=12))
def test_copies_against_all_pairs(texts: list[str]) -> None:
    """What leaves has a near copy before it by any measure; what is all but equal to an earlier one leaves."""
    numbers = [answers.numbers(t) for t in texts]
    of = minhash.copies(minhash.sign(mark(problems(*texts)), NONE))
    for i, first in enumerate(of):
        if first >= 0:
            assert first < i and numbers[first] == numbers[i] and jaccard(texts[i], texts[first]) > 0.5
        elif len(runs(texts[i])) >= minhash.MIN_SHINGLES:
            assert not any(jaccard(texts[i], texts[e]) == 1 and numbers[e] == numbers[i] for e in range(i))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=14))
def test_pairs_against_dictionaries(rows: list[list[int]]) -> None:
    expected = set()
    for band in range(6):
        buckets: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            before = buckets.setdefault(row[band], [])
            expected |= {(before[0], i), (before[-1], i)} if before else set()
            before.append(i)
    found = minhash.pairs(np.array(rows, np.uint64)[:, b] for b in range(6))
    assert [tuple(p) for p in found.tolist()] == sorted(expected, key=lambda p: (p[1], p[0]))


@pytest.mark.parametrize("changed", [0, 2, 6, 20])
def test_overlap_is_estimated(changed: int) -> None:
    words = prose(200)
    other = [*words]
    for i in range(changed):
        other[7 + i * 9] = "changed"
    a, b = " ".join(words), " ".join(other)
    signed = minhash.sign(mark(problems(a, b)), NONE)
    estimate = minhash.overlap(signed.sketch[:1], signed.sketch[1:])[0]
    assert estimate == pytest.approx(jaccard(a, b), abs=0.12)


def test_a_word_changed_at_the_end_is_a_near_copy_other_numbers_are_not() -> None:
    words = prose(60)
    text = " ".join(words)
    same, other, new = text + " indeed", text + " 5", " ".join(prose(60, 1))
    found = problems(text, same, other, new)
    assert dedupe.near(found) == [found[0], found[2], found[3]]
    unlike = Problem.make(same, "8")  # another answer: another problem, or a wrong gold
    assert dedupe.near([found[0], unlike]) == [found[0], unlike]


def test_a_template_does_not_make_copies() -> None:
    head = " ".join(prose(80))
    rng = random.Random(2)
    family = problems(*(f"{head} {' '.join(rng.sample(VOCABULARY, 10))}" for _ in range(60)), domain="family")
    marks = mark(family)
    assert len(minhash.templates(marks.take(templates.drawn(marks)))) >= 70
    assert dedupe.near(family) == family
    few = family[:10]  # too few to have a template: here they are copies
    assert len(dedupe.near(few)) < 10


def test_templates_are_drawn_alike_in_any_order() -> None:
    family = problems(*(" ".join(prose(12, i)) for i in range(1500)), domain="d")
    forth, back = mark(family), mark(family[::-1])
    assert len(templates.drawn(forth)) == templates.DRAW_DOMAIN
    assert set(forth.text[templates.drawn(forth)]) == set(back.text[templates.drawn(back)])
    small = mark(family[: templates.COUNT])
    assert len(templates.drawn(small)) == 0


def test_nothing_and_short_questions() -> None:
    assert dedupe.near([]) == []
    short = problems("what is it", "what is it now")
    assert dedupe.near([*short, *short]) == [*short, *short]
