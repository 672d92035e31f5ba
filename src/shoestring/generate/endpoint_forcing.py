"""Budget forcing over a server that knows nothing of it: rounds of /completions, each continuing what was kept so far.

With ids the rounds follow `forcing.Forcing`, as our engine does: greedy answers are the engine's. With text the thinking ends
at its marker or with the turn, and its length is what the server counts. A stop string of the request's own ends the whole
answer wherever it shows, as it does in our engine, in the thinking and in forced words too.

A round is a call of its own and is paid as one: the prompt and what was kept are sent again (servers with a prefix cache
compute them once).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from shoestring.generate.endpoint_wire import Answer, Attempt, Delta, TextRequest, held_back
from shoestring.generate.forcing import Forcing
from shoestring.generate.request import Request
from shoestring.generate.thinking import FINAL, TextThinking

Ask = Callable[[Request | TextRequest], Awaitable[Answer]]
UNKNOWN = float("nan")  # the log-probability of a forced token: no server tells it
_STEP = 0x9E3779B97F4A7C15


async def run(
    request: Request | TextRequest, ask: Ask, tell: Callable[[Delta], None],
    text: Callable[[Sequence[int]], str] | None = None,
) -> Answer:  # fmt: skip
    """One answer with its thinking forced. tell: hands on what is certain. text: ids → text, for the text of id answers."""
    if isinstance(request, Request):
        return await _Ids(request, ask, tell, text).run()
    return await _texts(request, ask, tell)


def _seed(seed: int, number: int) -> int:
    """Every round starts its noise anew, so it gets a seed of its own; the first keeps the request's."""
    return (seed + number * _STEP) & (1 << 64) - 1


class _Ids:
    """Token ids in, token ids out."""

    def __init__(
        self, request: Request, ask: Ask, tell: Callable[[Delta], None], text: Callable[[Sequence[int]], str] | None
    ) -> None:
        assert request.thinking is not None
        self.request, self.ask, self.tell, self.text = request, ask, tell, text
        self.plain = replace(request, thinking=None)
        self.forcing = Forcing(request, request.thinking)
        self.budget, self.total = request.thinking.budget, request.max_new
        self.last_of_ends = {e[-1] for e in request.thinking.ends}
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.attempts: list[Attempt] = []

    async def run(self) -> Answer:
        rounds = 0
        while len(self.tokens) < self.total:
            if self.forcing.thinking < 0 and len(self.tokens) >= self.budget:
                self._take(-1, UNKNOWN)  # whatever were sampled here, the closing is forced
                continue
            asked = self._round(rounds)
            got = await self.ask(asked)
            rounds += 1
            self.attempts += got.attempts
            if got.reason == "error" or not got.tokens:
                return self._answer("error", got.error or "the server gave no token ids")
            known = got.logprobs or (UNKNOWN,) * len(got.tokens)
            for token, logprob in zip(got.tokens, known, strict=True):
                if self._take(token, logprob):
                    break  # what the server wrote after a token that is not kept says nothing
            else:
                # by a stop of the request's own: an id, or a string, at which the server stopped where no id asked it to
                if self.tokens[-1] in self.request.stop or (got.reason == "stop" and self.tokens[-1] not in asked.stop):
                    return self._answer("stop")
        return self._answer("length")

    def _round(self, number: int) -> Request:
        """Ask until something may have to be forced: an end, where the thinking has not ended, or the budget."""
        thinks = self.forcing.thinking < 0
        until = self.budget if thinks else self.total
        stop = self.request.stop | self.last_of_ends if thinks else self.request.stop
        kept = self.request.prompt + tuple(self.tokens)
        return replace(
            self.plain, prompt=kept, max_new=until - len(self.tokens), stop=stop, seed=_seed(self.request.seed, number)
        )

    def _take(self, token: int, logprob: float) -> bool:
        """Append what becomes of a token, and all that is forced after it. True if anything was forced."""
        move = self.forcing.take(self.tokens, token)
        if move.drop:
            del self.tokens[-move.drop :], self.logprobs[-move.drop :], self.forcing.pending[-move.drop :]
        self._append(move.token, UNKNOWN if move.forced else logprob)
        while self.forcing.queue and len(self.tokens) < self.total:
            self._append(self.forcing.take(self.tokens, -1).token, UNKNOWN)
        self._tell()
        return move.forced

    def _append(self, token: int, logprob: float) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.forcing.pending.append((token, logprob))

    def _tell(self, last: bool = False) -> None:
        if sure := list(self.forcing.told(self.tokens, last)):
            self.tell(Delta(ids=tuple(t for t, _ in sure), logprobs=tuple(lp for _, lp in sure)))

    def _answer(self, reason: Literal["stop", "length", "error"], error: str = "") -> Answer:
        self._tell(last=True)
        text = self.text(self.tokens) if self.text else ""
        facts: Any = self.forcing.facts(self.tokens)
        kept = tuple(self.tokens), tuple(self.logprobs)
        return Answer(*kept, reason, error, text, attempts=tuple(self.attempts), **facts)


