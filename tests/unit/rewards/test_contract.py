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
        ["Answer: 85", "it is 85.", "40 + 45 = 85", "Answer: 85 dollars", "Answer: $85.00 months.", "\\boxed{85 km}"],
        [
            "Answer: 58",
            "85, no, 58",
            "eighty-five",
            "Answer: 85 million",
            "Answer: 85 or 7 dollars",
            "Answer: 58 dollars",
            "Answer: 85 dollars each",
            "Answer: 85 halves",
        ],
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
    "math": (
        "\\frac{3}{4}",
        {},
        ["Answer: 0.75", "\\boxed{\\frac{6}{8}}", "Answer: $\\frac34$", "\\boxed{1} no, \\boxed{75\\%}"],
        [
            "Answer: 4/3",
            "0.75",
            "\\boxed{}",
            "\\boxed{\\frac{3}{4}",
            "<think>Answer: 3/4",
            "Answer: 3/4 or 1/4",
            "Answer: three quarters",
        ],
        ["", "$", "\\frac{", "?"],
    ),
    "gym": (
        "7",
        {"family": "chain_sum"},
        ["Answer: 7", "<answer>7</answer>", "<think>8</think><answer> 7 </answer>"],
        ["Answer: 8", "7", "<think>Answer: 7", "<answer></answer>"],
        ["", "  "],
    ),
    "code": (
        '[{"input": "2", "output": "4"}, {"input": "3", "output": "6"}]',
        {"seconds": 2},
        ["```python\nprint(int(input()) * 2)\n```"],
        ["print(4)", "```python\nprint(4)\n```", "```python\nwhile\n```"],
        ["", "[]", "4", '[{"output": 4}]'],
    ),
    "format": ("7", {}, ["Answer: no"], ["7", "Answer: 7\nAnswer: 7", "<think>Answer: 7"], []),
    "length": ("7", {}, ["7", "no"], ["", " "], []),
    "overlong": ("7", {"max": 4, "buffer": 0}, ["7", "a b c d", ""], ["a b c d e"], []),
}
NEEDS = {"math": "math_verify", "gym": "reasoning_gym"}
OF_TEXT = {"exact", "lenient", "numeric", "choice", "math", "gym", "code"}  # the others pay a form, not an answer


def problem(name: str, gold: str | None = None) -> Problem:
    case = CASES[name]
    return Problem.make("q", case[0] if gold is None else gold, grader=name, grader_args=case[1])


def test_every_module_has_a_case() -> None:
    assert rewards.names() == sorted(CASES)


def runnable(name: str) -> str:
    """Skips where what a grader stands on is not here."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"needs {NEEDS[name]}: pip install 'shoestring[{name}]'")
    if name == "code":
        try:
            rewards.get(name).check(problem(name))
        except UserError as error:
            pytest.skip(str(error))
    return name


@pytest.mark.parametrize("name", rewards.names())
class TestContract:
    def test_pays_what_is_right_only(self, name: str) -> None:
        reward = rewards.get(runnable(name))
        reward.check(problem(name))
        for text in CASES[name][2]:
            assert reward.grade(text, problem(name)) == 1.0, text
        for text in CASES[name][3]:
            assert reward.grade(text, problem(name)) == 0.0, text

    def test_a_gold_that_cannot_be_read_never_pays(self, name: str) -> None:
        reward = rewards.get(runnable(name))
        for gold in CASES[name][4]:
            with pytest.raises(ValueError):
                reward.check(problem(name, gold))
            for text in ("", f"Answer: {gold}", gold, *CASES[name][2]):
                with pytest.raises(ValueError):
                    reward.grade(text, problem(name, gold))

    def test_garbage_gets_nothing(self, name: str) -> None:
        reward = rewards.get(runnable(name))
        if name not in OF_TEXT:
            return
        for text in ("", "\x00\ud800", "Answer: \ud800", "}}}{{{", "\\boxed{", "Answer:" * 50, "\u202e\ufffd", "١٢٣"):
            assert reward.grade(text, problem(name)) == 0.0, repr(text)

    def test_a_megabyte_ends_fast(self, name: str) -> None:
        reward = rewards.get(runnable(name))
        for text in ("Answer: " + "(x" * 5 * 10**5, "\\boxed{" + "1" * 10**6 + "}"):  # more of them in test_answers
            start = time.process_time()
            score = reward.grade(text, problem(name))
            assert score == 0.0 or name not in OF_TEXT
            assert time.process_time() - start < 3


@pytest.mark.parametrize("name", rewards.names())
def test_many_at_once_say_the_same_as_one_by_one(name: str) -> None:
    if name == "length":
        return  # an answer's score depends on its group there: test_shapes
    texts = [*CASES[name][2], *CASES[name][3]]
    found = rewards.score(rewards.get(runnable(name)), texts, [problem(name)] * len(texts))
    assert [v.score for v in found] == [rewards.get(name).grade(t, problem(name)) for t in texts]
    assert all(v.reason for v in found)


@given(st.text(max_size=100), st.sampled_from(sorted(CASES.keys() - NEEDS - {"code"})))
def test_any_text_has_a_score(text: str, name: str) -> None:
    assert 0.0 <= rewards.get(name).grade(text, problem(name)) <= 1.0


def test_unknown_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'exact'"):
        rewards.get("exakt")
    with pytest.raises(UserError, match="choice, code, exact"):
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
