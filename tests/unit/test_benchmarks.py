"""The bench's arithmetic, verdicts and workload: no torch, no other tools."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import workload  # noqa: E402
from benchmarks.protocol import Worker  # noqa: E402
from benchmarks.results import Must, Row, medians, missed, print_table, same_share, write  # noqa: E402


def row(better: str = "higher", ours: float = 4.0, peer: float | None = 2.0, **rest: object) -> Row:
    return Row("x", "tokens/s", better, ours, peer, **rest)  # pyright: ignore[reportArgumentType]


def test_a_ratio_above_one_is_better_whichever_way_the_unit_runs() -> None:
    assert row("higher").ratio == 2 and row("lower").ratio == 0.5
    assert row(peer=None).ratio is None and row(peer=0.0).ratio is None and row("lower", ours=0.0).ratio is None


@pytest.mark.parametrize(
    ("found", "met"),
    [
        (row(), None),
        (row(must=Must(ratio_at_least=2.0)), True),
        (row(must=Must(ratio_at_least=2.01)), False),
        (row(peer=None, must=Must(ratio_at_least=1.0)), False),  # nothing to compare with is not a pass
        (row("lower", must=Must(ratio_at_least=1.0)), False),
        (row(peer=None, must=Must(ours_at_most=4.0)), True),
        (row(peer=None, must=Must(ours_at_most=3.9)), False),
        (row(ours=math.nan, must=Must(ours_at_most=3.9)), False),
        (row(ours=math.nan, must=Must(ratio_at_least=0.1)), False),
        (row(sound=False), False),  # fast and wrong is a miss, asked for or not
        (row(sound=False, must=Must(ratio_at_least=1.0)), False),
    ],
)
def test_verdicts(found: Row, met: bool | None) -> None:
    assert found.met is met
    assert missed([found]) == ([found] if met is False else [])


def test_medians_over_blocks_are_what_one_bad_block_cannot_move() -> None:
    r = medians("x", "s", "lower", [1.0, 1.0, 50.0], [3.0, 3.0, 0.1], must=Must(ratio_at_least=2.9))
    assert (r.ours, r.peer, r.ratio, r.met) == (1.0, 3.0, 3.0, True)
    assert r.runs == {"ours": [1.0, 1.0, 50.0], "peer": [3.0, 3.0, 0.1]}
    alone = medians("x", "s", "lower", [0.2, 0.1, 0.3], [])
    assert (alone.ours, alone.peer, alone.ratio) == (0.2, None, None) and "peer" not in alone.runs


def test_identical_tokens_count_by_position_and_missing_ones_differ() -> None:
    assert same_share([[1, 2], [3, 4]], [[1, 2], [3, 9]]) == 0.75
    assert same_share([[1]], [[1, 2]]) == 0.5
    assert same_share([], []) == 1.0


def test_the_file_and_the_table_say_the_same(tmp_path: Path) -> None:
    rows = [
        row(must=Must(ratio_at_least=2.3), peer_name="TRL", peer_version="1.16.0", correctness="equal tokens"),
        row("lower", 0.123456, None, must=Must(ours_at_most=0.4)),
    ]
    machine = {"cpu": "some", "cores": 2}
    write(rows, machine, tmp_path / "new" / "cpu.json")
    data = json.loads((tmp_path / "new" / "cpu.json").read_text())
    keys = {"what", "ours", "peer", "peer_name", "peer_version", "unit", "ratio", "must", "runs", "correctness", "machine"}
    assert all(keys <= set(d) and d["basis"] == "measured" and d["machine"] == machine for d in data)
    assert [d["met"] for d in data] == [False, True]
    assert data[0]["must"] == {"ratio_at_least": 2.3} and data[1]["must"] == {"ours_at_most": 0.4}
    assert data[1]["ours"] == 0.1235 and data[1]["peer"] is None
    out = io.StringIO()
    print_table(rows, machine, Console(file=out, width=100))
    text = out.getvalue()
    assert all(x in text for x in ("2.00×", "≥ 2.3×", "missed", "≤ 0.4", "met", "TRL (1.16.0)", "equal tokens", "cores 2"))


def words(messages: list[dict[str, str]]) -> int:
    return sum(len(m["content"].split()) for m in messages)


def test_chats_are_seeded_varied_and_solved() -> None:
    made = list(workload.chats(60, words))
    assert made == list(workload.chats(60, words)) != list(workload.chats(60, words, seed=1))
    sizes = sorted(map(words, made))
    assert sizes[0] < 80 and sizes[-1] > 500 and 200 < sizes[30] < 450
    assert all([m["role"] for m in c] == ["system", "user", "assistant"] for c in made)


@given(st.integers(0, 2**32), st.integers(0, 40))
def test_a_story_ends_in_the_number_of_its_last_line(seed: int, events: int) -> None:
    import random
    import re

    question, answer = workload.story(random.Random(seed), events)
    *steps, last = answer.splitlines()
    assert len(steps) == events + 1 and question.endswith("in the end?")
    for a, op, b, c in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", answer):
        assert int(c) == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) // int(b)}[op]
    assert re.findall(r"\d+", last)[-1] in re.findall(r"\d+", steps[-1])


def test_rewards_take_the_last_number() -> None:
    assert workload.reward("3 + 4 is 7.", "7") == 1 and workload.reward("7, no: 8", "7") == 0
    assert workload.reward("none", "7") == 0 and workload.reward("it is -7", "7") == 0
    assert all(str(eval(m[0]["content"].split("?")[0][8:])) == a for m, a in workload.sums(20))


def test_batches_go_around_in_order() -> None:
    assert [workload.batch("abcde", step, 2) for step in range(3)] == [["a", "b"], ["c", "d"], ["e", "a"]]


WORKER = """
import sys
from benchmarks.protocol import Channel
c = Channel()
print("noise of a library")
c.send(ready=True)
while (x := c.receive()) is not None:
    if x["do"] == "die":
        sys.exit("out of luck")
    c.send(twice=2 * x["n"])
"""


def test_workers_answer_in_turns_and_a_dead_one_says_why() -> None:
    command, environment = [sys.executable, "-c", WORKER], {"PYTHONPATH": str(ROOT)}
    with Worker("a", command, environment) as a, Worker("b", command, environment) as b:
        assert a.ready["ready"] and a.ready["peak_gib"] > 0
        assert [w.ask("block", n=n)["twice"] for n in (1, 2) for w in (a, b)] == [2, 2, 4, 4]
        with pytest.raises(RuntimeError, match=r"(?s)b ended with exit code 1:.*out of luck"):
            b.ask("die")
        assert a.ask("block", n=5)["twice"] == 10
