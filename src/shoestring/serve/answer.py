"""The JSON that clients get: whole answers, chunks of a stream, log-probabilities, usage (OpenAI API reference)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoestring.serve.schema import Asked
from shoestring.serve.worker import End, Piece


@dataclass
class Choice:
    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    end: End | None = None

    def add(self, event: Piece | End) -> None:
        self.text.append(event.text)
        if isinstance(event, End):
            self.end = event
        else:
            self.tokens.append(event.token)
            self.logprobs.append(event.logprob)


class Writer:
    """Writes the answers to one HTTP request. show: token id → its text, special tokens included."""

    def __init__(self, asked: Asked, model: str, show: Callable[[int], str]) -> None:
        self.asked, self.show = asked, show
        kind = "chat.completion" if asked.chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": f"{kind}.chunk" if asked.chat and asked.stream else kind,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        rows = []
        for i, c in enumerate(choices):
            text = "".join(c.text)
            said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.asked.chat else {"text": text}
            rows.append(self._row(i, said, c.tokens, c.logprobs, c.end, first=True))
        return self._head | {"choices": rows, "usage": self.usage(sum(len(c.tokens) for c in choices))}

    def first(self, index: int) -> dict[str, Any] | None:
        """The chunk that opens a choice: a chat's role, or the prompt's ids where they were asked for."""
        if not (self.asked.chat or self.asked.token_ids):
            return None
        said = {"delta": {"role": "assistant", "content": ""}} if self.asked.chat else {"text": ""}
        return self._chunk([self._row(index, said, [], [], None, first=True)])

    def chunk(self, event: Piece | End) -> dict[str, Any] | None:
        """None where the event shows nothing: its text is held back and its token was not asked for."""
        piece = isinstance(event, Piece)
        if piece and not (event.text or self.asked.logprobs or self.asked.token_ids):
            return None
        said: dict[str, Any] = {"text": event.text}
        if self.asked.chat:
            said = {"delta": {"content": event.text} if event.text else {}}
        tokens, logprobs = ([event.token], [event.logprob]) if piece else ([], [])
        return self._chunk([self._row(event.index, said, tokens, logprobs, None if piece else event)])

    def last(self, completion_tokens: int) -> dict[str, Any] | None:
        """The chunk with the usage, where it was asked for."""
        if not self.asked.include_usage:
            return None
        return self._chunk([]) | {"usage": self.usage(completion_tokens)}

    def usage(self, completion_tokens: int) -> dict[str, int]:
        """A prompt counts once, whatever its n, because it is computed once."""
        prompt = sum(len(r.prompt) for r in self.asked.requests[:: self.asked.n])
        total = prompt + completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion_tokens, "total_tokens": total}

    def _chunk(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return self._head | {"choices": rows} | ({"usage": None} if self.asked.include_usage else {})

    def _row(
        self, index: int, said: dict[str, Any], tokens: list[int], logprobs: list[float], end: End | None, first: bool = False
    ) -> dict[str, Any]:
        shown = self._logprobs(tokens, logprobs) if self.asked.logprobs and (tokens or not self.asked.stream) else None
        row = {"index": index} | said | {"logprobs": shown, "finish_reason": end.reason if end else None}
        if self.asked.token_ids:
            row["token_ids"] = tokens
            if first:
                row["prompt_token_ids"] = list(self.asked.requests[index].prompt)
        return row

    def _logprobs(self, tokens: list[int], logprobs: list[float]) -> dict[str, Any]:
        texts = [self.show(t) for t in tokens]
        names = [f"token_id:{t}" for t in tokens] if self.asked.names_are_ids else texts
        if not self.asked.chat:
            return {"tokens": names, "token_logprobs": logprobs, "top_logprobs": None, "text_offset": None}
        # a token that is part of a character has bytes that its text cannot tell: null, as the reference allows
        raw = [None if "\ufffd" in t else list(t.encode()) for t in texts]
        return {
            "content": [
                {"token": n, "logprob": lp, "bytes": b, "top_logprobs": []}
                for n, lp, b in zip(names, logprobs, raw, strict=True)
            ]
        }
