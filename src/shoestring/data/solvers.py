"""Worked solutions, computed from the question. One function a family; a new family is one function more.

A solution is short on purpose: a small model learns it from a few hundred examples and each digit is a token of its
own. It shows the steps that lead to the answer and ends in a line "Answer: <answer>". A solver reads the question and
never the gold answer; where its result differs from the gold, `solve` returns None, so a wrong derivation cannot ship.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal

from shoestring.answers import equal

_Worked = tuple[str, str]  # the derivation and the answer it ends in


def _signed(n: int) -> str:
    return f"+{n}" if n >= 0 else str(n)


# --- sums ------------------------------------------------------------------------------------------------------------


def _places(n: int) -> list[int]:
    """347 -> [300, 40, 7]; 40 -> [40, 0]; 0 -> [0]."""
    digits = str(n)
    return [int(d) * 10 ** (len(digits) - 1 - i) for i, d in enumerate(digits)]


def _add(a: int, b: int) -> list[str]:
    """Steps of a + b for a, b >= 0: tens, ones and their sum; larger numbers place by place."""
    if a < 10 and b < 10:
        return [f"{a}+{b}={a + b}"]
    if 10 <= a < 100 and 10 <= b < 100:
        tens, ones = a - a % 10 + b - b % 10, a % 10 + b % 10
        return [f"{a - a % 10}+{b - b % 10}={tens}", f"{a % 10}+{b % 10}={ones}", f"{tens}+{ones}={tens + ones}"]
    steps, total = [], a
    for part in _places(b):
        steps.append(f"{total}+{part}={total + part}")
        total += part
    return steps


def _subtract(a: int, b: int) -> list[str]:
    """Steps of a - b for a >= b >= 0, place by place of b."""
    steps, total = [], a
    for part in _places(b):
        steps.append(f"{total}-{part}={total - part}")
        total -= part
    return steps


def _difference(a: int, b: int) -> list[str]:
    """Steps of a - b for a, b >= 0, where the result may be negative: then b - a is worked and the sign set."""
    if a >= b:
        return _subtract(a, b)
    return [f"{a}<{b}", *_subtract(b, a), f"-{b - a}"]


def _chain_sum(prompt: str) -> _Worked | None:
    match = re.search(r"(\d+(?:\s*[+-]\s*\d+)+)\s*=", prompt)
    if match is None:
        return None
    parts = re.findall(r"[+-]|\d+", match[1])
    total, steps = int(parts[0]), []
    for op, term in zip(parts[1::2], map(int, parts[2::2]), strict=True):
        if total < 0:  # -a + b = b - a, -a - b = -(a + b)
            steps += _difference(term, -total) if op == "+" else [*_add(-total, term), f"-{term - total}"]
        else:
            steps += _add(total, term) if op == "+" else _difference(total, term)
        total = total + term if op == "+" else total - term
    return ", ".join(steps), str(total)


# --- products --------------------------------------------------------------------------------------------------------


def _multiply(a: int, b: int) -> list[str]:
    """Steps of a * b for a, b >= 0: the factor with more trailing zeros or fewer digits is split into its places."""
    if (a < 10 and b < 10) or min(a, b) <= 1:
        return [f"{a}*{b}={a * b}"]
    whole, split = (b, a) if (b >= 10 and a < 10) or (b % 10 and not a % 10) else (a, b)
    if split < 10:  # two digits times one: split the longer
        whole, split = split, whole
    parts = [p for p in _places(split) if p]
    steps = [f"{whole}*{p}={whole * p}" for p in parts]
    total = whole * parts[0]
    for part in parts[1:]:
        steps.append(f"{total}+{whole * part}={total + whole * part}")
        total += whole * part
    return steps


def _products(prompt: str) -> _Worked | None:
    match = re.search(r"(\d+(?:\s*\*\s*\d+)+)", prompt)
    if match is None:
        return None
    factors = [int(f) for f in re.findall(r"\d+", match[1])]
    total, steps = factors[0], []
    for factor in factors[1:]:
        steps += _multiply(total, factor)
        total *= factor
    return ", ".join(steps), str(total)


# --- least common multiple, greatest common divisor ------------------------------------------------------------------


def _after_colon(prompt: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", prompt.rpartition(":")[2])]


def _euclid(a: int, b: int) -> tuple[list[str], int]:
    """Euclid's steps for a >= b > 0, and the greatest common divisor."""
    steps = []
    while b:
        steps.append(f"{a}={a // b}*{b}+{a % b}")
        a, b = b, a % b
    return steps, a


