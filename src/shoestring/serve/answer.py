"""The JSON that clients get: whole answers, chunks of a stream, log-probabilities, usage (OpenAI API reference)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoestring.serve.price import Rate
from shoestring.serve.schema import Asked
from shoestring.serve.worker import End, Piece


@dataclass
class Choice:
    """What has come of one choice. thinking: its thinking tokens. seconds: machine seconds that its tokens took.
    at: when its last token came. pieces: one a token, of an answer that is sent as a whole (keep); count: of them.
    """

    keep: bool = True
    text: list[str] = field(default_factory=list)
    thought: list[str] = field(default_factory=list)
    thinking: int = 0
    cached: int = 0
    seconds: float = 0.0
    at: float = 0.0
    count: int = 0
    pieces: list[Piece] = field(default_factory=list)
    end: End | None = None

    def add(self, event: Piece | End) -> None:
        if self.keep:
            self.text.append(event.text)
            self.thought.append(event.thought)
        if isinstance(event, End):
            self.end = event
            self.thinking = self.thinking if event.thinking is None else event.thinking
        else:
            self.thinking = event.thinking
            self.cached += event.cached
            self.seconds += event.seconds
            self.count += 1
            if self.keep:
                self.pieces.append(event)


class Writer:
    """Writes the answers to one HTTP request. show: token id → its text, special tokens included. rate: what the machine
    costs, None where unknown."""

    def __init__(self, asked: Asked, model: str, show: Callable[[int], str], rate: Rate | None = None) -> None:
        self.asked, self.show, self.rate = asked, show, rate
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
            said: dict[str, Any] = {"text": text}
            if self.asked.chat:
                thought = {"reasoning_content": t} if (t := "".join(c.thought)) else {}
                said = {"message": {"role": "assistant", "content": text, "refusal": None} | thought}
            rows.append(self._row(i, said, c.pieces, c.end, first=True))
        return self._head | {"choices": rows, "usage": self.usage(choices)}

    def first(self, index: int) -> dict[str, Any] | None:
        """The chunk that opens a choice: a chat's role, or the prompt's ids where they were asked for."""
        if not (self.asked.chat or self.asked.token_ids):
            return None
        said = {"delta": {"role": "assistant", "content": ""}} if self.asked.chat else {"text": ""}
        return self._chunk([self._row(index, said, [], None, first=True)], ())

    def chunk(self, event: Piece | End, choices: Sequence[Choice]) -> dict[str, Any] | None:
        """None where the event shows nothing: its text is held back and its token was not asked for. choices: so far."""
        piece = isinstance(event, Piece)
        if piece and not (event.text or event.thought or self.asked.logprobs or self.asked.token_ids):
            return None
        said: dict[str, Any] = {"text": event.text}
        if self.asked.chat:
            thought = {"reasoning_content": event.thought} if event.thought else {}
            said = {"delta": thought | ({"content": event.text} if event.text else {})}
        row = self._row(event.index, said, [event], None) if piece else self._row(event.index, said, [], event)
        return self._chunk([row], choices)

    def last(self, choices: Sequence[Choice]) -> dict[str, Any] | None:
        """The chunk with the usage, where it was asked for."""
        if not self.asked.include_usage:
            return None
        return self._chunk([], ()) | {"usage": self.usage(choices)}

    def usage(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """A prompt counts once, whatever its n, because it is computed once."""
        n = self.asked.n
        prompt = sum(len(r.prompt) for r in self.asked.requests[::n])
        done = sum(c.count for c in choices)
        cached = sum(min(c.cached for c in choices[i : i + n]) for i in range(0, len(choices), n))
        seconds = sum(c.seconds for c in choices)
        said = {
            "prompt_tokens": prompt, "completion_tokens": done, "total_tokens": prompt + done,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": sum(c.thinking for c in choices)},
            "machine_seconds": round(seconds, 6),
        }  # fmt: skip
        return said | ({"cost": self.rate.cost(seconds)} if self.rate is not None else {})

    def _chunk(self, rows: list[dict[str, Any]], choices: Sequence[Choice]) -> dict[str, Any]:
        """choices: those whose usage so far is said, where every chunk is to say it."""
        if not self.asked.include_usage:
            return self._head | {"choices": rows}
        return self._head | {"choices": rows, "usage": self.usage(choices) if choices and self.asked.usage_each else None}

    def _row(
        self, index: int, said: dict[str, Any], pieces: Sequence[Piece], end: End | None, first: bool = False
    ) -> dict[str, Any]:
        shown = self._logprobs(pieces) if self.asked.logprobs and (pieces or not self.asked.stream) else None
        row = {"index": index} | said | {"logprobs": shown, "finish_reason": end.reason if end else None}
        if self.asked.token_ids:
            row["token_ids"] = [p.token for p in pieces]
            if first:
                row["prompt_token_ids"] = list(self.asked.requests[index].prompt)
        return row

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        if self.asked.chat:
            entry = self._entry
            return {"content": [entry(p.token, p.logprob) | {"top_logprobs": [entry(*t) for t in p.tops]} for p in pieces]}
        tops: list[dict[str, float]] | None = [{} for _ in pieces] if self.asked.tops else None
        for p, shown in zip(pieces, tops or (), strict=False):
            for token, logprob in (*p.tops, (p.token, p.logprob)):  # the sampled one too, as the reference says
                shown.setdefault(self._name(token), logprob)  # of two tokens that read alike, the likelier
        return {
            "tokens": [self._name(p.token) for p in pieces], "token_logprobs": [p.logprob for p in pieces],
            "top_logprobs": tops, "text_offset": None,
        }  # fmt: skip

    def _name(self, token: int) -> str:
        return f"token_id:{token}" if self.asked.names_are_ids else self.show(token)

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.show(token)
        # a token that is part of a character has bytes that its text cannot tell: null, as the reference allows
        raw = None if "\ufffd" in text else list(text.encode())
        return {"token": self._name(token), "logprob": logprob, "bytes": raw}
