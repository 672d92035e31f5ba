"""Every module in rewards/ keeps the contract. A new reward adds one row to CASES, or fails here."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring import rewards
from shoestring.records import Problem, UserError

# grader -> (gold, arguments, texts that are paid, texts that are not, golds that cannot be graded)
CASES = {
    "exact": (
        "1,234.5",
        {},
        ["so\nAnswer: 1234.50", "\\boxed{$1234.5$}", "<think>Answer: 3</think><answer>1,234.5</answer>"],
        ["1234.5", "Answer: 1234.51", "Answer: 1234.5 or 7", "Answer: 1234.5\nAnswer: 2", "<think>Answer: 1234.5"],
        ["", "  ", "$"],
    ),
    "lenient": (
        "85",
        {},
        ["Answer: 85", "it is 85.", "40 + 45 = 85"],
        ["Answer: 58", "85, no, 58", "eighty-five"],
        ["", "..."],
    ),
    "numeric": (
        "0.75",
        {"tolerance": 0.01},
        ["Answer: 0.759", "Answer: 3/4", "\\boxed{0.74}"],
        ["Answer: 0.761", "0.75", "Answer: three quarters", "Answer: 3/0", "Answer: nan", "Answer: inf"],
        ["", "many", "1/0", "nan", "inf"],
    ),
    "choice": (
        "(B)",
        {"options": 4},
        ["Answer: B", "Answer: (b) because", "\\boxed{B}", "B", "(B).", "Answer: B) the cat", "**Answer:** option B"],
        ["Answer: A", "Answer: Both", "Answer: B or not\nAnswer: C", "I like B", "Answer:", "Answer: 2"],
        ["", "BC", "2", "E", "(?)"],
    ),
}


def problem(name: str, gold: str | None = None) -> Problem:
    case = CASES[name]
    return Problem.make("q", case[0] if gold is None else gold, grader=name, grader_args=case[1])


def test_every_module_has_a_case() -> None:
    assert rewards.names() == sorted(CASES)


@pytest.mark.parametrize("name", rewards.names())
class TestContract:
    def test_pays_what_is_right_only(self, name: str) -> None:
        reward = rewards.get(name)
        reward.check(problem(name))
        for text in CASES[name][2]:
            assert reward.grade(text, problem(name)) == 1.0, text
        for text in CASES[name][3]:
            assert reward.grade(text, problem(name)) == 0.0, text

    def test_a_gold_that_cannot_be_read_never_pays(self, name: str) -> None:
        reward = rewards.get(name)
        for gold in CASES[name][4]:
            with pytest.raises(ValueError):
                reward.check(problem(name, gold))
            for text in ("", f"Answer: {gold}", gold, *CASES[name][2]):
                with pytest.raises(ValueError):
                    reward.grade(text, problem(name, gold))

    def test_garbage_gets_nothing(self, name: str) -> None:
        reward = rewards.get(name)
        for text in ("", "\x00\ud800", "Answer: \ud800", "}}}{{{", "\\boxed{", "Answer:" * 50, "\u202e\ufffd", "١٢٣"):
            assert reward.grade(text, problem(name)) == 0.0, repr(text)

    def test_a_megabyte_ends_fast(self, name: str) -> None:
        reward = rewards.get(name)
        for text in (
            "9" * 10**6,
            "Answer: " + "x " * 5 * 10**5,
            "Answer: " + "(" * 10**6,
            "\\boxed{" + "1" * 10**6 + "}",
        ):
            start = time.process_time()
            assert reward.grade(text, problem(name)) == 0.0
            assert time.process_time() - start < 3


@given(st.text(max_size=100), st.sampled_from(sorted(CASES)))
def test_any_text_has_a_score(text: str, name: str) -> None:
    assert 0.0 <= rewards.get(name).grade(text, problem(name)) <= 1.0


def test_unknown_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'exact'"):
        rewards.get("exakt")
    with pytest.raises(UserError, match="choice, exact"):
        rewards.get("zzzzzz")


def test_numeric_arguments() -> None:
    reward = rewards.get("numeric")
    near = Problem.make("q", "1000", grader_args={"relative": "0.01"})
    assert reward.grade("Answer: 1010", near) == 1.0
    assert reward.grade("Answer: 1010.001", near) == 0.0
    assert reward.grade("Answer: 1000.0", Problem.make("q", "1000")) == 1.0
    for arguments in ({"tolerance": -1}, {"tolerance": "x"}, {"relative": None}):
        with pytest.raises(ValueError, match="grader argument"):
            reward.check(Problem.make("q", "1", grader_args=arguments))


def test_choice_arguments() -> None:
    with pytest.raises(ValueError, match="options"):
        rewards.get("choice").check(Problem.make("q", "A", grader_args={"options": 1}))
    assert rewards.get("choice").grade("Answer: A train", Problem.make("q", "A")) == 0.0
    assert rewards.get("choice").grade("Answer: A because", Problem.make("q", "A")) == 1.0
