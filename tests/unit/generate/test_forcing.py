"""Budget forcing in the engine against a loop that computes the whole sequence anew for every token."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from whole_sequence import next_logits

from shoestring.generate import static
from shoestring.generate.cache import BLOCK, BlockPool, Span
from shoestring.generate.engine import Completion, Engine, Request, Session
from shoestring.generate.request import Thinking
from shoestring.generate.sampling import choose, uniform

VOCAB = 61
CLOSE, WAIT, TURN = (50, 51, 52), (40, 41), 60


class Twin:
    """The slow twin: no cache, no hold-back; an answer is a list that grows and is cut."""

    def __init__(self, model: Any, r: Request) -> None:
        assert r.thinking is not None
        self.model, self.r, self.t = model, r, r.thinking
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.sampled: list[bool] = []
        self.steps = self.cuts = 0  # cuts: tokens taken back that a cache had already held

    def logits(self) -> Any:
        return next_logits(self.model, (*self.r.prompt, *self.tokens))

    def append(self, token: int, sampled: bool) -> None:
        self.logprobs.append(float((self.logits() / (self.r.temperature or 1.0)).log_softmax(-1)[0, token]))
        self.tokens.append(token)
        self.sampled.append(sampled)

    def force(self, ids: tuple[int, ...]) -> None:
        for i in ids:
            self.append(i, False)
        self.steps += len(ids)

    def draw(self) -> int:
        token, _ = choose(self.logits(), [self.r.temperature], [uniform(self.r.seed, self.steps)])
        return int(token)

    def run(self) -> Completion:
        t, waits, fresh = self.t, 0, 0  # fresh: where the sampled tokens since the last "Wait" begin
        while True:
            if len(self.tokens) == t.budget:
                begun = [n for n in range(1, len(self.tokens) - fresh + 1) if self.begun(tuple(self.tokens[-n:]))]
                thinking = len(self.tokens) - max(begun, default=0)
                self.force(t.close[max(begun, default=0) :])
                break
            token = self.draw()
            tail = [*self.tokens[fresh:], token]
            end = max((e for e in [*t.ends, *((s,) for s in self.r.stop)] if tuple(tail[-len(e) :]) == e), key=len, default=())
            thinking = len(self.tokens) + 1 - len(end)
            if not end:
                self.append(token, True)
                self.steps += 1
            elif waits < t.waits and thinking + len(t.wait) < t.budget:
                waits += 1
                self.cuts += len(end) - 1
                for part in (self.tokens, self.logprobs, self.sampled):
                    del part[thinking:]
                self.force(t.wait)
                fresh = len(self.tokens)
            elif end[-1] in self.r.stop and any(t.close[: len(e)] == e for e in t.ends):
                self.force(t.close)
                break
            else:
                self.append(token, True)
                self.steps += 1
                break
        while len(self.tokens) < t.budget + t.answer and not (self.tokens[-1] in self.r.stop and self.sampled[-1]):
            self.append(self.draw(), True)
            self.steps += 1
        stopped = self.tokens[-1] in self.r.stop and self.sampled[-1]
        facts: Any = {"sampled": tuple(self.sampled), "thinking": thinking, "waits": waits}
        return Completion(tuple(self.tokens), tuple(self.logprobs), "stop" if stopped else "length", **facts)

    def begun(self, tail: tuple[int, ...]) -> bool:
        """Whether `tail` begins both an end marker and the forced closing, without being either whole."""
        inside = any(e[: len(tail)] == tail and len(e) > len(tail) for e in self.t.ends)
        return inside and self.t.close[: len(tail)] == tail != self.t.close


def check(done: list[Completion], expected: list[Completion]) -> None:
    for a, b in zip(done, expected, strict=True):
        assert replace(a, logprobs=()) == replace(b, logprobs=())
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
        assert len(a.sampled) == len(a.tokens)


def empty(session: Session) -> bool:
    return not (session.pool.used or session.pool.owner or session._reserved or session.prefixes or session._wanted)


def prompt(n: int, seed: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(VOCAB) for _ in range(n))


def forced_requests(engine: Engine, count: int, seed: int) -> list[Request]:
    """Requests of every kind: their ends are pieces of what the model says unforced, so that they are met."""
    rng = random.Random(seed)
    out = []
    for k in range(count):
        length = rng.choice([1, 5, BLOCK - 6, BLOCK - 2, BLOCK + 9])
        free = Request(
            prompt(length, rng.randrange(4)), 50, rng.choice([0.0, 0.0, 1.0, 0.8]), rng.randrange(9), frozenset({TURN})
        )
        (said,) = engine.generate([free])
        ends: list[tuple[int, ...]] = []
        for _ in range(rng.randint(1, 3)):
            at, n = rng.randrange(max(1, len(said.tokens) - 4)), rng.choice([1, 2, 2, 3, 4])
            ends.append(said.tokens[at : at + n])
        close = rng.choice([CLOSE, (*ends[0], 52), (*ends[-1][:1], *CLOSE)])
        wait = rng.choice([WAIT, WAIT[:1]])
        t = Thinking(
            rng.choice([0, 1, 3, 10, 20, 40]), close, tuple(ends), rng.randint(0, 3), wait, rng.randint(len(close) + 1, 12)
        )
        out.append(replace(free, thinking=t, logprobs=k % 5 > 0))
    return out


@pytest.mark.parametrize("seed", range(3))
def test_is_the_loop_that_computes_everything_anew(seed: int, tiny_decoder: Callable[..., Any]) -> None:
    """Random batches: more requests than slots, a small cache, shared prompts, unforced neighbours; nothing leaks."""
    model = tiny_decoder(seed=seed % 2)
    requests = forced_requests(Engine(model, 1), 20, seed)
    twins = [Twin(model, r) for r in requests]
    whole = [t.run() for t in twins]
    expected = [replace(c, logprobs=c.logprobs if r.logprobs else ()) for r, c in zip(requests, whole, strict=True)]
    plain = [Request(prompt(20 + k, k), 15, 1.0, k) for k in range(3)]
    alone = Engine(model, 1).generate(plain)
    assert sum(c.waits for c in expected) >= 3 and sum(t.cuts for t in twins) >= 3
    for slots, blocks, fixed in ((1, 4, False), (4, 6, True), (32, 64, False)):
        engine = Engine(model, slots, blocks * BLOCK)
        with engine.open() as session:
            session._steps = static.Steps(model, session.pool) if fixed else None  # a GPU's steps
            names = {session.add(r): k for k, r in enumerate([*requests, *plain])}
            done: dict[int, Completion] = {}
            while not session.idle:
                done |= {names[e[0]]: e[1] for e in session.step() if len(e) == 2}
            assert empty(session)
        check([done[k] for k in range(len(requests))], expected)
        assert [replace(done[len(requests) + k], logprobs=()) for k in range(3)] == [replace(c, logprobs=()) for c in alone]


def free_run(model: Any, r: Request) -> tuple[int, ...]:
    return Engine(model, 1).generate([replace(r, thinking=None, max_new=40)])[0].tokens


def test_the_cap(tiny_decoder: Callable[..., Any]) -> None:
    """No end is met: exactly `budget` thinking tokens, then the closing, then the answer."""
    model = tiny_decoder()
    base = Request((4, 5), 7)
    free = free_run(model, base)
    for budget in (0, 1, 7, 30):
        (done,) = Engine(model).generate([replace(base, thinking=Thinking(budget, CLOSE, ((VOCAB, VOCAB),), 2, WAIT, 9))])
        assert done.tokens[:budget] == free[:budget] and done.tokens[budget : budget + 3] == CLOSE
        assert done.sampled == (True,) * budget + (False,) * 3 + (True,) * 6
        assert (done.thinking, done.waits, done.reason, len(done.tokens)) == (budget, 0, "length", budget + 9)


def test_an_end_in_several_tokens_across_a_block_is_rolled_back(
    tiny_decoder: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The span shrinks by a block, and every later distribution is that of a prefill of what was kept."""
    model = tiny_decoder()
    base = Request(prompt(BLOCK - 3, 3), 1, 1.0, 4)
    free = free_run(model, base)
    t = Thinking(20, CLOSE, (free[2:6],), 1, WAIT, 10)
    freed: list[int] = []
    shrink = BlockPool.shrink

    def watched(pool: BlockPool, span: Span, tokens: int) -> None:
        before = len(span.blocks)
        shrink(pool, span, tokens)
        freed.append((before - len(span.blocks)) * (tokens > 0))

    monkeypatch.setattr(BlockPool, "shrink", watched)
    (done,) = Engine(model).generate([replace(base, thinking=t)])
    assert freed[0] == 1 and done.waits == 1 and done.tokens[:4] == (*free[:2], *WAIT)
    check([done], [Twin(model, replace(base, thinking=t)).run()])


