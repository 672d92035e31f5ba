"""Programs in the sandbox: right ones are paid, and nothing that they try reaches the machine."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from shoestring import rewards
from shoestring.records import Problem, UserError
from shoestring.rewards import _sandbox

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux: the grader 'code' refuses to run anywhere else")
code = rewards.get("code")
IO = [{"input": "2 3\n", "output": "5\n"}, {"input": "10 -3\n", "output": "7"}]
CALLS = ["assert f(2, 3) == 5", {"call": "f(1, 1)", "value": 2}]
held = pytest.mark.skipif(
    sys.platform.startswith("linux") and not {*_sandbox.NEEDED} <= {*_sandbox.layers()}, reason="this kernel gives no sandbox (namespaces and Landlock); the grader 'code' then refuses to run"
)


def verdict(source: str, tests: object = IO, **arguments: object) -> rewards.Verdict:
    problem = Problem.make("q", json.dumps(tests), grader="code", grader_args={"seconds": 1, **arguments})
    return code.score_many([f"so\n```python\n{source}\n```"], [problem])[0]


@held
class TestHeld:
    def test_right_programs(self) -> None:
        assert verdict("a, b = map(int, input().split())\nprint(a + b)").score == 1.0
        assert verdict("def f(a, b):\n    return a + b", CALLS).score == 1.0
        libraries = "import math, heapq, json, re, decimal, collections, functools\n"
        assert verdict(libraries + "print(sum(map(int, input().split())))").score == 1.0

    def test_wrong_programs(self) -> None:
        assert verdict("def f(a, b): return a - b", CALLS).score == 0.0
        assert verdict("def f(a, b): return 5", CALLS).detail == "1 of 2 tests"
        assert verdict("def f(a, b): return 5", CALLS, partial=True).score == 0.5
        assert verdict("def f(", CALLS).reason == "wrong"
        assert verdict("print([1, 2])", [{"call": "1", "value": "1"}]).score == 0.0

    @pytest.mark.parametrize(
        "source",
        [
            "import os; os._exit(0)", "raise SystemExit", "def f(a, b): raise SystemExit(0)", "def f(a, b): import os; os._exit(0)",
            "class E:\n    def __eq__(s, o): return True\ndef f(a, b): return E()",
            "import builtins\nbuiltins.repr = lambda x: '5'\ndef f(a, b): return 0",
            "import os\nfor fd in range(3, 30):\n    try: os.write(fd, b'ok')\n    except OSError: pass\nos._exit(0)",
            "import sys\nsys.stdout.write('5')\nf = lambda a, b: None",
        ],
    )  # fmt: skip
    def test_ways_out_pay_nothing(self, source: str) -> None:
        """Expected values stay outside, so ending early or lying about equality gains nothing (both tests must pass)."""
        assert verdict(source, CALLS).score == 0.0

    @pytest.mark.parametrize(
        "source",
        [
            "print(open('/etc/passwd').read())", "import os; print(os.listdir('/'))", f"print(open({__file__!r}).read())",
            "open('x', 'w')", "import os; os.fork()", "import subprocess; subprocess.run(['ls'])", "import os; os.kill(1, 9)",
            "import os; os.kill(os.getppid(), 9)", "import socket; socket.socket()", "import os; os.execv('/bin/sh', ['sh'])",
            "print('x' * 2**21)",
        ],
    )  # fmt: skip
    def test_what_is_forbidden_is_counted_as_hostile(self, source: str) -> None:
        found = verdict(source)
        assert (found.score, found.reason) == (0.0, "hostile")

    def test_forbidden_things_do_not_happen_where_the_program_hides_its_failure(self) -> None:
        seen = "import os\ntry: print(len(os.listdir('/proc')))\nexcept Exception as e: print(type(e).__name__)"
        assert verdict(seen, [{"output": "PermissionError"}]).score == 1.0
        assert verdict("import os\nprint(sorted(os.environ))", [{"output": "['LANG', 'PATH']"}]).score == 1.0

    def test_endless_and_greedy_programs_end(self) -> None:
        start = time.monotonic()
        assert verdict("while True: pass", IO[:1], seconds=0.3).reason == "timeout"
        assert verdict("x = [0] * 10**10").reason == "memory"
        assert verdict("import time; time.sleep(99)", IO[:1], seconds=0.2).reason == "timeout"
        assert verdict("import ctypes; ctypes.string_at(0)").reason == "crashed"
        assert time.monotonic() - start < 20

    def test_a_fork_bomb_leaves_nothing(self) -> None:
        before = len(os.listdir("/proc"))
        assert verdict("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", IO[:1], seconds=0.3).reason == "timeout"
        assert len(os.listdir("/proc")) < before + 50

    def test_the_layers_engage(self) -> None:
        outcome = _sandbox.run("print(1)", [{"input": ""}], 2, 256)
        assert {"namespaces", "landlock"} <= set(outcome.layers) and outcome.cases[0].output == "1\n"
        open_file = "print(len(open('/etc/passwd').read()) > 0)"
        assert _sandbox.run(open_file, [{"input": ""}], 2, 256).cases[0].end == "denied"
        assert _sandbox.run(open_file, [{"input": ""}], 2, 256, confine=False).cases[0].output == "True\n"  # the twin without


def test_without_a_sandbox_it_refuses(monkeypatch) -> None:
    monkeypatch.setattr(_sandbox, "layers", lambda: ("seccomp",))
    monkeypatch.delenv(_sandbox.PERMISSION, raising=False)
    with pytest.raises(UserError, match="unsandboxed.*namespaces and landlock.*SHOESTRING_UNSANDBOXED=1"):
        verdict("print(1)")
    monkeypatch.setenv(_sandbox.PERMISSION, "1")
    found = verdict("a, b = map(int, input().split())\nprint(a + b)")
    assert found.score == 1.0 and "unsandboxed" in found.detail
    assert verdict("while True: pass", IO[:1], seconds=0.3).reason == "timeout"


def test_the_program_is_the_last_block_after_thinking() -> None:
    assert code.program("```python\n1\n```\n```py\n2\n```") == "2"
    assert code.program("<think>```python\n1\n```") is None
    assert code.program("<think>```python\n1\n```</think>none") is None
    assert code.program("```\n1\n```") == "1" and code.program("print(1)") is None


@pytest.mark.parametrize(
    "gold",
    ["", "[]", "{}", "x", '["assert f(2)"]', '["assert f(2) == g(3)"]', '["import os"]', '[{"input": "x"}]', "[" * 10**5],
)
def test_golds_that_are_no_tests(gold: str) -> None:
    with pytest.raises(ValueError):
        code.check(Problem.make("q", gold, grader="code"))


def test_jail_stands_alone() -> None:
    """It runs without the package (and without site-packages), so it must import the standard library only."""
    text = Path(_sandbox.__file__).with_name("_jail.py").read_text()
    assert "shoestring" not in text.replace("shoestring-", "")
