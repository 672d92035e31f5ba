"""Asking a teacher as a stage: an `Intent` before the money is promised, a `Usage` an attempt, a cached row a reply.

The reservation always holds the most that the requests still open can cost, and is made anew after every reply, so that
what a kill leaves open is billed by what was open and not by the whole batch. At a "stop" nothing new is begun, what is in
flight is ended, and the tokens that it had used are posted.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shoestring.records import Intent, StepReport, Usage, UserError
from shoestring.stages.context import Answer, Context, Event, Overrun

if TYPE_CHECKING:
    from shoestring.generate.teacher import Cache, Question, Reply, Spent, Teacher

DEAD = 8  # so many failures in a row that cost nothing, and no answer among them: the teacher is not there


@dataclass
class Till:
    """Attempts on their way to the ledger: `put` by the teacher, `take`n by the stage. sku "": not paid by the token."""

    sku: str
    stage: str
    cached: bool = True
    heard: list[Spent] = field(default_factory=list)
    waiting: list[Spent] = field(default_factory=list)

    def put(self, spent: Spent) -> None:
        self.waiting.append(spent)

    def take(self) -> Iterable[Usage]:
        taken, self.waiting = self.waiting, []
        self.heard += taken
        if not self.sku:
            return ()
        return [u for s in taken for u in s.usages(self.sku, self.stage, self.cached)]

    def most(self, questions: Iterable[Question]) -> tuple[Usage, ...]:
        """An upper bound of one attempt at each."""
        if not self.sku:
            return ()
        sums = {"in": 0, "out": 0}
        for q in questions:
            for kind, n in q.most().items():
                sums[kind] += n
        return tuple(Usage(f"{self.sku}/{k}", float(n), "token", self.stage) for k, n in sums.items())


@dataclass
class Asking:
    """The replies by question, in time the whole list; stopped: the ceiling, the user or the window ended it."""

    replies: dict[int, Reply] = field(default_factory=dict)
    stopped: bool = False


def asked(
    teacher: Teacher, questions: Sequence[Question], cache: Cache, till: Till, context: Context, done: int = 0, total: int = 0
) -> Generator[Event, Answer | None, Asking]:
    """done, total: replies of the stage before these, and all of them, for the step numbers."""
    out = Asking()
    total = total or done + len(questions)
    waiting: list[int] = []
    for i, q in enumerate(questions):
        if known := cache.get(q.key(teacher.model)):
            out.replies[i] = known
        else:
            waiting.append(i)
    pace, tries, silent, wrote = context.first(60.0), [0] * len(questions), 0, 0
    each = bool(till.sku)  # what costs by the token is reserved anew after every reply; seconds alone, a batch at a time

    def report(seconds: float) -> StepReport:
        pace.add(seconds)
        return StepReport(context.stage, done + len(out.replies), total, seconds, wrote, wrote)

    def ask_for(open: Iterable[int]) -> Intent:
        seconds = Usage(context.machine, pace.upper(), "second", context.stage)
        usages = (seconds, *till.most(questions[i] for i in open))
        return Intent(context.stage, done + len(out.replies) + 1, usages, "asking the teacher")

    while waiting and not out.stopped:
        size = teacher.width
        while size > 1 and not context.fits(ask_for(waiting[:size])):  # near the ceiling: fewer at once, to its last dollar
            size = min(size, len(waiting)) // 2
        size = max(1, size)
        batch, waiting = waiting[:size], waiting[size:]
        if (yield ask_for(batch)) == "stop":
            out.stopped = True
            break
        began, left, broken = context.clock(), set(batch), None
        stream = teacher.once([questions[i] for i in batch])
        try:
            for at, reply in stream:
                i = batch[at]
                left.discard(i)
                silent = silent + 1 if reply.reason == "error" and not reply.settled and teacher.retries else 0
                if reply.again and tries[i] < teacher.retries:
                    tries[i] += 1
                    waiting.append(i)
                else:
                    out.replies[i] = reply
                    if reply.settled and reply.basis != "recorded":
                        cache.put(questions[i].key(teacher.model), reply)
                yield from till.take()
                wrote += reply.usage.get("out", 0)
                if each:
                    began, before = context.clock(), began
                    yield report(began - before)
                    wrote = 0
                if silent >= DEAD:
                    said = f"the teacher gives no answer, {silent} times in a row: {reply.error}"
                    raise UserError(f"stage {context.stage!r}: {said}")
                if each and left and (yield ask_for(left)) == "stop":
                    out.stopped = True
                    break
        except (UserError, Overrun, KeyboardInterrupt) as e:
            broken = e
        finally:
            stream.close()
        for at, reply in getattr(teacher, "late", ()):  # answered, and paid, while the end was being decided
            if reply.reason != "error":
                out.replies[batch[at]] = reply
                cache.put(questions[batch[at]].key(teacher.model), reply)
        yield from till.take()  # what was in flight
        if isinstance(broken, Overrun):
            out.stopped = True
        elif broken is not None:
            raise broken
        if not each:
            yield report(context.clock() - began)
            wrote = 0
    return out


def seed_of(seed: int, problem: str, sample: int, make: Callable[..., str]) -> int:
    """A request's seed, below 2^63, from the run's, the problem and the sample."""
    return int(make(str(seed), problem, str(sample)), 16) >> 1