def _lcm(prompt: str) -> _Worked | None:
    found = _after_colon(prompt)
    if len(found) != 2 or not all(found):
        return None
    small, large = sorted(found)
    steps, divisor = _euclid(large, small)
    if divisor == small:
        return ", ".join(steps), str(large)
    count = small // divisor
    if divisor > 1:
        steps.append(f"{small}/{divisor}={count}")
    return ", ".join(steps + _multiply(large, count)), str(large * count)


def _gcd(prompt: str) -> _Worked | None:
    found = _after_colon(prompt)
    if len(found) != 2 or not all(found):
        return None
    small, large = sorted(found)
    steps, divisor = _euclid(large, small)
    return ", ".join(steps), str(divisor)


# --- number formats --------------------------------------------------------------------------------------------------


def _number_format(prompt: str) -> _Worked | None:
    match = re.search(r"pick the (largest|smallest) number of the following candidates:\s*(.+)", prompt)
    if match is None:
        return None
    try:
        values = [Decimal(c.replace(",", "")) for c in match[2].split()]
    except ArithmeticError:
        return None
    if len(values) < 2:
        return None
    plain = []
    for value in values:
        text = format(value, "f")
        plain.append(text.rstrip("0").rstrip(".") + ("" if "." in text and text.rstrip("0")[-1] != "." else ".0"))
    largest = match[1] == "largest"
    best = plain[values.index(max(values) if largest else min(values))]
    if len(plain) > 2:
        return f"{', '.join(plain)}: {match[1]} {best}", best
    wholes, fractions = zip(*(p.split(".") for p in plain), strict=True)
    left, right = (int(wholes[0]), int(wholes[1]))
    reason = f"{left}{'<' if left < right else '>' if left > right else '='}{right}"
    if left == right:
        width = max(map(len, fractions))
        x, y = (f.ljust(width, "0") for f in fractions)
        reason += f", {x}{'<' if x < y else '>'}{y}" if x != y else ""
    return f"{plain[0]} {plain[1]}: {reason}, {match[1]} {best}", best


# --- expressions ------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\d+|[-+*/()]")


def _reduce(tokens: list[str], steps: list[str]) -> int | None:
    """Value of an expression of integers, + - * / and brackets, appending a step an operation; None if not exact."""
    at = 0

    def atom() -> int | None:
        nonlocal at
        if at >= len(tokens):
            return None
        token, at = tokens[at], at + 1
        if token == "-":
            inner = atom()
            return None if inner is None else -inner
        if token == "(":
            value, at = total(), at + 1
            return value
        return int(token) if token.isdigit() else None

    def apply(op: str, a: int | None, b: int | None) -> int | None:
        if a is None or b is None or (op == "/" and (b == 0 or a % b)):
            return None
        value = {"+": a + b, "-": a - b, "*": a * b}.get(op)
        value = a // b if value is None else value
        steps.append(f"{a}{op}{b}={value}")
        return value

    def run(inner: Callable[[], int | None], ops: str) -> int | None:
        nonlocal at
        value = inner()
        while at < len(tokens) and tokens[at] in ops:
            op, at = tokens[at], at + 1
            value = apply(op, value, inner())
        return value

    def term() -> int | None:
        return run(atom, "*/")

    def total() -> int | None:
        return run(term, "+-")

    value = total()
    return value if at == len(tokens) else None


