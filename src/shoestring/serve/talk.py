"""One chat answer as it comes: the thinking apart from what is said.

The thinking begins where the answer or its prompt opens a marker, or where its length is forced; it ends at the closing
marker, which belongs to neither, or at the forced "Final Answer:", which stays with the answer (generate/thinking.py).
Stop strings are looked for in the answer alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from shoestring.generate.endpoint_wire import held_back
from shoestring.generate.thinking import FINAL, MARKERS
from shoestring.serve.reader import Cut, Reader

TAIL = 8  # tokens at a prompt's end in which an opening marker is looked for


@dataclass(frozen=True)
class Marks:
    """opened: the prompt has opened the thinking. forced: its length is forced. single: markers that are one token,
    which a tokenizer may hide from the text; True opens."""

    opened: bool = False
    forced: bool = False
    single: Mapping[int, bool] = field(default_factory=dict)


def marks_of(tokenizer: Any, prompt: Sequence[int], forced: bool) -> Marks:
    """tokenizer: a `models.tokenizer.Tokenizer`."""
    single = {}
    for pair in MARKERS:
        for text, opens in zip(pair, (True, False), strict=True):
            ids = tokenizer.encode(text)
            if len(ids) == 1:
                single[ids[0]] = opens
    tail = tokenizer.inner.decode(list(prompt[-TAIL:])).rstrip()
    return Marks(any(tail.endswith(opening) for opening, _ in MARKERS), forced, single)


@dataclass(frozen=True)
class Said:
    """What became certain: the answer's text, the thinking's text, and how many tokens were thinking so far."""

    text: str = ""
    thought: str = ""
    thinking: int = 0


class Talk:
    """marks None: no thinking is looked for, and every character is the answer's."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stop_strings: Sequence[str] = (), marks: Marks | None = None
    ) -> None:
        self.marks = marks or Marks()
        self._reader, self._cut = Reader(decode), Cut(stop_strings)
        self._state: Literal["before", "inside", "gap", "answer"] = "before" if marks else "answer"
        self._held = ""
        self._thinks = self.marks.opened or self.marks.forced  # also without an opening marker of its own
        self._marked = self.marks.opened
        self._said = ""  # the thinking so far, kept while it may turn out to be the answer
        self._count = 0

    @property
    def stopped(self) -> bool:
        return self._cut.stopped

    @property
    def thinking(self) -> int:
        """Thinking tokens so far, markers among them; the engine's own count is exact."""
        return 0 if self._state == "before" and not self._thinks else self._count

    def feed(self, token: int, show: bool = True) -> Said:
        """One token more. show False: it is counted, and is no text."""
        if self.stopped:
            return Said(thinking=self.thinking)
        thinks = self._state in ("before", "inside")
        self._count += thinks
        if thinks and token in self.marks.single:
            return self._marker(opens=self.marks.single[token])
        text, thought = self._split(self._reader.feed(token) if show else "", last=False)
        return Said(text, thought, self.thinking)

    def end(self) -> Said:
        """What was held back, as no more tokens come."""
        if self.stopped:
            return Said(thinking=self.thinking)
        text, thought = self._split(self._reader.end(), last=True)
        if self._state == "inside" and self.marks.forced and not self._marked:
            # a model that knows no marker has ended its turn within its budget: what it thought is what it says
            text = self._cut.feed(self._said, last=True)
        return Said(text, thought, self.thinking)

    def _marker(self, opens: bool) -> Said:
        """A marker that is a token of its own."""
        text, thought = self._split(self._reader.end(), last=not opens)
        if opens and self._state == "before":
            self._state, self._marked, self._held = "inside", True, ""
        elif not opens:
            self._state, self._held = "gap", ""
        return Said(text, thought, self.thinking)

    def _split(self, text: str, last: bool) -> tuple[str, str]:
        """(answer, thinking) that are certain with this text."""
        thought = ""
        if self._state == "before":
            text = self._begin(text, last)
        if self._state == "inside":
            text, thought = self._inside(text, last)
        if self._state == "gap":  # the blank lines between the two belong to neither
            text = text.lstrip()
            self._state = "answer" if text else "gap"
        if self._state == "answer":
            return self._cut.feed(text, last), thought
        return "", thought

    def _begin(self, text: str, last: bool) -> str:
        """Whether the thinking is opened: the text after the marker, or all of it."""
        self._held += text
        start = self._held.lstrip()
        for opening, _ in MARKERS:
            if start.startswith(opening):
                self._state, self._held, self._marked = "inside", "", True
                return start[len(opening) :]
        if not last and any(opening.startswith(start) for opening, _ in MARKERS):
            return ""
        rest, self._held = self._held, ""
        if self._thinks:
            self._state = "inside"
            return rest
        self._state, self._count = "answer", 0
        return rest

    def _inside(self, text: str, last: bool) -> tuple[str, str]:
        """(what comes after the thinking, thinking). Blanks at its end wait until more of it comes."""
        if not self._said and not self._held:
            text = text.lstrip()
        self._held += text
        closers = [closing for _, closing in MARKERS] + ([FINAL] if self.marks.forced else [])
        found = [(at, c) for c in closers if (at := self._held.find(c)) >= 0]
        rest = ""
        if found:
            at, closer = min(found)
            thought, rest = self._held[:at].rstrip(), self._held[at:].removeprefix("" if closer == FINAL else closer)
            self._state, self._held = "gap", ""
        else:
            blanks = len(self._held) - len(self._held.rstrip())
            keep = 0 if last else max(blanks, *(held_back(self._held, c) for c in closers))
            thought, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self._said += thought
        return rest, thought
