"""Rows as conversations: each format read, each mistake named by class and remedy."""

from __future__ import annotations

from typing import Any

import pytest

from shoestring.data import formats
from shoestring.data.formats import BadRow, Chat, detect, read

U, A, S = ({"role": r, "content": c} for r, c in (("user", "hi"), ("assistant", "yo"), ("system", "be brief")))
TOOL = {"role": "tool", "content": "4"}

GOOD: list[tuple[str, dict[str, Any], Chat]] = [
    ("messages", {"messages": [S, U, A, U, A]}, Chat((S, U, A, U, A))),
    ("messages", {"messages": [U, A, TOOL, A]}, Chat((U, A, TOOL, A))),
    ("prompt_completion", {"prompt": "hi", "completion": "yo"}, Chat((U, A), plain=True)),
    ("prompt_completion", {"prompt": [U], "completion": [A]}, Chat((U, A))),
    ("alpaca", {"instruction": "hi", "input": "", "output": "yo"}, Chat((U, A))),
    ("alpaca", {"instruction": "hi", "output": "yo"}, Chat((U, A))),
    ("alpaca", {"instruction": "add", "input": "1 2", "output": "yo"}, Chat(({"role": "user", "content": "add\n\n1 2"}, A))),
    ("sharegpt", {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}, Chat((U, A))),
]


@pytest.mark.parametrize(("format", "row", "chat"), GOOD)
def test_reads(format: str, row: dict[str, Any], chat: Chat) -> None:
    assert detect(row) == format
    assert read(row, format) == chat


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("messages", {"messages": []}, "empty-content", "empty list"),
    ("messages", {"messages": "hi"}, "wrong-type", "must be a list"),
    ("messages", {"messages": [U, 3]}, "wrong-type", r"messages\[1\] must be an object"),
    ("messages", {"messages": [{"role": "user"}]}, "missing-column", r"messages\[0\] lacks 'content'"),
    ("messages", {"messages": [{"role": "usr", "content": "x"}]}, "unknown-role", "'usr'; known: system, user"),
    ("messages", {"messages": [U, {"role": "assistant", "content": " "}]}, "empty-content", r"messages\[1\].content is empty"),
    ("messages", {"messages": [U, {"role": "assistant", "content": None}]}, "wrong-type", "must be text, not NoneType"),
    ("messages", {"messages": [A, U]}, "roles", r"messages\[0\]: assistant stands first"),
    ("messages", {"messages": [U, U, A]}, "roles", r"messages\[1\]: user stands after user"),
    ("messages", {"messages": [U, A, A]}, "roles", "assistant stands after assistant"),
    ("messages", {"messages": [U, S, A]}, "roles", "system stands after user"),
    ("messages", {"messages": [U, A, U]}, "no-answer", "ends with user"),
    ("messages", {"messags": [U]}, "missing-column", r"no column 'messages' \(columns: messags\)"),
    ("prompt_completion", {"prompt": "hi", "completion": 3}, "wrong-type", "completion must be text, not int"),
    ("prompt_completion", {"prompt": "", "completion": "x"}, "empty-content", "prompt is empty"),
    ("prompt_completion", {"prompt": [U], "completion": "x"}, "wrong-type", "both"),
    ("alpaca", {"instruction": "x", "input": 4, "output": "y"}, "wrong-type", "input must be text"),
    ("alpaca", {"instruction": "x", "input": "", "output": ""}, "empty-content", "output is empty"),
    ("sharegpt", {"conversations": [{"from": "dog", "value": "x"}]}, "unknown-role", "the from 'dog'"),
    ("sharegpt", {"conversations": [{"role": "user", "content": "x"}]}, "missing-column", "lacks 'from'"),
]


@pytest.mark.parametrize(("format", "row", "kind", "says"), BAD)
def test_names_what_is_wrong(format: str, row: dict[str, Any], kind: str, says: str) -> None:
    with pytest.raises(BadRow, match=says) as e:
        read(row, format)
    assert e.value.kind == kind and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [({}, "none"), ({"text": "x"}, "text column"), ({"chosen": "a", "rejected": "b"}, "preferences"), ({"q": 1, "a": 2}, "q, a; name")],
)
def test_unknown_columns(row: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRow, match=says):
        detect(row)


def test_every_format_has_columns() -> None:
    assert set(formats.COLUMNS) == set(formats.FORMATS)
    assert detect({"prompt": "q", "answer": "a"}) == "problems"
