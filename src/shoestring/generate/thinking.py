"""Budget forcing: how long a model thinks, decided from outside (Muennighoff et al. 2025, s1, section 3.1).

    request = Request(prompt, 0, stop=frozenset({tokenizer.end}), thinking=thinking_of(tokenizer, budget=512, waits=1))

At the cap the end of the thinking is forced; an end that comes early is taken back and "Wait" forced in its place. Every id
is derived from the tokenizer. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shoestring.generate.request import Thinking
from shoestring.records import UserError

FINAL = "\n\nFinal Answer:"  # s1's words before the answer
MARKERS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))  # the first is also read where it is plain text
# A marker of plain text melts into its neighbours: ".</think>\n\n" may begin with the token ".</" and end with ">\n\n"
_BEFORE = ("", *(chr(i) for i in range(32, 127)), "\n", "\n\n", " .", ".\n", ".\n\n", "\\]\n", "$\n")
_AFTER = ("", "\n", "\n\n", " ", "\n\n\n")


@dataclass(frozen=True)
class TextThinking:
    """Budget forcing in words, for a server that takes text alone (`endpoint_forcing`). marker: ends the thinking, "" where
    the end of the turn does. answer: tokens after the closing words, which the server does not generate."""

    budget: int
    marker: str = "</think>"
    waits: int = 0
    wait: str = "Wait"
    answer: int = 64

    def __post_init__(self) -> None:
        if self.budget < 0 or self.waits < 0 or self.answer < 1 or (self.waits and not self.wait):
            raise ValueError(f"{self.budget=} and {self.waits=} must be 0 or more, {self.answer=} 1 or more, wait a word")


class Encodes(Protocol):
    """What is needed of a tokenizer (`models.tokenizer.Tokenizer`). end: the id that ends a turn."""

    end: int

    def encode(self, text: str) -> tuple[int, ...]: ...


def thinking_of(
    tokenizer: Encodes, budget: int, waits: int = 0, wait: str = "Wait", answer: int = 64,
    marker: tuple[str, str] | None = None,
) -> Thinking:  # fmt: skip
    """The ids that a tokenizer needs for a budget of thinking tokens. UserError for settings that cannot be met.

    marker: the words that open and close the thinking; by default a pair that the tokenizer holds as single tokens, else the
    textual <think> … </think> of its chat template. A model with neither thinks until the end of its turn; if it opens its
    answer with <think> by itself, the textual marker counts.
    """
    if budget < 0 or waits < 0:
        raise UserError(f"thinking: budget {budget} and waits {waits} must be 0 or more")
    said = marker or next((m for m in MARKERS if len(tokenizer.encode(m[1])) == 1), None)
    if said is None and MARKERS[0][1] in str(getattr(getattr(tokenizer, "inner", None), "chat_template", "") or ""):
        said = MARKERS[0]
    text = said or MARKERS[0]
    tagged = tokenizer.encode(text[1] + FINAL)
    close = tagged if said else tokenizer.encode(FINAL)
    word = tokenizer.encode(wait)
    if waits and not word:
        raise UserError(f"thinking: {wait!r} has no token; give a word to continue with")
    if answer <= len(tagged):
        raise UserError(f"thinking: {answer} tokens for the answer; its forced beginning takes {len(tagged)}, give more")
    ends = (*windows(tokenizer, text[1]), (tokenizer.end,))
    if said:
        return Thinking(budget, close, ends, waits, word, answer)
    return Thinking(budget, close, ends, waits, word, answer, windows(tokenizer, text[0]), tagged)


def windows(tokenizer: Encodes, marker: str) -> tuple[tuple[int, ...], ...]:
    """The id sequences that `marker` becomes between neighbours of every kind, the shortest that cover it."""
    found: dict[tuple[int, ...], None] = {}
    for before in _BEFORE:
        alone = tokenizer.encode(before)
        for after in _AFTER:
            ids, end = tokenizer.encode(before + marker + after), tokenizer.encode(after)
            first = _common(ids, alone)
            last = _common(ids[::-1], end[::-1]) if after else 0
            found[ids[first : len(ids) - last]] = None
    return tuple(w for w in found if w and not any(w[i:] in found for i in range(1, len(w))))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences share at their beginning."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def split(text: str) -> tuple[str, str]:
    """(thinking, answer) of an answer's text: at the closing marker, else at the forced "Final Answer:", which stays with
    the answer. Where neither stands, all of it is the answer, or thinking if it was opened and never closed."""
    for opening, closing in MARKERS:
        if closing in text:
            before, _, after = text.partition(closing)
            return before.strip().removeprefix(opening).strip(), after.strip()
        if text.lstrip().startswith(opening):
            before, found, after = text.rpartition(FINAL)
            return (before if found else after).strip().removeprefix(opening).strip(), (found + after).strip() if found else ""
    before, found, after = text.rpartition(FINAL)
    return (before.strip(), (found + after).strip()) if found else ("", text.strip())
