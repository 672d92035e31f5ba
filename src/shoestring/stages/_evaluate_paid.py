"""What the answers of a chunk have cost at a server, kept beside the replies, so that a resumed evaluation counts the same.

A killed stage reads its replies back from the cache and pays for none of them again: without this their dollars would be in
the bill and not in the dollars a right answer. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

from shoestring.generate.teacher import Cache, Reply
from shoestring.records import StepReport, Usage, UserError
from shoestring.stages._distill_ask import Asking, Till
from shoestring.stages.context import Answer, Context, Event, Journal, Overrun

Events = Generator[Event, Answer | None, Asking]


class Replies(Cache):
    """The cached replies. noted: called when one is on the disk. A failure that was charged for is not read back: the
    evaluation ends at one, so that going on is to ask again."""

    def __init__(self, path: Path, noted: Callable[[], None]) -> None:
        super().__init__(path)
        self.noted = noted

    def get(self, key: str) -> Reply | None:
        known = super().get(key)
        return known if known is not None and known.reason != "error" else None

    def put(self, key: str, reply: Reply) -> None:
        super().put(key, reply)
        self.noted()


class Paid:
    """The dollars of one chunk after another, whose replies are in `cache`.

    They are those of the seconds and tokens between `begin` and the chunk's last reply, of every attempt of the run. A reply is
    noted with its tokens before these are posted, so that a kill between the two loses nothing. What is left out is what a stop
    or a kill makes come twice: requests that were cancelled in flight are asked again, and a kill's open reservation is in the
    bill as failed.
    """

    def __init__(self, context: Context, till: Till) -> None:
        self.context, self.till = context, till
        self.cancelled: set[str] = set()
        self.read = 0  # so many of `till.heard`
        self.journal = Journal(context.folder / "paid.jsonl")
        self.cache = Replies(context.folder / "replies.jsonl", self._note)
        self.begin("")

    def begin(self, chunk: str) -> None:
        known = self.journal.chunks.get(chunk)
        self.chunk, self.left_out = chunk, 0.0
        self.earlier = float(known[0]["usd"]) if known else 0.0
        self.began = self.context.accrued()

    def usd(self) -> float:
        """Dollars of the chunk so far, as far as they are posted."""
        return self.earlier + self.context.accrued() - self.began - self.left_out

    def _note(self) -> None:
        heard = [s for s in self.till.waiting if s.error != "cancelled"] if self.till.sku else []
        unposted = [u for s in heard for u in s.usages(self.till.sku, self.till.stage, self.till.cached)]
        self.journal.append(self.chunk, [{"usd": self.usd() + self.context.cost(unposted)}])

    def asked(self, events: Events) -> Events:
        """The events of `_distill_ask.asked`, handed on. Its usages are posted while it waits for their answer, so that at the
        report that follows them, and at the end, they are in what has accrued; between them nothing is noted."""
        answer: Answer | None = None
        broken: BaseException | None = None
        try:
            while True:
                try:
                    event = events.throw(broken) if broken is not None else events.send(answer)
                except StopIteration as e:
                    self._note()
                    return e.value
                except (UserError, Overrun, KeyboardInterrupt):  # what was in flight is posted by now
                    self._note()
                    raise
                broken = None
                try:
                    answer = yield from self._hand_on(event)
                except (Overrun, KeyboardInterrupt) as e:  # for the one who asks: what is in flight is to be ended and posted
                    broken = e
        finally:
            events.close()

    def _hand_on(self, event: Event) -> Generator[Event, Answer | None, Answer | None]:
        if isinstance(event, StepReport):
            self._note()
        if not (isinstance(event, Usage) and self._cancelled(event)):
            return (yield event)
        before = self.context.accrued()
        answer = yield event
        self.left_out += self.context.accrued() - before
        return answer

    def _cancelled(self, usage: Usage) -> bool:
        """Whether these tokens are of a request that was ended in flight. `attempt`: <key>.<number>, see `Spent.usages`."""
        fresh, self.read = self.till.heard[self.read :], len(self.till.heard)
        self.cancelled |= {f"{s.key}.{s.number}" for s in fresh if s.error == "cancelled"}
        return usage.attempt.split(" ")[0] in self.cancelled
