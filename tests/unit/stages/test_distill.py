"""Distilling from a teacher: what is kept, what is paid, the ceiling in mid-flight, and a restart that repays nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("httpx2", reason="needs httpx2: pip install 'shoestring[endpoint]'")

import scripted_teacher as st

from shoestring import recipe, stages
from shoestring.cost.budget import Budget
from shoestring.cost.ledger import Ledger
from shoestring.cost.price import Price
from shoestring.cost.prices import PriceBook
from shoestring.estimate.flops import ModelShape
from shoestring.estimate.machine import prior
from shoestring.generate import endpoint as endpoint_module
from shoestring.lease import Lease
from shoestring.records import Artifact, Intent, PriceRef, Problem, StepReport, Usage, UserError
from shoestring.report import findings
from shoestring.stages import distill
from shoestring.stages.context import Facts, Overrun, read_lines, write_lines
from shoestring.stages.distill import Config
from shoestring.stages.prompts import to_row

SKU = "teacher:own/m"
LETTERS = 1_000  # dollars for a million tokens of the scripted teacher: a thousandth each


def problem(a: int, b: int) -> Problem:
    return Problem.make(f"What is {a} + {b}?", str(a + b), domain="sums", source="tiny", licence="CC0-1.0")


PROBLEMS = [problem(i, i + 1) for i in range(6)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: Any) -> None:
    monkeypatch.setattr(endpoint_module, "BACKOFF", 0.01)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    return {"problems": write_lines(tmp_path / "problems.jsonl", [to_row(p) for p in PROBLEMS])}


@pytest.fixture
def taught(tmp_path: Path, inputs: Any, make_context: Any, drive: Any) -> Callable[..., tuple[list[dict[str, Any]], list[Any]]]:
    """taught(where, config keys…) → (the traces, the events)."""

    def go(where: str = "run", until: int | None = None, **keys: Any) -> tuple[list[dict[str, Any]], list[Any]]:
        config = Config(**({"samples": 1, "max_new": 64, "solutions": False} | keys))
        events = drive(distill.run(config, inputs, make_context(tmp_path / where, "distill")), until)
        path = tmp_path / where / "traces" / "distill.jsonl"
        return (read_lines(path) if path.exists() else []), events

    return go


def server(url: str, **rest: Any) -> dict[str, Any]:
    return {"url": url, "model": "m", "price": "own/m", **rest}


def meta(events: list[Any]) -> dict[str, Any]:
    return dict(next(e for e in events if isinstance(e, Artifact)).meta)


def used(events: list[Any], kind: str = "out") -> float:
    return sum(e.quantity for e in events if isinstance(e, Usage) and e.sku == f"{SKU}/{kind}")


def test_verified_answers_of_an_endpoint(taught: Any) -> None:
    wrong = st.says("I think it is 1000.\nAnswer: 1000", reasoning_content="let me guess")
    with st.serving(wrong, st.says(reasoning_content="let me see")) as s:
        traces, events = taught(teacher=server(s.url), concurrency=1)
    assert len(traces) == 5 and len(s.seen) == 6
    row = traces[0]
    assert row["messages"][1]["content"].startswith("<think>\nlet me see\n</think>\n\n") and row["thinking"] == "let me see"
    assert (row["model"], row["licence"], row["source"], row["score"], row["rationalised"]) == ("m", "CC0-1.0", "tiny", 1.0, False)
    assert row["usage"] == {"in": 40, "cached": 0, "out": 12, "thinking": row["usage"]["thinking"]} and row["usage_basis"] == "reported"
    assert len(row["sampled"]) == len(row["tokens"]) == len(row["logprobs"]) and not any(row["sampled"])
    assert used(events) == 6 * 12 and used(events, "in") == 6 * 40
    said = meta(events)
    assert (said["teacher"], said["teacher_attempts"], said["teacher_tokens"]["out"]) == ("m", 6, 72)
    assert said["invalid"]["before"] == pytest.approx(1 / 6, abs=1e-3) and said["invalid"]["kept"] == 0.0
    assert said["verdicts"] == {"right": 5, "wrong": 1}
    last = [e for e in events if isinstance(e, StepReport)][-1]
    assert last.extra["invalid"] == said["invalid"] and last.extra["verdicts"] == said["verdicts"] and last.step == last.total == 7
    line = findings.invalid(said["invalid"], said)
    assert line.startswith("invalid (measured; the grader does not find them right): 16.7% of 6 replies") and "72 written" in line
    assert all(s_["body"]["max_tokens"] == 64 and s_["body"]["stream"] for s_ in s.seen)


def test_every_intent_is_an_upper_bound(taught: Any) -> None:
    """What is posted until the next intent never exceeds what was reserved, failures and repeats included."""
    script = [st.truncated, st.refuses(500), st.malformed, st.says(end=st.usage(40, 60)), st.dies, st.says()]
    with st.serving(*script) as s:
        traces, events = taught(teacher=server(s.url, silence_seconds=1), concurrency=2, samples=2)
    assert len(traces) == 6
    held: dict[str, float] = {}
    for e in events:
        if isinstance(e, Intent):
            held = {u.sku: u.quantity for u in e.usages}
        elif isinstance(e, Usage):
            held[e.sku] = held[e.sku] - e.quantity
            assert held[e.sku] >= 0, e
    assert sum(isinstance(e, Usage) and e.outcome == "failed" for e in events) >= 3
    assert meta(events)["failed_attempts"] == meta(events)["estimated_attempts"] == 3


def test_a_restart_repays_nothing(taught: Any) -> None:
    """Stopped after three replies, gone on with, and begun again once more: every request is asked once, and paid once."""
    with st.serving(st.says()) as s:
        before, first = taught("run", 3, teacher=server(s.url), concurrency=1)
        cancelled = sum(isinstance(e, Usage) and e.outcome == "failed" and e.sku.endswith("/in") for e in first)
        assert len(before) in (3, 4) and cancelled <= 1, "a fourth may have come while the third was posted"
        traces, second = taught("run", teacher=server(s.url), concurrency=1)
        asked = Counter(st.prompts(s.seen))  # the one that was cancelled may or may not have reached the server
        assert len(traces) == len(asked) == 6 and sum(asked.values()) <= 6 + cancelled
        assert all(asked[r["messages"][0]["content"]] == 1 for r in before)
        assert used(second) == (6 - len(before)) * 12
        again, third = taught("run", teacher=server(s.url), concurrency=1)
        assert Counter(st.prompts(s.seen)) == asked and again == traces and not [e for e in third if isinstance(e, Usage)]
        assert not [e for e in third if isinstance(e, Intent)], "nothing is left to be asked for"


def book() -> PriceBook:
    made = PriceBook()
    for kind in ("in", "out"):
        made.add(f"{SKU}/{kind}", Price(Decimal(LETTERS) / 1_000_000, "token", PriceRef("test", "2026-11-01")))
    made.add("x/machine-second", Price(Decimal("0.0001"), "second", PriceRef("test", "2026-11-01")))
    return made


@pytest.mark.parametrize("budget", ["0.5", "0.65", "0.72", "0.8", "1.3", "5.0"])
@pytest.mark.parametrize("broken", [False, True])
def test_never_above_the_budget(tmp_path: Path, inputs: Any, make_context: Any, budget: str, broken: bool) -> None:
    """A stage that is driven as the pipeline drives it, with the real ledger, lease and ceiling."""
    clock = [1000.0]

    def now() -> float:
        clock[0] += 0.5
        return clock[0]

    ledger = Ledger.open(tmp_path / "ledger.jsonl")
    ledger.begin("a1", lease_start=1000.0)
    limit = Budget(Decimal(budget), book(), ledger)
    lease = Lease(ledger, limit, "x/machine-second", "a1", tmp_path, 1000.0, now)
    script = [st.truncated, st.says(), st.dies, st.says(end=False), st.says(slow=0.01)] if broken else [st.says(slow=0.005)]
    context = make_context(tmp_path / "run", "distill", clock=now, priced=lambda sku: False, fits=lambda intent: lease.fits(intent, 1.0))
    with st.serving(*script) as s:
        events = distill.run(Config(teacher=server(s.url), samples=1, max_new=64, solutions=False, concurrency=2), inputs, context)
        answer, stopped = None, False
        while True:
            try:
                event = events.send(answer)
            except StopIteration:
                break
            answer = None
            if isinstance(event, Intent):
                answer = "go" if lease.ask(event, 1.0) else "stop"
                stopped = stopped or answer == "stop"
            elif isinstance(event, Usage):
                ledger.post(event)
            elif isinstance(event, StepReport):
                lease.settle(event.seconds)
            assert limit.accrued() <= limit.limit
        asked = len(s.seen)
    assert stopped == (Decimal(budget) < 1) and (asked == 0) == (budget == "0.5")
    lease.settle()
    assert limit.committed() == 0
    assert limit.accrued() >= Decimal(budget) - Decimal("0.64") or not stopped, "it stopped only when not one more was sure to fit"
    ledger.close()


def test_a_stop_in_mid_flight_ends_what_is_open_and_posts_it(taught: Any) -> None:
    with st.serving(st.says(slow=0.03), st.says(slow=0.3)) as s:
        traces, events = taught(until=1, teacher=server(s.url), concurrency=6)
        asked = len(s.seen)
    assert asked == 6 and len(traces) == 1
    assert sum(isinstance(e, Usage) and e.sku.endswith("/in") for e in events) == 6
    assert [e.outcome for e in events if isinstance(e, Usage) and e.sku.endswith("/in")].count("failed") == 5


def test_a_teacher_that_is_not_there_ends_the_stage(taught: Any) -> None:
    with pytest.raises(UserError, match="no server answers there"):
        taught(teacher=server("http://127.0.0.1:9/v1", retries=1), concurrency=1)
    with st.serving(st.refuses(503)) as s, pytest.raises(UserError, match="gives no answer, 8 times in a row.*503"):
        taught(teacher=server(s.url, retries=1), samples=2, concurrency=2)


def test_a_key_that_is_refused_posts_what_was_in_flight(taught: Any, tmp_path: Path, make_context: Any, inputs: Any) -> None:
    with st.serving(st.says(slow=0.3), st.refuses(401)) as s:
        events, seen = distill.run(Config(teacher=server(s.url), samples=1, max_new=64, solutions=False), inputs, make_context(tmp_path / "r", "distill")), []
        with pytest.raises(UserError, match="401"):
            for e in _go(events):
                seen.append(e)
    assert [e.outcome for e in seen if isinstance(e, Usage)].count("failed") >= 1


@pytest.mark.parametrize("error", [Overrun, KeyboardInterrupt])
def test_an_alarm_in_mid_flight_posts_what_was_open(tmp_path: Path, make_context: Any, inputs: Any, error: type[BaseException]) -> None:
    """The watchdog ends a step: the stage goes on to what it has. A second Ctrl-C ends it, after the money is posted."""
    with st.serving(st.says(slow=0.03), st.says(slow=0.3)) as s:
        config = Config(teacher=server(s.url), samples=1, max_new=64, solutions=False)
        events, seen, answer = distill.run(config, inputs, make_context(tmp_path / "r", "distill")), [], None
        while not any(isinstance(e, Usage) for e in seen):
            seen.append(events.send(answer))
            answer = "go" if isinstance(seen[-1], Intent) else None
        seen.append(events.throw(error))
        if error is Overrun:
            seen += _go(events)
            assert isinstance(seen[-1], Artifact) and meta(seen)["count"] == 1
        else:
            with pytest.raises(KeyboardInterrupt):
                seen += list(_go(events)) or [None]
    assert [e.outcome for e in seen if isinstance(e, Usage) and e.sku.endswith("/in")].count("failed") >= (5 if error is Overrun else 1)


def _go(events: Any) -> Any:
    answer = None
    while True:
        try:
            event = events.send(answer)
        except StopIteration:
            return
        answer = "go" if isinstance(event, Intent) else None
        yield event


def test_rationalise(taught: Any) -> None:
    """STaR: what nobody solved is asked with the answer; the hint is in no trace, and a rationale that names it is dropped."""

    def answers(h: Any) -> None:
        if "The answer is" not in h.prompt:
            st.says("Answer: 1000")(h)
        elif "What is 0 + 1" in h.prompt:
            st.says("As the given answer says, it is so, and so we are done.\nAnswer: 1")(h)
        elif "What is 1 + 2" in h.prompt:
            st.says("Answer: 3")(h)
        else:
            st.says("We count from the first number as far as the second goes.\n" + st.solved(h.prompt))(h)

    with st.serving(answers) as s:
        traces, events = taught(teacher=server(s.url), concurrency=1, rationalise=True)
    assert len(s.seen) == 12 and len(traces) == 4 and all(r["rationalised"] for r in traces)
    assert all("The answer is" not in json.dumps(r["messages"]) for r in traces)
    assert [r["messages"][0]["content"] for r in traces] == [p.prompt for p in PROBLEMS[2:]]
    assert used(events) == 12 * 12


def test_self_filter_and_the_invalid_share(taught: Any) -> None:
    bad = {
        0: "Сначала сложим эти числа вместе.\nAnswer: 1", 1: "```python\nprint(3)\n```\nAnswer: 3",
        2: "word " * 900 + "\nAnswer: 5", 3: " ".join(map(str, range(1200))) + "\nAnswer: 7",
    }  # fmt: skip

    def answers(h: Any) -> None:
        first = int(h.prompt.split()[2])
        st.says(bad.get(first))(h)

    with st.serving(answers) as s:
        loose, _ = taught("a", teacher=server(s.url))
        strict, events = taught("b", teacher=server(s.url), self_filter=True)
    assert len(loose) == 6 and [r["problem_id"] for r in strict] == [p.id for p in PROBLEMS[4:]]
    faults = meta(events)["invalid"]["faults"]
    assert faults == {"mixed languages": 1, "code block": 1, "garbled repeats": 1, "long paragraph": 1}
    assert meta(events)["invalid"]["formed"] == 2


def test_what_was_cut_off_is_not_kept(taught: Any) -> None:
    with st.serving(st.says(finish="length"), st.says()) as s:
        traces, events = taught(teacher=server(s.url), concurrency=1)
    assert len(traces) == 5 and meta(events)["invalid"]["faults"] == {"cut off": 1}


def test_prefer(taught: Any) -> None:
    texts = ["Answer: {}", "so it is {0}.\nAnswer: {0}", "we add and add and find {0}, which is the sum of the two.\nAnswer: {0}"]

    def answers(h: Any) -> None:
        a, b = (int(x) for x in (h.prompt.split()[2], h.prompt.split()[4].rstrip("?")))
        n = sum(p == h.prompt for p in st.prompts(h.seen)) - 1
        st.says(texts[n % 3].format(a + b))(h)

    kept = {}
    for prefer, keep in (("short", 1), ("long", 1), ("diverse", 2)):
        with st.serving(answers) as s:
            traces, _ = taught(prefer, teacher=server(s.url), concurrency=1, samples=3, keep=keep, prefer=prefer)
        kept[prefer] = [r["text"] for r in traces if r["problem_id"] == PROBLEMS[0].id]
    assert kept["short"] == ["Answer: 1"] and kept["long"][0].startswith("we add") and len(kept["diverse"]) == 2


def test_a_recorded_teacher_costs_nothing(taught: Any, tmp_path: Path) -> None:
    rows = [{"question": p.prompt, "model": "big", "response": st.solved(p.prompt), "licence": "MIT", "source": "there"} for p in PROBLEMS[:4]]
    path = write_lines(tmp_path / "r.jsonl", [*rows, {"question": PROBLEMS[4].prompt, "model": "big", "response": "Answer: 0"}])
    traces, events = taught(teacher={"recorded": str(path), "model": "big"}, samples=2)
    assert len(traces) == 4 and not [e for e in events if isinstance(e, Usage)]
    said = meta(events)
    assert said["teacher_price"] == "0 (recorded)" and said["teacher_tokens"]["out"] > 0 and said["unrecorded"] == 7
    assert said["invalid"]["replies"] == 5 and said["invalid"]["before"] == 0.2
    assert (traces[0]["teacher_licence"], traces[0]["teacher_source"], traces[0]["licence"]) == ("MIT", "there", "CC0-1.0")


def test_a_local_teacher(taught: Any, tiny_base: Path, tmp_path: Path) -> None:
    """The random model solves nothing; that it was asked, and for every problem, is in the artifact."""
    with pytest.raises(UserError, match="no verified trace"):
        taught(teacher={"model": str(tiny_base)}, max_new=6)
    with pytest.raises(UserError, match="no verified trace"):
        taught("own", max_new=6, rationalise=True)
    assert len(read_lines(tmp_path / "run" / "work" / "distill" / "replies.jsonl")) == 6
    assert len(read_lines(tmp_path / "own" / "work" / "distill" / "replies.jsonl")) == 6, "the rationales; answers have a journal"
    with pytest.raises(UserError, match="no such file"):
        distill.check(Config(teacher={"model": "/nowhere"}), "")


SHAPE = ModelShape(2, 32, 4, 2, 8, 48, 61, True)


def facts(**rest: Any) -> Facts:
    return Facts(SHAPE, prior(frozenset(), 1), "x/machine-second", "distill", **({"problems": 100} | rest))


def test_the_plan_prices_the_teacher(tiny_base: Path, tmp_path: Path) -> None:
    config = Config(samples=2, max_new=1000, teacher={"url": "http://h/v1", "model": "m", "price": "own/m"})
    made = distill.forecast(config, facts())
    by = {u.sku: u.quantity for u in made.usages}
    assert by[f"{SKU}/in"] == 200 * 60 and by[f"{SKU}/out"] == 200 * 500 and by["x/machine-second"] > 0
    assert made.basis == "literature" and made.counted == "literature" and made.amounts == (0.4, 2.0)
    more = distill.forecast(Config(samples=2, max_new=1000, rationalise=True, teacher=config.teacher), facts())
    assert sum(u.quantity for u in more.usages if u.unit == "token") > sum(u.quantity for u in made.usages if u.unit == "token")
    for table in ({"recorded": "x.jsonl"}, {"model": str(tiny_base)}, {"url": "http://localhost/v1", "model": "m", "price": "machine"}):
        own = distill.forecast(Config(max_new=100, teacher=table), facts())
        assert {u.unit for u in own.usages} == {"second"} and own.usages[0].quantity > 0


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({}, "needs one of url, recorded and model"),
        ({"url": "http://h/v1", "recorded": "x"}, "needs one of"),
        ({"url": "http://h/v1", "price": "a/b"}, "lacks model"),
        ({"url": "http://h/v1", "model": "m"}, "lacks price"),
        ({"url": "http://h/v1", "model": "m", "price": "b"}, '"catalogue/model"'),
        ({"url": "http://h/v1", "model": "m", "price": "machine"}, "server on this machine"),
        ({"url": "http://h/v1", "model": "m", "price": "a/b", "key": "sk-1"}, 'unknown key "key"; did you mean "key_env"'),
        ({"model": "m", "price": "a/b"}, 'unknown key "price"'),
        ({"url": "http://h/v1", "model": 3, "price": "a/b"}, "cannot be 3"),
        ({"url": "http://h/v1", "model": "m", "price": "a/b", "retries": -1}, "at least 0"),
    ],
)
def test_tables_that_cannot_be(table: dict[str, Any], says: str) -> None:
    text = 'name = "x"\nbudget = "1 USD"\nbase = "b"\n[[stage]]\nuse = "distill"\nteacher = %s\n'
    inline = "{ " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in table.items()) + " }"
    with pytest.raises(UserError, match=says) as e:
        recipe.loads(text % inline, stages.configs())
    assert "recipe.toml:6" in str(e.value) and "\n" not in str(e.value)


def test_a_missing_key_is_found_before_anything_is_spent(monkeypatch: Any) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UserError, match="NO_SUCH_KEY is not set"):
        distill.check(Config(teacher=server("http://h/v1", key_env="NO_SUCH_KEY")), "")


def test_knobs_that_would_do_nothing() -> None:
    for keys in ({"concurrency": 4}, {"rationalise": True, "keep": 0}, {"concurrency": 0}, {"max_new": 0}):
        with pytest.raises(ValueError):
            Config(**keys)