class _Text:
    """The text so far, cut before the first of the request's own stop strings; nothing is told that one may yet cut off."""

    def __init__(self, stops: Sequence[str], tell: Callable[[Delta], None]) -> None:
        self.stops, self.tell = tuple(filter(None, stops)), tell
        self.reach = max(map(len, self.stops), default=1) - 1  # a stop string may begin so far before a new piece
        self.written, self.told = "", 0

    def add(self, piece: str) -> bool:
        """Whether a stop string shows now: then the answer has ended."""
        begin = max(0, len(self.written) - self.reach)
        self.written += piece
        found = [at for s in self.stops if (at := self.written.find(s, begin)) >= 0]
        if found:
            self.written = self.written[: min(found)]
        self.hand_on(bool(found))
        return bool(found)

    def hand_on(self, last: bool) -> None:
        held = 0 if last else max((held_back(self.written, s) for s in self.stops), default=0)
        if piece := self.written[self.told : len(self.written) - held]:
            self.told += len(piece)
            self.tell(Delta(piece))


async def _texts(request: TextRequest, ask: Ask, tell: Callable[[Delta], None]) -> Answer:
    """A prompt of text. `thinking` of the answer is what the server counted, tokens of the end markers included.

    While it thinks, the server is not told of the request's own stop strings: it would not say at which string it stopped, so
    that their end of the answer could not be told from the marker's end of the thinking. It may write on past one, then; that
    is paid and counted, and cut off.
    """
    t = request.thinking
    assert isinstance(t, TextThinking) and isinstance(request.prompt, str)
    text = _Text(request.stop_strings, tell)
    used, waits, rounds = 0, 0, 0
    attempts: list[Attempt] = []

    async def more(max_new: int, stop: tuple[str, ...]) -> Answer:
        nonlocal rounds
        prompt = f"{request.prompt}{text.written}"
        asked = replace(
            request, prompt=prompt, max_new=max_new, stop_strings=stop, seed=_seed(request.seed, rounds), thinking=None
        )
        got = await ask(asked)
        rounds += 1
        attempts.extend(got.attempts)
        return got

    def answer(reason: Literal["stop", "length", "error"], error: str = "") -> Answer:
        text.hand_on(last=True)
        return Answer((), (), reason, error, text.written, attempts=tuple(attempts), thinking=used, waits=waits)

    closed = t.marker + FINAL
    while used < t.budget:
        got = await more(t.budget - used, (t.marker,) if t.marker else ())
        stopped = text.add(got.text)
        if got.reason == "error" and not stopped:
            return answer("error", got.error)
        used = min(t.budget, used + max(1, sum(a.completion_tokens for a in got.attempts[-1:])))
        if stopped:
            return answer("stop")
        if got.reason == "length":
            break
        if waits < t.waits and used + 1 < t.budget:  # the word, at least a token, and one token more must fit
            waits += 1
            used += 1
            if text.add(t.wait):
                return answer("stop")
            continue
        if not t.marker:
            return answer("stop")
        closed = t.marker
        break
    if text.add(closed):
        return answer("stop")
    got = await more(t.answer, request.stop_strings)
    return answer("stop", "") if text.add(got.text) else answer(got.reason, got.error)
