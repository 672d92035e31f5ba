"""The journal survives a tear at any byte; the pace bounds the next step; prompts are built as stated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.records import Problem
from shoestring.stages.context import Journal, Pace, read_lines, write_json, write_lines
from shoestring.stages.prompts import choose_shots, few_shot, from_row, plain, to_row, worked

CHUNKS: dict[str, list[dict[str, Any]]] = {
    "0": [{"text": "ä 你好\n\u2028", "n": 1}, {"text": "b", "n": 2}],
    "1": [],
    "2": [{"chunk": "not a closing line", "n": 3}],
}


def filled(path: Path) -> bytes:
    journal = Journal(path)
    for name, rows in CHUNKS.items():
        journal.append(name, rows)
    assert journal.chunks == CHUNKS
    return path.read_bytes()


def test_round_trip(tmp_path: Path) -> None:
    filled(tmp_path / "sub" / "j.jsonl")
    again = Journal(tmp_path / "sub" / "j.jsonl")
    assert again.chunks == CHUNKS and again.rows() == [r for rows in CHUNKS.values() for r in rows]
    assert Journal(tmp_path / "none.jsonl").chunks == {}


def test_torn_at_every_byte(tmp_path: Path) -> None:
    """Whole chunks are read, the torn one is gone, and what is appended next is read too."""
    path = tmp_path / "j.jsonl"
    raw = filled(path)
    ends = [0]
    for name in CHUNKS:
        closing = json.dumps({"chunk": name}).encode() + b"\n"
        ends.append(raw.index(closing) + len(closing))
    assert ends[-1] == len(raw)
    for size in range(len(raw) + 1):
        path.write_bytes(raw[:size])
        journal = Journal(path)
        whole = sum(e <= size for e in ends[1:])
        assert journal.chunks == dict(list(CHUNKS.items())[:whole]), size
        assert path.stat().st_size == ends[whole]
        journal.append("next", [{"x": size}])
        assert Journal(path).chunks == {**journal.chunks, "next": [{"x": size}]}


@pytest.mark.parametrize("rubbish", [b"\x00\x00\x00\x00\n", b"\xff\xfe{\n", b"17\n", b"{]\n", b'"text"\n'])
def test_rubbish_after_a_power_cut_is_dropped(tmp_path: Path, rubbish: bytes) -> None:
    path = tmp_path / "j.jsonl"
    raw = filled(path)
    path.write_bytes(raw + rubbish + b'{"chunk": "late"}\n')
    assert Journal(path).chunks == CHUNKS
    assert path.read_bytes() == raw


def test_a_chunk_is_written_again_by_its_name(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append("a", [{"x": 1}])
    journal.append("a", [{"x": 2}])
    assert Journal(tmp_path / "j.jsonl").chunks == journal.chunks == {"a": [{"x": 2}]}


@given(st.lists(st.floats(0, 1e4), max_size=20))
def test_pace_is_above_each_of_the_last_steps(seen: list[float]) -> None:
    pace = Pace(60.0)
    assert pace.upper() == 60.0
    for s in seen:
        pace.add(s)
        assert pace.upper() > s
    if seen:
        assert pace.upper() == pytest.approx(1.5 * max(seen[-6:]) + 1.0)


def test_a_slow_step_is_forgotten_after_six() -> None:
    pace = Pace(60.0)
    pace.add(100.0)
    for _ in range(6):
        assert pace.upper() == 151.0
        pace.add(2.0)
    assert pace.upper() == 4.0


def test_files_are_whole_or_absent(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "deep" / "rows.jsonl", [{"a": "ü"}, {"b": 2}])
    assert read_lines(path) == [{"a": "ü"}, {"b": 2}]

    def failing() -> Any:
        yield {"a": 1}
        raise RuntimeError("killed here")

    with pytest.raises(RuntimeError):
        write_lines(path, failing())
    assert read_lines(path) == [{"a": "ü"}, {"b": 2}]
    assert json.loads(write_json(tmp_path / "x.json", {"p": tmp_path}).read_text()) == {"p": str(tmp_path)}


def problems(n: int = 6) -> list[Problem]:
    return [Problem.make(f"q{i}", str(i), domain="ab"[i % 2], solution=f"so\nAnswer: {i}" if i else None) for i in range(n)]


def test_prompts() -> None:
    a, b, c = problems(3)
    assert plain(a) == [{"role": "user", "content": "q0"}]
    assert [(m["role"], m["content"]) for m in few_shot(c, [a, b])] == [
        ("user", "q0"), ("assistant", "Answer: 0"), ("user", "q1"), ("assistant", "so\nAnswer: 1"), ("user", "q2"),
    ]  # fmt: skip
    assert worked(a) == "Answer: 0" and few_shot(a, []) == plain(a)


def test_shots_are_a_function_of_the_seed_and_of_their_own_family() -> None:
    many = problems(40)
    found = choose_shots(many, 3, 1)
    assert {d: len(p) for d, p in found.items()} == {"a": 3, "b": 3}
    assert all(p.domain == d for d, ps in found.items() for p in ps)
    assert found == choose_shots(many, 3, 1) != choose_shots(many, 3, 2)
    assert len(choose_shots(many[:4], 9, 0)["a"]) == 2


def test_problems_survive_a_file(tmp_path: Path) -> None:
    rows = [to_row(p, pass_rate=0.5) for p in problems()]
    again = [from_row(r) for r in read_lines(write_lines(tmp_path / "p.jsonl", rows))]
    assert again == problems()