def _basic_arithmetic(prompt: str) -> _Worked | None:
    match = re.search(r"Calculate (.+?)\.?$", prompt.strip())
    if match is None:
        return None
    tokens = _TOKEN.findall(match[1])
    if "".join(tokens) != re.sub(r"\s+", "", match[1]):
        return None
    steps: list[str] = []
    value = _reduce(tokens, steps)
    return None if value is None or not steps else (", ".join(steps), str(value))


# --- number sequences ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Op:
    """One operation of a sequence rule: `apply(x, previous)`, its name, and its step in text."""

    kind: str
    number: int = 0

    def apply(self, x: int, previous: int) -> int:
        if self.kind == "+":
            return x + self.number
        if self.kind == "*":
            return x * self.number
        if self.kind == "//":
            return x // 2
        return x * x if self.kind == "^" else x + previous

    @property
    def name(self) -> str:
        return {"+": _signed(self.number), "*": f"*{self.number}", "//": "//2", "^": "^2"}.get(self.kind, "+previous")

    def step(self, x: int, previous: int) -> str:
        shown = {"previous": _signed(previous), "^": f"*{x}"}.get(self.kind, self.name)
        return f"{x}{shown}={self.apply(x, previous)}"


def _rules() -> Iterator[tuple[_Op, ...]]:
    """Every rule of one operation, then of two, simpler ones first."""
    steps = sorted((n for n in range(-10, 11) if n), key=lambda n: (abs(n), n < 0))
    single = [_Op("+", n) for n in steps] + [_Op("*", 2), _Op("//"), _Op("previous")]
    single += [_Op("*", n) for n in steps if n not in (1, 2)] + [_Op("^")]
    yield from ((op,) for op in single)
    plain = [op for op in single if op != _Op("*", 1)]
    yield from ((a, b) for a in plain for b in plain)


_RULES = tuple(_rules())


def _next(rule: tuple[_Op, ...], x: int, previous: int) -> int:
    for op in rule:
        x = op.apply(x, previous)
    return x


def _number_sequence(prompt: str) -> _Worked | None:
    match = re.fullmatch(r"\s*(-?\d+(?:,\s*-?\d+)+),\s*\?\s*", prompt)
    if match is None:
        return None
    terms = [int(t) for t in match[1].split(",")]
    if len(terms) < 3:
        return None
    before = [0, *terms]  # the first term has no previous one: the generator adds nothing
    pairs = list(zip(terms, terms[1:], before, strict=False))
    rule = next((r for r in _RULES if all(_next(r, x, p) == y for x, y, p in pairs)), None)
    if rule is None:
        return None
    last, previous = terms[-1], terms[-2]
    steps, x = [], last
    for op in rule:
        steps.append(op.step(x, previous))
        x = op.apply(x, previous)
    if len(rule) == 1 and rule[0].kind != "previous":
        seen = " ".join(rule[0].name for _ in pairs)
    else:  # show the rule at work on the last visible step
        shown, y = [], previous
        for op in rule:
            shown.append(op.step(y, terms[-3]))
            y = op.apply(y, terms[-3])
        seen = ", ".join(shown)
    return f"{seen}: {', '.join(steps)}", str(x)


SOLVERS: dict[str, Callable[[str], _Worked | None]] = {
    "basic_arithmetic": _basic_arithmetic,
    "chain_sum": _chain_sum,
    "chain_sum_three": _chain_sum,
    "products": _products,
    "lcm": _lcm,
    "gcd": _gcd,
    "number_format": _number_format,
    "number_sequence": _number_sequence,
}


def solve(domain: str, prompt: str, answer: str) -> str | None:
    """A worked solution that ends in a line "Answer: <answer>", or None.

    None where the family has no solver, the question has another form than the solver knows, the rule is not
    recovered, or the derivation does not end in the gold `answer`. Raises ValueError if the gold is empty.
    """
    solver = SOLVERS.get(domain)
    worked = solver(prompt) if solver is not None else None
    if worked is None or not equal(worked[1], answer):
        return None
    return f"{worked[0]}\nAnswer: {answer.strip()}"
