"""1 if a program passes its tests, else 0. Linux; programs are held by `_sandbox`, and refused where they cannot be.

The gold answer is the tests, as a JSON list. Each is {"input": text, "output": text}: the program is run, given the
input, and what it prints is compared line by line, trailing blanks aside; or {"call": "f(2, 3)", "value": 5}: the
expression is evaluated after the program, and its value is compared as a Python literal; or the string
"assert f(2, 3) == 5", which says the same. What is expected never enters the sandbox, so a program cannot pass by
ending early, by redefining a comparison or by reading the answer.

The program is the last ```python block after any thinking. Grader arguments: `seconds` a test (default 4), `memory_mib`
(default 512), `partial = true` (pays the share of tests that passed), `tolerance` (of floats, default 0).
"""

from __future__ import annotations

import ast
import json
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from shoestring.records import Problem
from shoestring.rewards import _sandbox
from shoestring.rewards._verdict import Verdict

LONGEST = 100_000
_BLOCK = re.compile(r"```[ \t]{0,4}(?:python3?|py)?[ \t]{0,4}\r?\n(.*?)\n[ \t]{0,8}```", re.DOTALL | re.IGNORECASE)
_REASONS = {"timeout": "timeout", "memory": "memory", "denied": "hostile", "flood": "hostile", "killed": "crashed"}


def program(text: str) -> str | None:
    """The last block of Python in a text, after any thinking; None if there is none."""
    close = text.rfind("</think>")
    if close < 0 and "<think>" in text:
        return None
    found = None
    for match in _BLOCK.finditer(text[close + len("</think>") :] if close >= 0 else text):
        found = match[1]
    return found


def _asserted(line: str) -> tuple[str, Any]:
    """The call and the value of "assert CALL == LITERAL". Raises ValueError if it is anything else."""
    try:
        statement = ast.parse(line.strip()).body[0]
        assert isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Compare)
        (operator,), (right,) = statement.test.ops, statement.test.comparators
        assert isinstance(operator, ast.Eq)
        return ast.unparse(statement.test.left), ast.literal_eval(right)
    except (SyntaxError, ValueError, AssertionError, IndexError, RecursionError, MemoryError):
        raise ValueError(f"the test {line[:60]!r} is not of the form: assert CALL == LITERAL") from None


def _number(problem: Problem, name: str, default: float, most: float) -> float:
    value = problem.grader_args.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"grader argument {name} = {value!r} must be a number from 0 to {most:g}")
    return value


def _tests(problem: Problem) -> list[tuple[dict[str, str], Any]]:
    """(what the sandbox is given, what must come out) a test. Raises ValueError if the gold is not such a list."""
    try:
        rows = json.loads(problem.answer)
    except (ValueError, RecursionError):
        raise ValueError(f"the gold answer {problem.answer[:40]!r} is not JSON: it must be a list of tests") from None
    if not isinstance(rows, list) or not rows:
        raise ValueError("the gold answer must be a list of at least one test")
    out: list[tuple[dict[str, str], Any]] = []
    for row in rows:
        if isinstance(row, str):
            call, value = _asserted(row)
            out.append(({"call": call}, value))
        elif isinstance(row, dict) and isinstance(row.get("output"), str) and isinstance(row.get("input", ""), str):
            out.append(({"input": row.get("input", "")}, row["output"]))
        elif isinstance(row, dict) and isinstance(row.get("call"), str) and "value" in row:
            out.append(({"call": row["call"]}, row["value"]))
        else:
            raise ValueError(f"the test {str(row)[:60]!r} has neither input and output, nor call and value")
    return out


def _limits(problem: Problem) -> tuple[float, int, float]:
    seconds, memory = _number(problem, "seconds", 4, 600), int(_number(problem, "memory_mib", 512, 1 << 20))
    if seconds <= 0 or memory < 64:
        raise ValueError("grader arguments: seconds must be above zero and memory_mib at least 64")
    if not isinstance(problem.grader_args.get("partial", False), bool):
        raise ValueError(f"grader argument partial = {problem.grader_args['partial']!r} must be true or false")
    return seconds, memory, _number(problem, "tolerance", 0.0, 1e9)


def check(problem: Problem) -> None:
    """Raises ValueError if the gold is not a list of tests, UserError where programs cannot be held."""
    _tests(problem)
    _limits(problem)
    _sandbox.confined()


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _same(mine: Any, wanted: Any, tolerance: float) -> bool:
    """Equal as Python says, floats within the tolerance."""
    if isinstance(wanted, list | tuple) and type(mine) is type(wanted):
        return len(mine) == len(wanted) and all(_same(a, b, tolerance) for a, b in zip(mine, wanted, strict=True))
    if isinstance(mine, int | float) and isinstance(wanted, float) and tolerance:
        return math.isclose(mine, wanted, rel_tol=tolerance, abs_tol=tolerance)
    return mine == wanted


def _passed(case: dict[str, str], ran: _sandbox.Ran, wanted: Any, tolerance: float) -> bool:
    if ran.end != "ok":
        return False
    if "input" in case:
        return _lines(ran.output) == _lines(wanted)
    try:
        return _same(ast.literal_eval(ran.output), wanted, tolerance)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return False  # not a literal


def _one(text: str, problem: Problem, confine: bool) -> Verdict:
    tests, (seconds, memory, tolerance) = _tests(problem), _limits(problem)
    source = program(text)
    if source is None:
        return Verdict(0.0, "no answer")
    if len(source) > LONGEST:
        return Verdict(0.0, "hostile", f"{len(source)} characters")
    outcome = _sandbox.run(source, [case for case, _ in tests], seconds, memory, confine)
    passed = [_passed(c, r, w, tolerance) for (c, w), r in zip(tests, outcome.cases, strict=True)]
    share = sum(passed) / len(passed)
    detail = f"{sum(passed)} of {len(passed)} tests" + ("" if outcome.layers else ", unsandboxed")
    stopped = next((_REASONS[r.end] for r in outcome.cases if r.end in _REASONS), None)
    score = share if problem.grader_args.get("partial") else float(share == 1.0)
    return Verdict(score, stopped or ("right" if score == 1.0 else "partial" if score else "wrong"), detail)


def grade(text: str, problem: Problem) -> float:
    """1.0 or 0.0, or the share of tests with `partial`. Raises as `check` does."""
    return score_many([text], [problem])[0].score or 0.0


def score_many(texts: Sequence[str], problems: Sequence[Problem], **_: Any) -> list[Verdict]:
    """One verdict a text; as many programs at once as there are cores. Raises as `check` does."""
    for problem in problems:
        _tests(problem)
        _limits(problem)
    confine = _sandbox.confined()
    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        return list(pool.map(_one, texts, problems, [confine] * len(texts)))


def examples(problem: Problem) -> tuple[list[str], list[str]]:
    """Right is the worked solution, where the problem carries one; wrong are programs that end early or do nothing."""
    good = [problem.solution] if problem.solution and program(problem.solution) else []
    bad = ["", "pass", "```python\npass\n```", "```python\nimport os\nos._exit(0)\n```", "```python\nraise SystemExit\n```"]
    return good, bad
