"""Augmentation: every new answer is worked out again by other means, and nothing is guessed."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring import answers, rewards
from shoestring.data import augment, sources
from shoestring.data.solvers import SOLVERS
from shoestring.records import Problem

FAMILIES = ("chain_sum", "products", "lcm", "gcd", "basic_arithmetic", "number_format")


def right(text: str, p: Problem) -> bool:
    return rewards.get(p.grader).grade(text, p) == 1.0


@pytest.mark.parametrize("family", FAMILIES)
def test_perturbed_answers_are_the_solvers_and_the_graders(family: str) -> None:
    some = sources.load(f"bundled:{family}", "train")[:25]
    made = augment.perturbed(some, count=2, seed=1)
    assert len(made.problems) >= 25, made.left_out
    for p in made.problems:
        worked = SOLVERS[family](p.prompt)
        assert worked is not None and answers.equal(worked[1], p.answer) and p.solution and right(p.solution, p)
        assert p.source.endswith(" perturbed") and p.licence and p.domain == family
    assert not {p.prompt for p in made.problems} & {p.prompt for p in some}
    assert len({p.id for p in made.problems}) == len(made.problems)
    assert augment.perturbed(some, count=2, seed=1).problems == made.problems


@given(st.lists(st.integers(10, 999), min_size=2, max_size=4), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_perturbed_sums_by_another_way(terms: list[int], seed: int) -> None:
    """The answer against Python's own sum: the solver is not asked."""
    prompt = f"State the final answer to the following arithmetic problem: {' + '.join(map(str, terms))} ="
    p = Problem.make(prompt, str(sum(terms)), domain="chain_sum")
    for new in augment.perturbed([p], 2, seed).problems:
        assert int(new.answer) == sum(map(int, re.findall(r"\d+", new.prompt)))
        assert [len(a) for a in re.findall(r"\d+", new.prompt)] == [len(str(t)) for t in terms]


@given(st.integers(2, 400), st.integers(2, 400), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_perturbed_divisors_by_another_way(a: int, b: int, seed: int) -> None:
    for family, rule in (("gcd", math.gcd), ("lcm", math.lcm)):
        prompt = f"Find it of these 2 numbers: {a}, {b}"
        for new in augment.perturbed([Problem.make(prompt, str(rule(a, b)), domain=family)], 2, seed).problems:
            x, y = map(int, re.findall(r"\d+", new.prompt.rpartition(":")[2]))
            assert int(new.answer) == rule(x, y) and "these 2 numbers" in new.prompt, "the template's own numbers stay"


def test_a_wrong_gold_is_not_multiplied() -> None:
    wrong = Problem.make("Solve: 12 + 30 =", "43", domain="chain_sum")
    other = Problem.make("How many?", "3", domain="stories")
    bound = Problem.make("2, 4, 8, ?", "16", domain="number_sequence")
    made = augment.perturbed([wrong, other, bound])
    assert not made.problems and sum(made.left_out.values()) == 3
    assert set(made.left_out) == {"the solver does not find its answer", "no solver", "its numbers follow from one another"}


options = st.lists(st.text("abcdefghij ", min_size=1, max_size=12).map(str.strip).filter(bool), min_size=2, max_size=8, unique=True)


@given(options, st.data(), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_shuffled_answers_follow_their_options(texts: list[str], data: st.DataObject, seed: int) -> None:
    at = data.draw(st.integers(0, len(texts) - 1))
    lines = [f"{chr(65 + i)}) {t}" for i, t in enumerate(texts)]
    p = Problem.make("Which one?\n" + "\n".join(lines) + "\nSay the letter.", chr(65 + at), grader="choice", licence="mit")
    made = augment.shuffled([p], seed)
    if not made.problems:  # normalised alike, such as "a b" and "ab"
        assert made.left_out == {"two options are alike": 1}
        return
    (new,) = made.problems
    shown = dict(re.findall(r"^([A-Z])\) (.*)$", new.prompt, re.MULTILINE))
    assert shown[new.answer] == texts[at] and sorted(shown.values()) == sorted(texts)
    assert new.prompt != p.prompt and new.prompt.startswith("Which one?\nA) ") and new.prompt.endswith("\nSay the letter.")
    assert right(f"Answer: {new.answer}", new) and new.licence == "mit"


@pytest.mark.parametrize(
    ("prompt", "answer", "why"),
    [
        ("Pick\nA) one\nB) all of the above", "A", "options speak of one another"),
        ("Pick\nA) one\nB) two\nC) A and B", "A", "options speak of one another"),
        ("Pick\nA) one\nB) None of these", "A", "options speak of one another"),
        ("Pick\nA) one\nmore of it\nB) two", "A", "options speak of one another"),
        ("Pick\nA) one\nC) two", "A", "no options A, B, C …"), ("Pick\nA) one", "A", "no options A, B, C …"),
        ("Pick\nA) one\nB) One", "A", "two options are alike"), ("Pick\nA) one\nB) two", "one", "the answer is no letter of its options"),
    ],
)  # fmt: skip
def test_not_shuffled(prompt: str, answer: str, why: str) -> None:
    made = augment.shuffled([Problem.make(prompt, answer, grader="choice")])
    assert not made.problems and made.left_out == {why: 1}


def test_paraphrases_are_answered_again() -> None:
    problems = [Problem.make(f"Tom has {n} apples and eats 2. How many are left?", str(n - 2), domain="stories") for n in range(5, 11)]
    rng = random.Random(0)
    asked: list[str] = []

    def ask(texts: Sequence[str]) -> list[str]:
        asked.extend(texts)
        out = []
        for t in texts:
            n = int(next(x for x in answers.numbers(t) if x != "2"))
            if t.startswith("Rewrite"):
                said = {5: f"Of {n} apples 2 are eaten; how many remain?", 6: "Of 7 apples 2 are eaten.", 7: "", 8: t.partition("\n\n")[2]}
                out.append(said.get(n, f"After Tom eats 2 of {n} apples, what remains? ({rng.random() > 2})"))
            else:
                out.append(f"Answer: {n - 2 if n != 9 else 99}")
        return out

    made = augment.paraphrased(problems, ask, right)
    assert [p.answer for p in made.problems] == ["3", "8"] and all(p.source.endswith("paraphrased") for p in made.problems)
    assert made.left_out == {"other numbers": 1, "no other words": 2, "answered otherwise": 1}
    assert len(asked) == 6 + 3, "only what may be kept is answered"
    with pytest.raises(ValueError, match="gave 0 replies to 6 requests"):
        augment.paraphrased(problems, lambda texts: [], right)
    with pytest.raises(ValueError, match="attempts = 0"):
        augment.paraphrased(problems, ask, right, attempts=0)