@pytest.mark.parametrize("rows", [1, 3], ids=["own prompt", "shared prompt"])
def test_an_end_that_is_the_very_beginning(rows: int, tiny_decoder: Callable[..., Any]) -> None:
    model = tiny_decoder()
    base = Request(prompt(30, 2), 1)
    free = free_run(model, base)
    r = replace(base, thinking=Thinking(12, CLOSE, (free[:3],), 1, WAIT, 6))
    expected = Twin(model, r).run()
    assert expected.tokens[:2] == WAIT and not any(expected.sampled[:2])
    check(Engine(model, 4).generate([r] * rows), [expected] * rows)


def test_a_natural_end(tiny_decoder: Callable[..., Any]) -> None:
    """A marker that the model writes is kept and not counted; what follows is the answer, as if nothing were forced."""
    model = tiny_decoder()
    base = Request((4, 5), 1)
    free = free_run(model, base)
    (done,) = Engine(model).generate([replace(base, thinking=Thinking(20, CLOSE, (free[3:5],), 0, (), 6))])
    assert done.tokens == free[:26] and all(done.sampled) and done.thinking == 3


def test_the_end_of_a_turn(tiny_decoder: Callable[..., Any]) -> None:
    """Without a marker a turn that ends is over; where a marker closes the thinking, an answer is forced first."""
    model = tiny_decoder()
    free = free_run(model, Request((4, 5), 1))
    base = Request((4, 5), 1, stop=frozenset({free[4]}))
    at = free.index(free[4])
    over, forced, extended, no_room = Engine(model).generate([
        replace(base, thinking=Thinking(20, CLOSE, ((free[4],),), 0, (), 6)),
        replace(base, thinking=Thinking(20, CLOSE, (CLOSE[:1], (free[4],)), 0, (), 6)),
        replace(base, thinking=Thinking(20, CLOSE, ((free[4],),), 1, WAIT, 6)),
        replace(base, thinking=Thinking(at + 2, CLOSE, ((free[4],),), 1, WAIT, 6)),
    ])  # fmt: skip
    assert over.tokens == free[: at + 1] and over.thinking == at and over.reason == "stop" and all(over.sampled)
    assert forced.tokens[: at + 3] == (*free[:at], *CLOSE) and forced.thinking == at and not forced.sampled[at]
    assert extended.tokens[: at + 2] == (*free[:at], *WAIT) and extended.waits == 1
    assert no_room.tokens == over.tokens and no_room.waits == 0, "nothing could follow the words within the budget"


