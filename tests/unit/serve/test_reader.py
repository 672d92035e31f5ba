"""Text from tokens as they come: nothing is lost, split or said too early."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from shoestring.serve.reader import Reader


def by_bytes(tokens: Sequence[int]) -> str:
    """A tokenizer of bytes: every character beyond ASCII is several tokens."""
    return bytes(tokens).decode(errors="replace")


def by_words(tokens: Sequence[int]) -> str:
    """A tokenizer that drops the space before its first word, as SentencePiece's do."""
    return "".join(f" w{t}" for t in tokens).removeprefix(" ")


def pieces(decode: Any, tokens: Sequence[int], stops: Sequence[str] = ()) -> list[str]:
    reader = Reader(decode, stops)
    out = []
    for t in tokens:
        out.append(reader.feed(t))
        if reader.stopped:
            return out
    return [*out, reader.end()]


TEXT = "Grüße an 世界 🙂🙂, naïve é!"


def test_characters_are_never_split() -> None:
    got = pieces(by_bytes, TEXT.encode())
    assert "".join(got) == TEXT
    assert all("\ufffd" not in p for p in got)
    assert max(map(len, got)) == 1  # each is given as soon as it is whole


def test_spaces_between_words_survive() -> None:
    tokens = list(range(30))
    assert "".join(pieces(by_words, tokens)) == by_words(tokens)


@pytest.mark.parametrize("raw", [b"ab\xff\xfecd", b"\xe4\xb8", b"\xff" * 20, b"a\xf0\x9f\x99", "x\ufffdy".encode()])
def test_bytes_that_are_no_text_come_out_as_the_tokenizer_writes_them(raw: bytes) -> None:
    assert "".join(pieces(by_bytes, raw)) == by_bytes(raw)


@pytest.mark.parametrize(
    "text, stops, expected",
    [
        ("one STOP two", ["STOP"], "one "),
        ("one STO two", ["STOP"], "one STO two"),
        ("one STO", ["STOP"], "one STO"),
        ("aab", ["ab"], "a"),
        ("abcd", ["bcd", "ab"], ""),
        ("x\n\ny", ["\n\n"], "x"),
        ("世界の", ["界"], "世"),
        ("nothing", ["q", "zz"], "nothing"),
    ],
)
def test_stop_strings(text: str, stops: list[str], expected: str) -> None:
    got = pieces(by_bytes, text.encode(), stops)
    assert "".join(got) == expected
    said = ""
    for p in got:  # nothing is said that a stop string takes back
        said += p
        assert expected.startswith(said)


def test_real_tokenizer(direct: Any) -> None:
    tokenizer = direct[1]
    for text in (TEXT, "def f(x):\n    return x  # été", "<|im_start|>user\nhi<|im_end|>"):
        tokens = tokenizer.encode(text)
        assert "".join(pieces(tokenizer.decode, tokens)) == tokenizer.decode(tokens)
