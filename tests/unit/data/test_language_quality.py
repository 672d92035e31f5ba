import sys
import unicodedata

import pytest

from shoestring.data import quality
from shoestring.data.language import foreign
from shoestring.data.sources import bundled, load
from shoestring.records import Problem

GERMAN = "Ein Bauer verkauft auf dem Markt zwölf Äpfel und neun Birnen an seine Nachbarin, die davon drei verschenkt. Wie viele Früchte hat sie nun noch im Korb?"
FRENCH = "Une fermière vend au marché douze pommes et neuf poires à sa voisine, qui en donne trois. Combien de fruits reste-t-il maintenant dans son panier ?"


@pytest.mark.parametrize("text", [GERMAN, FRENCH, "计算三加五的和是多少", "Сколько будет три плюс пять?"])
def test_what_is_not_english(text: str) -> None:
    assert foreign(text)
    assert quality.format_fault(Problem.make(text, "1"), "en") == "not in English"
    assert quality.format_fault(Problem.make(text, "1"), "any") is None


@pytest.mark.parametrize(
    "text",
    ["3 + 5 =", "Let $\\alpha$ and $\\beta$ be the roots of x² - 5x + 6", "", "Zoë's café sells π pies: how many?", "def f(x): return x"],
)
def test_what_may_be(text: str) -> None:
    assert not foreign(text)


def test_what_ships_is_english() -> None:
    for family in bundled.families():
        assert not any(foreign(p.prompt) for p in load(f"bundled:{family}"))


def test_unprintable_is_what_unicode_says() -> None:
    def obvious(c: str) -> bool:
        return c == "\ufffd" or (unicodedata.category(c) in ("Cc", "Cs", "Co") and c not in "\n\r\t")

    codes = [*range(0x3000), *range(0xD700, 0x10000), *range(0xEFFF0, 0xF0010), 0xFFFFD, 0xFFFFE, 0x100000, sys.maxunicode]
    assert all(bool(quality._UNPRINTABLE.search(chr(c))) == obvious(chr(c)) for c in codes)


@pytest.mark.parametrize(
    ("prompt", "answer", "solution", "why"),
    [
        ("What does this print?\n```\nprint(1)", "1", None, "broken formatting"),
        ("Solve \\begin{align} x = 1", "1", None, "broken formatting"),
        ("How much is a cafÃ© au lait?", "1", None, "broken formatting"),
        ("What is 1/2?", "\\frac{1}{2", None, "unparseable answer"),
        ("What is 1/2?", "f(x", None, "unparseable answer"),
        ("What is 1/2?", "N/A", None, "unparseable answer"),
        ("Which interval?", "[0, 1)", None, None),
        ("Which set?", "\\{1, 2\\}", None, None),
        ("A train leaves and", "1", None, "truncated"),
        ("Sum of 3, 4,", "7", None, "truncated"),
        ("Sum of 3 and 4?", "7", "<think>3 + 4 = 7", "truncated"),
        ("Sum of 3 and 4?", "7", "<think>3 + 4</think> 7", None),
    ],
)
def test_content_faults(prompt: str, answer: str, solution: str | None, why: str | None) -> None:
    p = Problem.make(prompt, answer, solution=solution)
    assert quality.content_fault(p) == quality.fault(p) == why


def test_a_graders_complaint_is_an_unparseable_answer() -> None:
    def check(problem: Problem) -> None:
        raise ValueError("no")

    p = Problem.make("What?", "seven", grader="math")
    assert quality.content_fault(p, check) == "unparseable answer"
    assert quality.content_fault(Problem.make("What?", "seven"), check) is None  # compared as text
