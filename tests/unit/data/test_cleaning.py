"""Deduplication, decontamination, format filters, traps, the funnel."""

import pytest

from shoestring.data import dedupe, quality, traps
from shoestring.data.decontaminate import decontaminate, expression_key
from shoestring.data.funnel import Funnel
from shoestring.data.keys import procedural_families
from shoestring.data.sources import load
from shoestring.records import Problem


def sums(*pairs: tuple[int, int], domain: str = "sum") -> list[Problem]:
    return [Problem.make(f"State the sum of {a} + {b} =", str(a + b), domain=domain) for a, b in pairs]


def prose(text: str, answer: str = "7", domain: str = "") -> Problem:
    return Problem.make(text, answer, domain=domain)


STORY = (
    "A farmer walks slowly through three muddy fields and counts {} sheep, {} goats and one sleepy dog named Bruno; "
    "how many woolly animals did she see before breakfast?"
)
OTHER = "Mei folds {} paper cranes each morning and {} in the evening while listening to the radio; how many a day?"


def test_dedupe_exact() -> None:
    a, b, c = prose("What is  IT?"), prose("what is it?"), prose("what is that?")
    assert dedupe.exact([a, b, c, a]) == [a, c]


def test_dedupe_by_operands() -> None:
    problems = sums((3, 5), (5, 3), (3, 6), (4, 4))
    assert dedupe.by_operands(problems) == [problems[0], *problems[2:]]
    stories = [prose(STORY.format(3, 5)), prose(OTHER.format(3, 5))]
    assert procedural_families(stories) == set()
    assert dedupe.by_operands(stories) == stories


def test_decontaminate_by_operands() -> None:
    training, evaluation = sums((3, 5), (3, 6), (9, 1)), sums((5, 3), (1, 1))
    result = decontaminate(training, evaluation)
    assert result.kept == training[1:]
    assert result.dropped == {training[0].id: "same problem"}


def test_decontaminate_under_another_label() -> None:
    training, evaluation = sums((3, 5), (3, 6), domain="mine"), sums((5, 3), (1, 1))
    assert decontaminate(training, evaluation).kept == training[1:]


def test_decontaminate_by_word_runs() -> None:
    leak = "Here is a puzzle for you: " + STORY.format(8, 2) + " Answer quickly."
    training = [prose(leak), prose(OTHER.format(4, 2))]
    result = decontaminate(training, [prose(STORY.format(3, 5))])
    assert result.kept == training[1:]
    assert "shares 8 words" in result.dropped[training[0].id]


def test_a_shared_template_does_not_wipe_the_pool() -> None:
    template = (
        "Your task is to pick the largest number out of several options. Your output should be only the number of "
        "interest and nothing else at all. Now, pick from the following candidates: {} {}"
    )
    training = [prose(template.format(i, i + 1), domain="pick") for i in range(0, 200, 2)]
    evaluation = [prose(template.format(i, i + 1), domain="pick") for i in range(200, 220, 2)]
    assert decontaminate(training, evaluation).kept == training


@pytest.mark.parametrize(
    "family", ["chain_sum", "products", "lcm", "number_format", "number_sequence", "gcd", "syllogism"]
)
def test_what_ships_is_clean(family: str) -> None:
    train, test = load(f"bundled:{family}", "train"), load(f"bundled:{family}", "test")
    assert decontaminate(train, test).kept == train
    assert decontaminate([*train[:50], *test], test).kept == train[:50]
    assert quality.filter_problems(train)[0] == train


@pytest.mark.parametrize(
    ("problem", "why"),
    [
        (prose("?"), "empty or too short a question"),
        (prose("x" * 9000), "question too long"),
        (prose("What?", "..."), "no answer"),
        (prose("What?", "x" * 300), "answer too long to be checked"),
        (prose("Wh\ufffdat?"), "unprintable characters"),
        (prose("What is in the picture below?"), "needs a picture"),
        (prose("TODO write this"), "placeholder text"),
        (prose("What is 3+4? Answer: 7"), "answer stated in the question"),
        (Problem.make("What is 3+4?", "7", solution="3+4=8"), "solution ends in another answer"),
        (Problem.make("What is 3+4?", "7", solution="3+4=7"), None),
    ],
)
def test_format_filters(problem: Problem, why: str | None) -> None:
    assert quality.fault(problem) == why
    kept, reasons = quality.filter_problems([problem])
    assert (kept, dict(reasons)) == (([problem], {}) if why is None else ([], {why: 1}))


def family(name: str, answers: str) -> list[Problem]:
    return [Problem.make(f"{name} {i}", a, domain=name) for i, a in enumerate(answers)]


def test_trap_verdicts() -> None:
    problems = family("yes", "1" * 6 + "2345") + family("half", "1" * 4 + "234567") + family("fair", "0123456789")
    found = {t.family: t for t in traps.inspect(problems)}
    assert {name: t.verdict for name, t in found.items()} == {"yes": "refuse", "half": "warn", "fair": "ok"}
    assert (found["yes"].answer, found["yes"].share, found["yes"].n) == ("1", 0.6, 10)
    assert "60% of 10" in found["yes"].message and "leave it out" in found["yes"].message
    assert found["fair"].message == ""
    above = traps.inspect(problems, {"half": 0.5, "yes": 0.9})
    assert [t.verdict for t in above] == ["ok", "ok", "refuse"]
    assert traps.inspect(problems, {"half": 0.35})[1].verdict == "warn"
    assert traps.inspect(family("few", "11"))[0].verdict == "warn"


def test_traps_among_what_ships() -> None:
    verdicts = {
        name: traps.inspect(load(f"bundled:{name}"))[0].verdict
        for name in (
            "letter_counting",
            "syllogism",
            "gcd",
            "chain_sum",
            "products",
            "lcm",
            "number_format",
            "number_sequence",
        )
    }
    assert verdicts.pop("letter_counting") == verdicts.pop("syllogism") == "refuse"
    assert verdicts.pop("gcd") != "ok"
    assert set(verdicts.values()) == {"ok"}


def test_funnel() -> None:
    funnel = Funnel()
    funnel.start(100, "five families")
    funnel.add("quality", 100, 90, Funnel.reasons({"no answer": 2, "too long": 8, "odd": 0}))
    funnel.add("select", 90, 40, "s1")
    assert funnel.rows() == [
        {"step": "collected", "before": 100, "after": 100, "why": "five families"},
        {"step": "quality", "before": 100, "after": 90, "why": "8 too long, 2 no answer"},
        {"step": "select", "before": 90, "after": 40, "why": "s1"},
    ]
    assert len(funnel) == 3 and list(funnel)[2]["after"] == 40
    for before, after in ((40, 41), (40, -1), (41, 3)):
        with pytest.raises(ValueError, match="funnel step"):
            funnel.add("wrong", before, after, "")
    assert Funnel.reasons({}) == "nothing dropped"


def test_one_expression_is_one_problem_across_families() -> None:
    same = ["arithmetic problem: 3 + 5 =", "Calculate 5 - -3.", "Calculate ( -5 + 3 )."]
    assert len({expression_key(p) for p in same}) == 1
    assert expression_key("Solve: 3 * 5.") != expression_key("problem: 3 + 5 =")
    assert expression_key("the LCM of these numbers: 3, 5") is None
    train = [Problem.make("Calculate 5 - -3.", "8", domain="basic_arithmetic")]
    test = [Problem.make("arithmetic problem: 3 + 5 =", "8", domain="chain_sum")]
    assert decontaminate(train, test).kept == []