def test_opened_by_the_model_or_by_the_prompt(tiny_decoder: Callable[..., Any]) -> None:
    model = tiny_decoder()
    base = Request((4, 5, 6, 7), 1)
    free = free_run(model, base)
    t = Thinking(5, CLOSE, ((VOCAB, 1),), answer=6, opens=(free[:2],), tagged=(30, 31))
    for opens, closing in (((free[:2],), (30, 31)), (((6, 7),), (30, 31)), ((free[1:3],), CLOSE)):
        (done,) = Engine(model).generate([replace(base, thinking=replace(t, opens=opens))])
        assert done.tokens[5 : 5 + len(closing)] == closing


def test_what_is_streamed_is_never_taken_back(tiny_decoder: Callable[..., Any]) -> None:
    model = tiny_decoder()
    requests = forced_requests(Engine(model, 1), 12, 7)
    parts: dict[int, list[tuple[int, float]]] = {i: [] for i in range(len(requests))}
    late = 0
    for event in Engine(model, 5).tokens(requests):
        if len(event) == 2:
            i, done = event
            assert tuple(t for t, _ in parts[i]) == done.tokens
            if requests[i].logprobs:
                assert tuple(lp for _, lp in parts[i]) == done.logprobs
            late += done.waits
        else:
            parts[event[0]].append(event[1:])
    assert late >= 3


