import math
import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.answers import equal, extract, numbers
from shoestring.data.solvers import SOLVERS, solve

NUMBER_FORMAT = (
    "Your task is to pick the largest/smallest number out of several options.\n\n"
    "Now, pick the {} number of the following candidates: {}"
)


def chain(expression: str) -> str:
    return f"State the final answer to the following arithmetic problem: {expression} ="


@pytest.mark.parametrize(
    ("domain", "prompt", "answer", "solution"),
    [
        ("chain_sum", chain("47 + 38"), "85", "40+30=70, 7+8=15, 70+15=85\nAnswer: 85"),
        ("chain_sum", chain("83 - 47"), "36", "83-40=43, 43-7=36\nAnswer: 36"),
        ("chain_sum", chain("23 - 60"), "-37", "23<60, 60-20=40, 40-3=37, -37\nAnswer: -37"),
        ("chain_sum", chain("6 + 7"), "13", "6+7=13\nAnswer: 13"),
        ("products", "Solve: 6 * 7.", "42", "6*7=42\nAnswer: 42"),
        ("products", "Solve: 6 * 47.", "282", "6*40=240, 6*7=42, 240+42=282\nAnswer: 282"),
        ("products", "Solve: 98 * 93.", "9114", "98*90=8820, 98*3=294, 8820+294=9114\nAnswer: 9114"),
        ("products", "Solve: 20 * 37.", "740", "37*20=740\nAnswer: 740"),
        ("lcm", "Find the LCM of these numbers: 9, 12", "36", "12=1*9+3, 9=3*3+0, 9/3=3, 3*10=30, 3*2=6, 30+6=36\nAnswer: 36"),
        ("lcm", "Find the LCM of these numbers: 4, 16", "16", "16=4*4+0\nAnswer: 16"),
        ("lcm", "Find the LCM of these numbers: 18, 20", "180", "20=1*18+2, 18=9*2+0, 18/2=9, 9*20=180\nAnswer: 180"),
        ("gcd", "Find the GCD of these numbers: 12, 20. Give only", "4", "20=1*12+8, 12=1*8+4, 8=2*4+0\nAnswer: 4"),
        (
            "number_format",
            NUMBER_FORMAT.format("largest", "12.500000 1.307e+01"),
            "13.07",
            "12.5 13.07: 12<13, largest 13.07\nAnswer: 13.07",
        ),
        (
            "number_format",
            NUMBER_FORMAT.format("smallest", "1,200.0 1201.5"),
            "1200.0",
            "1200.0 1201.5: 1200<1201, smallest 1200.0\nAnswer: 1200.0",
        ),
        ("basic_arithmetic", "Calculate -7 - 3 * -5.", "8", "3*-5=-15, -7--15=8\nAnswer: 8"),
        ("basic_arithmetic", "Calculate ( ( 9 / 3 ) * -8 ).", "-24", "9/3=3, 3*-8=-24\nAnswer: -24"),
        ("number_sequence", "8, 11, 14, 17, ?", "20", "+3 +3 +3: 17+3=20\nAnswer: 20"),
        ("number_sequence", "5, 2, 1, 0, ?", "0", "//2 //2 //2: 0//2=0\nAnswer: 0"),
        ("number_sequence", "5, 5, 10, 15, 25, ?", "40", "15+10=25: 25+15=40\nAnswer: 40"),
        ("number_sequence", "-5, -2, 4, 16, ?", "40", "4+4=8, 8*2=16: 16+4=20, 20*2=40\nAnswer: 40"),
    ],
)
def test_solutions(domain: str, prompt: str, answer: str, solution: str) -> None:
    assert solve(domain, prompt, answer) == solution


@given(st.integers(0, 9999), st.sampled_from("+-"), st.integers(0, 9999), st.sampled_from("+-"), st.integers(0, 99))
def test_sums(a: int, first: str, b: int, second: str, c: int) -> None:
    expression = f"{a} {first} {b} {second} {c}"
    gold = a + (b if first == "+" else -b) + (c if second == "+" else -c)
    solution = solve("chain_sum", chain(expression), str(gold))
    assert solution is not None
    check_steps(solution)


@given(st.integers(0, 999), st.integers(0, 999))
def test_products(a: int, b: int) -> None:
    solution = solve("products", f"Solve: {a} * {b}. Give only", str(a * b))
    assert solution is not None
    check_steps(solution)


@given(st.integers(1, 60), st.integers(1, 60))
def test_lcm_and_gcd(a: int, b: int) -> None:
    for domain, gold in (("lcm", math.lcm(a, b)), ("gcd", math.gcd(a, b))):
        solution = solve(domain, f"of these numbers: {a}, {b}", str(gold))
        assert solution is not None
        check_steps(solution)


@given(st.integers(-10, 10), st.integers(-10, 10).filter(bool), st.integers(3, 8))
def test_arithmetic_sequences(start: int, step: int, terms: int) -> None:
    shown = [start + i * step for i in range(terms)]
    solution = solve("number_sequence", ", ".join(map(str, shown)) + ", ?", str(start + terms * step))
    assert solution is None or equal(extract(solution), str(start + terms * step))
    if terms >= 4:
        assert solution is not None


def check_steps(solution: str) -> None:
    """Every "a op b=c" in a derivation is true."""
    for step in re.findall(r"[\d+*/-]+=[\d+*-]+", solution.split("\n")[0]):
        left, right = step.split("=")
        values = [eval(re.sub(r"/+", "//", side)) for side in (left, right)]
        assert values[0] == values[1], solution


def test_never_a_wrong_answer() -> None:
    assert solve("chain_sum", chain("4 + 5"), "10") is None
    assert solve("number_sequence", "1, 9, 2, 77, ?", "5") is None
    assert solve("number_sequence", "8, 11, 14, 17, ?", "21") is None
    for domain in SOLVERS:
        assert solve(domain, "What is the colour of the sky?", "blue") is None
    assert solve("lcm", "of these numbers: 0, 4", "0") is None
    assert solve("unknown", chain("4 + 5"), "9") is None
    with pytest.raises(ValueError, match="gold"):
        solve("chain_sum", chain("4 + 5"), "")


def test_shipped_solutions(shipped) -> None:
    """Every solution that ships is what the solver says now, ends in the gold, and its steps are true."""
    for name, rows in shipped.items():
        if name == "stories":  # its solutions come with the templates (test_problem_files.py)
            continue
        solved = [r for r in rows if r["solution"]]
        for r in rows:
            assert r["solution"] == solve(name, r["prompt"], r["answer"])
        for r in solved:
            assert equal(extract(r["solution"]), r["answer"])
            assert r["solution"].endswith(f"\nAnswer: {r['answer']}")
            assert len(r["solution"]) <= 90
            if name != "number_format":
                check_steps(r["solution"].replace("gcd", ""))
        if name in ("chain_sum", "products", "lcm", "number_format", "gcd"):
            assert len(solved) == len(rows), name
        if name == "number_sequence":
            assert len(solved) >= 0.99 * len(rows)


def test_number_format_answers_are_what_is_shown(shipped) -> None:
    for r in shipped["number_format"]:
        shown = [Decimal(n) for n in numbers(r["prompt"])]
        assert Decimal(r["answer"]) in shown
        assert all(abs(n) <= 1000 and n == round(n, 3) for n in shown)
