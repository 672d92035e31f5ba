"""From tokens to text while they come: whole characters only, and nothing that a stop string may yet cut off."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shoestring.generate.endpoint_wire import held_back

BROKEN = "\ufffd"  # what a tokenizer writes for bytes that are no character (yet)
WINDOW = 5  # tokens before the new ones that are decoded again, because a decoder looks at neighbours (spaces)


class Cut:
    """Text up to the first of some stop strings; nothing is given that may yet be the beginning of one."""

    def __init__(self, stop_strings: Sequence[str] = ()) -> None:
        self._stops = tuple(stop_strings)
        self._held = ""
        self.stopped = False

    def feed(self, text: str, last: bool = False) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for s in self._stops if (at := text.find(s)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if last else max((held_back(text, s) for s in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


class Reader:
    """`feed` returns the text that is certain. `stopped` says that a stop string was met; text before it only is given.

    The pieces add up to decode(all tokens), cut before the first stop string.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop_strings: Sequence[str] = ()) -> None:
        self._decode = decode
        self._cut = Cut(stop_strings)
        self._tokens: list[int] = []
        self._begin = 0  # tokens[begin:seen] have been read already; they are decoded again as a left context
        self._seen = 0

    @property
    def stopped(self) -> bool:
        return self._cut.stopped

    def feed(self, token: int) -> str:
        """One token more. "" while its characters are unfinished or may belong to a stop string."""
        if self.stopped:
            return ""
        self._tokens.append(token)
        return self._cut.feed(self._whole(last=False))

    def end(self) -> str:
        """What was held back, as no more tokens come."""
        if self.stopped:
            return ""
        return self._cut.feed(self._whole(last=True), last=True)

    def _whole(self, last: bool) -> str:
        before = self._decode(self._tokens[self._begin : self._seen])
        after = self._decode(self._tokens[self._begin :])
        if after.endswith(BROKEN) and not last:
            return ""
        self._seen = len(self._tokens)
        self._begin = max(self._begin, self._seen - WINDOW)
        # a window must begin where a character does, else its first bytes would be read as broken
        while self._begin < self._seen and self._decode(self._tokens[self._begin : self._seen]).startswith(BROKEN):
            self._begin += 1
        return after[len(before) :]
