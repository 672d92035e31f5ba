"""The form of a trace, what is preferred, and the invalid share: pure functions over texts."""

from __future__ import annotations

from typing import Any

import pytest

from shoestring.stages import _distill_keep as keep

QUESTION = "What is 2 + 3?"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("We add.\nAnswer: 5", None),
        ("Let α + β = γ, so θ ≤ π/2 and ∑ x → ∞.\nAnswer: 5", None),
        ("as in naïve café, Grüße", None),
        ("", "empty"),
        ("\n \n", "empty"),
        ("a\x00b", "unprintable characters"),
        ("a\ufffdb", "unprintable characters"),
        ("<think>and on and on", "thinking without an end"),
        ("First we add 首先我们把两个数字相加然后 and so on", "mixed languages"),
        ("First we add, потому что так надо, and so on", "mixed languages"),
        ("one 字 in a long English text " + "with many words " * 2, None),
        ("```\n1\n```", "code block"),
        ("a b c d e f g h\n" * 20, "garbled repeats"),
        ("\n".join("0 1 0 0 1 1 0 1" for _ in range(20)), None),
        ("ha" * 300, "garbled repeats"),
        (" ".join(f"w{i}" for i in range(1200)), "long paragraph"),
        ("\n\n".join(" ".join(f"w{i}" for i in range(100 * n, 100 * n + 100)) for n in range(12)), None),
    ],
)
def test_fault(text: str, wrong: str | None) -> None:
    assert keep.fault(text, QUESTION) == wrong


def test_the_question_decides_what_is_foreign() -> None:
    assert keep.fault("答案是五,因为二加三等于五。 We add two and three.", "二加三是多少? What is it?") is None
    assert keep.fault("これは五です。二と三を足します。", "二と三を足すと?") is None, "one Japanese sentence has three scripts"
    assert keep.fault("We add two and three and find five.", "二加三是多少") == "mixed languages"
    assert keep.fault("```python\nprint(5)\n```", "Write a program", code=True) is None


@pytest.mark.parametrize("text", ["as the hint says", "the correct answer is given as 5", "since the given answer is 5", "I was told"])
def test_hints(text: str) -> None:
    assert keep.tells_the_hint(text)


@pytest.mark.parametrize("text", ["The answer is 5", "We are given two numbers; the answer follows.", "Answer: 5"])
def test_no_hints(text: str) -> None:
    assert not keep.tells_the_hint(text)


def row(text: str, n: int) -> dict[str, Any]:
    return {"text": text, "tokens": [0] * n}


def test_chosen() -> None:
    rows = [row("b", 3), row("a ", 1), row("c d e f", 2), row("a", 4), row("c d e g", 5)]
    assert [r["text"] for r in keep.chosen(rows, 2, "short")] == ["a ", "c d e f"]
    assert [r["text"] for r in keep.chosen(rows, 2, "long")] == ["c d e g", "a"]
    assert [r["text"] for r in keep.chosen(rows, 9, "short")] == ["a ", "c d e f", "b", "c d e g"], "the same text once"
    assert keep.chosen(rows, 0, "short") == [] and keep.chosen([], 3, "diverse") == []


def test_diverse_is_the_greedy_choice() -> None:
    """Against the slow twin: at each step the row whose nearest chosen one is farthest, the shortest among equals."""
    texts = ["one two three four five", "one two three four six", "seven eight nine ten", "one two three eleven twelve", "x y z"]
    rows = [row(t, i + 1) for i, t in enumerate(texts)]

    def apart(a: str, b: str) -> float:
        x, y = ({tuple(t.split()[i : i + 3]) for i in range(len(t.split()) - 2)} for t in (a, b))
        return 1 - len(x & y) / len(x | y)

    wanted = [texts[0]]
    while len(wanted) < 3:
        rest = [t for t in texts if t not in wanted]
        wanted.append(max(rest, key=lambda t: (min(apart(t, w) for w in wanted), -texts.index(t))))
    assert [r["text"] for r in keep.chosen(rows, 3, "diverse")] == wanted == [texts[0], texts[2], texts[4]]


def test_invalid_shares() -> None:
    rows = [{"score": s, "fault": f} for s, f in ((1.0, ""), (1.0, "code block"), (0.0, ""), (0.0, "cut off"), (0.0, "cut off"))]
    said = keep.invalid(rows, [True, True, False, True])
    assert (said["replies"], said["before"], said["formed"], said["after_form"], said["kept"]) == (5, 0.6, 2, 0.5, 0.25)
    assert said["faults"] == {"cut off": 2, "code block": 1} and said["basis"] == "measured"
    assert keep.invalid([], [])["before"] is None