def test_a_seed_is_the_whole_of_the_noise(tiny_decoder: Callable[..., Any]) -> None:
    model = tiny_decoder()
    requests = [replace(r, temperature=1.0) for r in forced_requests(Engine(model, 1), 10, 5)]
    together = Engine(model, 16).generate(requests)
    check([Engine(model, 2).generate([r])[0] for r in requests], together)
    check(Engine(model, 3).generate(requests[::-1])[::-1], together)


def test_cancelled_while_tokens_are_held_back(tiny_decoder: Callable[..., Any]) -> None:
    model = tiny_decoder()
    requests = forced_requests(Engine(model, 1), 8, 3)
    for after in (1, 2, 5, 9):
        with Engine(model, 4).open() as session:
            ids = [session.add(r) for r in requests]
            for _ in range(after):
                session.step()
            for i in ids:
                session.cancel(i)
            assert session.idle and empty(session)


def test_a_request_without_thinking_takes_no_part_in_it(
    tiny_decoder: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def never(*_: Any) -> None:
        raise AssertionError("the forced path was taken")

    monkeypatch.setattr(Session, "_forced", never)
    (done,) = Engine(tiny_decoder()).generate([Request((4, 5), 20, 1.0)])
    assert (done.sampled, done.thinking, done.waits, len(done.tokens)) == ((), 0, 0, 20)


def test_stop_strings_end_the_thinking_too(tiny_decoder: Callable[..., Any]) -> None:
    engine = Engine(tiny_decoder(), text=lambda ids: "".join(chr(97 + i % 26) for i in ids))
    free = free_run(engine.model, Request((4, 5), 1))
    word = engine.text(free[5:8])  # pyright: ignore[reportOptionalCall]
    (done,) = engine.generate([Request((4, 5), 1, stop_strings=(word,), thinking=Thinking(20, CLOSE, ((VOCAB, 1),)))])
    n = len(done.tokens)
    assert done.reason == "stop" and done.tokens == free[:n] and n <= 8 and done.thinking == n


@pytest.mark.parametrize(
    "wrong",
    [
        {"budget": -1}, {"close": ()}, {"ends": ((),)}, {"waits": 1}, {"waits": -1, "wait": (1,)}, {"answer": 3},
        {"opens": ((1,),)}, {"opens": ((1,),), "tagged": (1,) * 70},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be_met(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Thinking(**({"budget": 5, "close": CLOSE, "ends": ((1,),)} | wrong))


def test_the_limit_is_budget_and_answer() -> None:
    t = Thinking(100, CLOSE, ((1,),), answer=20)
    assert Request((1,), 7, thinking=t).max_new == replace(Request((1,), 7), thinking=t).max_new == 120
    assert Request((1,), 7).max_new == 7
