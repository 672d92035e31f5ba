"""The thinking apart from the answer, in every way that a stream can cut them."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from shoestring.generate.thinking import split
from shoestring.serve.talk import Marks, Talk, marks_of

OPENS, CLOSES = 1, 2  # ids of markers that are tokens of their own


def decode(ids: Sequence[int]) -> str:
    """One character a token; the markers' ids are hidden, as special tokens are."""
    return "".join(chr(i) for i in ids if i > 2)


def ids(text: str) -> list[int]:
    return [ord(c) for c in text]


def talk(tokens: Sequence[int], marks: Marks | None, stops: Sequence[str] = ()) -> tuple[str, str, int, bool]:
    """(thought, answer, thinking tokens, stopped), token by token; what was said is never taken back."""
    t = Talk(decode, stops, marks)
    said = []
    for token in tokens:
        said.append(t.feed(token))
        if t.stopped:
            break
    said.append(t.end())
    return "".join(s.thought for s in said), "".join(s.text for s in said), said[-1].thinking, t.stopped


@pytest.mark.parametrize(
    "text, opened, thought, answer",
    [
        ("<think>a b\nc</think>\n\nd e", False, "a b\nc", "d e"),
        ("\n<think>\n\na</think>b", False, "a", "b"),
        ("[THINK]a[/THINK]b", False, "a", "b"),
        ("a</think>b", True, "a", "b"),
        ("<think>a</think>b", True, "a", "b"),
        ("<thin air</think>", False, "", "<thin air</think>"),
        ("plain", False, "", "plain"),
        ("  plain", False, "", "  plain"),
        ("<think>never closed ", False, "never closed ", ""),
        ("<think></think>x", False, "", "x"),
        ("<think>a</thin</think>b </think>", False, "a</thin", "b </think>"),
        ("<", False, "", "<"),
        ("", True, "", ""),
    ],
)
def test_markers_in_the_text(text: str, opened: bool, thought: str, answer: str) -> None:
    assert talk(ids(text), Marks(opened))[:2] == (thought, answer)


@pytest.mark.parametrize("text", ["<think>a b</think>\n\nFinal Answer: 5", "a b\n\nFinal Answer: 5", "[THINK]x[/THINK]y"])
def test_it_splits_as_a_whole_answer_is_split(text: str) -> None:
    assert tuple(x.strip() for x in talk(ids(text), Marks(forced=True))[:2]) == split(text)


def test_a_model_without_markers_is_forced_by_words() -> None:
    assert talk(ids("one two\n\nFinal Answer: 3"), Marks(forced=True))[:3] == ("one two", "Final Answer: 3", 22)
    # it ended its turn by itself: what it thought is what it says
    assert talk(ids("It is 3."), Marks(forced=True))[:2] == ("It is 3.", "It is 3.")
    # cut within a thinking that it opened itself: there is no answer
    assert talk(ids("<think>It is"), Marks(forced=True))[:2] == ("It is", "")


def test_markers_that_are_tokens() -> None:
    marks = Marks(single={OPENS: True, CLOSES: False})
    assert talk([OPENS, *ids("ab"), CLOSES, *ids("\n\ncd")], marks)[:3] == ("ab", "cd", 4)
    assert talk([*ids("ab"), CLOSES, *ids("cd")], Marks(opened=True, single=marks.single))[:2] == ("ab", "cd")
    assert talk([*ids("ab"), CLOSES, *ids("cd")], marks)[:2] == ("", "abcd")  # nothing was opened


def test_stop_strings_are_the_answers_alone() -> None:
    marks = Marks()
    assert talk(ids("<think>a STOP b</think>c STOP d"), marks, ["STOP"]) == ("a STOP b", "c ", 23, True)
    assert talk(ids("a STOP b"), None, ["STOP"])[1:] == ("a ", 0, True)


def test_tokens_are_counted_while_they_come() -> None:
    t = Talk(decode, marks=Marks())
    counts = [t.feed(i).thinking for i in ids("<think>ab</think>cd")]
    assert counts[:6] == [0] * 6 and counts[6:9] == [7, 8, 9] and counts[-1] == counts[-2] == 17
    t = Talk(decode, marks=Marks())
    assert [t.feed(i).thinking for i in ids("<thick>")] == [0] * 7
    hidden = Talk(decode, marks=Marks(forced=True))
    assert hidden.feed(ord("x"), show=False).text == "" and hidden.thinking == 1


def test_marks_of_a_tokenizer() -> None:
    def tokenizer(**special: int) -> Any:
        return SimpleNamespace(encode=lambda text: (special[text],) if text in special else tuple(ids(text)), inner=SimpleNamespace(decode=decode))

    assert marks_of(tokenizer(), ids("user: hi\n"), False) == Marks()
    assert marks_of(tokenizer(), ids("assistant<think>\n"), True) == Marks(True, True)
    assert marks_of(tokenizer(**{"<think>": 1, "</think>": 2}), (9,), False) == Marks(single={1: True, 2: False})
