"""One interface to teachers: what each way of failing gives and costs, usage that cannot be, the cache, recordings."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx2", reason="needs httpx2: pip install 'shoestring[endpoint]'")

import scripted_teacher as st

from shoestring.generate import endpoint as module
from shoestring.generate.endpoint import Server
from shoestring.generate.recorded import RecordedTeacher
from shoestring.generate.teacher import Cache, LiveTeacher, LocalTeacher, Question, Reply, Spent, ask
from shoestring.records import UserError

SECRET = "sk-do-not-tell-5678"


def count(text: str) -> int:
    return len(text.split())


def question(a: int = 2, b: int = 3, **rest: Any) -> Question:
    return Question(f"{a}+{b}", ({"role": "user", "content": f"What is {a} + {b}?"},), **({"max_tokens": 64} | rest))


@pytest.fixture(autouse=True)
def quick(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "BACKOFF", 0.01)


def live(url: str, spent: list[Spent], **rest: Any) -> LiveTeacher:
    return LiveTeacher(Server(url, "m", **({"concurrency": 1, "chunk_seconds": 0.5} | rest)), count, spent.append)


WHOLE = {"in": 40, "cached": 0, "out": 12, "thinking": 0}
ASKED = 5 + 8  # the question's words, and what a template is taken to add


@pytest.mark.parametrize(
    ("first", "billed", "kinds"),
    [
        (st.refuses(429, Retry_After="0.2"), [WHOLE], ["reported"]),
        (st.refuses(500), [WHOLE], ["reported"]),
        (st.refuses(503), [WHOLE], ["reported"]),
        (st.truncated, [WHOLE | {"in": ASKED, "out": 4}, WHOLE], ["estimated", "reported"]),
        (st.malformed, [WHOLE | {"in": ASKED, "out": 2}, WHOLE], ["estimated", "reported"]),
        (st.dies, [WHOLE | {"in": ASKED, "out": 1}, WHOLE], ["estimated", "reported"]),
        (st.hangs, [WHOLE | {"in": ASKED, "out": 2}, WHOLE], ["estimated", "reported"]),
        (lambda h: h.connection.close(), [WHOLE | {"in": ASKED, "out": 0}, WHOLE], ["estimated", "reported"]),
    ],
    ids=["429", "500", "503", "truncated", "malformed", "dies", "hangs", "hangs up"],
)
def test_what_each_failure_costs(first: Any, billed: list[dict[str, int]], kinds: list[str]) -> None:
    """A refusal costs nothing and is repeated; an answer that broke off costs what had come, and is asked for again."""
    spent: list[Spent] = []
    with st.serving(first, st.says()) as server:
        ((index, reply),) = ask(live(server.url, spent), [question()])
        assert (index, reply.reason, reply.text) == (0, "stop", "2 and 3 make 5.\nAnswer: 5") and len(server.seen) == 2
        assert [dict(s.counts) for s in spent] == billed and [s.basis for s in spent] == kinds
        assert [bool(s.error) for s in spent] == [True] * (len(billed) - 1) + [False]
        if "Retry" in str(getattr(first, "__closure__", "")):
            assert server.seen[1]["time"] - server.seen[0]["time"] >= 0.19
        posted = [u for s in spent for u in s.usages("teacher:own/m", "distill")]
        assert sum(u.quantity for u in posted if u.sku.endswith("/out")) == sum(b["out"] for b in billed)
        assert all(("estimated" in u.attempt) == (k == "estimated") for s, k in zip(spent, kinds, strict=True) for u in s.usages("x", "d"))


def test_repeats_are_bounded_and_each_is_paid() -> None:
    spent: list[Spent] = []
    with st.serving(st.truncated) as server:
        ((_, reply),) = ask(live(server.url, spent, retries=2), [question()])
        assert reply.reason == "error" and "finish reason" in reply.error and len(server.seen) == len(spent) == 3 and reply.settled


@pytest.mark.parametrize(
    ("end", "basis", "counts"),
    [
        (st.usage(40, 12, prompt_tokens_details={"cached_tokens": 30}), "reported", {"in": 10, "cached": 30, "out": 12, "thinking": 0}),
        (st.usage(40, 50, completion_tokens_details={"reasoning_tokens": 38}), "reported", {"in": 40, "cached": 0, "out": 50, "thinking": 38}),
        (st.usage(40, 12, total_tokens=62), "reported", {"in": 40, "cached": 0, "out": 22, "thinking": 0}),
        (False, "estimated", {"in": ASKED, "cached": 0, "out": 7, "thinking": 0}),
        (st.usage(0, 0), "estimated", {"in": ASKED, "cached": 0, "out": 7, "thinking": 0}),
        (st.usage(40, 10**9), "estimated", {"in": ASKED, "cached": 0, "out": 7, "thinking": 0}),
        (st.usage(10**6, 12), "estimated", {"in": ASKED, "cached": 0, "out": 7, "thinking": 0}),
        (st.usage("many", None), "estimated", {"in": ASKED, "cached": 0, "out": 7, "thinking": 0}),
        (st.usage(-4, -1), "estimated", {"in": ASKED, "cached": 0, "out": 7, "thinking": 0}),
    ],
    ids=["cached", "reasoning", "total", "missing", "zero", "huge out", "huge in", "no numbers", "negative"],
)
def test_usage(end: Any, basis: str, counts: dict[str, int]) -> None:
    spent: list[Spent] = []
    with st.serving(st.says(end=end)) as server:
        ((_, reply),) = ask(live(server.url, spent), [question()])
    assert (reply.basis, dict(reply.usage)) == (basis, counts) and dict(spent[0].counts) == counts


@pytest.mark.parametrize("how", ["reasoning_content", "reasoning", "tags"])
def test_thinking(how: str) -> None:
    step = st.says("<think>two and three</think>\n\nAnswer: 5") if how == "tags" else st.says("Answer: 5", **{how: "two and three"})
    with st.serving(step) as server:
        ((_, reply),) = ask(live(server.url, []), [question()])
    assert (reply.thinking, reply.text) == ("two and three", "Answer: 5")
    assert reply.content == "<think>\ntwo and three\n</think>\n\nAnswer: 5" and reply.usage["thinking"] == 3


def test_closing_posts_what_was_in_flight() -> None:
    spent: list[Spent] = []
    with st.serving(st.says(), st.says(slow=0.2)) as server:
        stream = live(server.url, spent, concurrency=4, chunk_seconds=5).once([question(i, 1) for i in range(4)])
        next(stream)
        assert len(spent) == 1
        stream.close()
        assert len(spent) == 4 and {s.error for s in spent[1:]} == {"cancelled"}
        assert all(s.basis == "estimated" and s.counts["in"] == ASKED for s in spent[1:])


def test_the_cache_asks_nothing_twice(tmp_path: Path) -> None:
    questions = [question(i, 1, sample=k) for i in range(3) for k in range(2)]
    with st.serving(st.says()) as server:
        first = dict(ask(live(server.url, []), questions, Cache(tmp_path / "r.jsonl")))
        path = tmp_path / "r.jsonl"
        path.write_bytes(path.read_bytes()[:-7])  # killed while it wrote
        spent: list[Spent] = []
        again = dict(ask(live(server.url, spent), questions, Cache(path)))
        assert len(server.seen) == 7 and len(spent) == 1
        assert {i: r.text for i, r in first.items()} == {i: r.text for i, r in again.items()}
        assert again == dict(ask(live("http://127.0.0.1:9/v1", []), questions, Cache(path)))
        other = [question(0, 1, temperature=0.5)]
        list(ask(live(server.url, []), other, Cache(path)))
        assert len(server.seen) == 8, "another temperature is another request"


def test_what_cost_nothing_is_asked_again_after_a_restart(tmp_path: Path) -> None:
    with st.serving(st.refuses(503), st.says()) as server:
        ((_, reply),) = ask(live(server.url, [], retries=0), [question()], Cache(tmp_path / "r.jsonl"))
        assert reply.reason == "error" and not reply.settled
        ((_, reply),) = ask(live(server.url, []), [question()], Cache(tmp_path / "r.jsonl"))
        assert reply.reason == "stop"


def test_a_reply_survives_its_row(tmp_path: Path) -> None:
    reply = Reply("b\u2028\n", "a", "length", {"in": 1}, (Spent("k", 0, {"in": 1}),), "e", True, "m", "estimated", (1, 2), (0.5, 0.25), {"licence": "MIT"})
    Cache(tmp_path / "r.jsonl").put("k", reply)
    assert Cache(tmp_path / "r.jsonl").get("k") == reply


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    with st.serving(st.says("x \ud800 y")) as server:
        ((_, reply),) = ask(live(server.url, []), [question()])
    assert reply.text == "x ? y"


def test_the_key_stays_in_the_environment(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TEACHER_KEY", SECRET)
    spent: list[Spent] = []
    with st.serving(st.says()) as server:
        list(ask(live(server.url, spent, key_env="TEACHER_KEY"), [question()], Cache(tmp_path / "r.jsonl")))
        assert server.seen[0]["headers"]["Authorization"] == f"Bearer {SECRET}"
    assert SECRET not in (tmp_path / "r.jsonl").read_text() and SECRET not in repr(spent)


def test_no_price_for_cached_tokens() -> None:
    spent = Spent("k", 0, {"in": 10, "cached": 30, "out": 5, "thinking": 2})
    assert {u.sku: u.quantity for u in spent.usages("t", "s", cached=False)} == {"t/in": 40.0, "t/out": 5.0}
    assert {u.sku: u.quantity for u in spent.usages("t", "s")} == {"t/in": 10.0, "t/cached": 30.0, "t/out": 5.0}


def rows(path: Path, *rows: dict[str, Any]) -> Path:
    with gzip.open(path, "wt") as f:
        f.write("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_recorded(tmp_path: Path) -> None:
    path = rows(
        tmp_path / "r.jsonl.gz",
        {"question": "What  is\n2 + 3?", "model": "a", "response": "<think>hm</think>Answer: 5", "licence": "MIT"},
        {"question": "What is 2 + 3?", "model": "b", "response": "six", "usage": {"prompt_tokens": 9, "completion_tokens": 70}},
        {"question": "What is 2 + 3?", "model": "a", "response": " "},
        {"question": "other words", "problem_id": "7+1", "model": "a", "text": "8", "thinking": "seven, eight", "finish_reason": "length"},
    )
    spent: list[Spent] = []
    a = RecordedTeacher(path, "a", count, spent.append)
    got = dict(ask(a, [question(), question(sample=1), question(7, 1)]))
    assert (got[0].text, got[0].thinking, got[0].facts) == ("Answer: 5", "hm", {"licence": "MIT"}) and got[0].model == "a"
    assert dict(got[0].usage) == {"in": 5, "cached": 0, "out": 3, "thinking": 1} and got[0].basis == "recorded"
    assert got[1].reason == "error" and got[1].error == "no recorded completion" and not got[1].settled
    assert (got[2].thinking, got[2].reason) == ("seven, eight", "length")
    assert [s.basis for s in spent] == ["recorded"] * 2
    every = dict(ask(RecordedTeacher(path, "", count), [question(), question(sample=1)]))
    assert [every[i].model for i in (0, 1)] == ["a", "b"] and every[1].usage["out"] == 70


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"question": "q", "response": "r", "model": "x"}\n', "no recorded completion of m; its models: x"),
        (b'{"question": "q"}\n', "r.jsonl:1: a recorded completion needs a question"),
        (b'{"question": "q", "response": "r"}\nnot json\n', "r.jsonl:2: not a line of JSON"),
        (None, "cannot read the recorded completions"),
        (b"\xff\xfe\n", "cannot read"),
    ],
)
def test_recordings_that_cannot_be_used(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "r.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=says) as e:
        RecordedTeacher(path, "m", count)
    assert "\n" not in str(e.value)


def test_a_local_teacher_answers_the_same_way() -> None:
    class Words:
        end, ends = 1, frozenset([1])

        def chat(self, messages: Any) -> tuple[int, ...]:
            return (5,) * len(messages[-1]["content"].split())

        def encode(self, text: str) -> tuple[int, ...]:
            return (2,) * len(text.split())

        def decode(self, ids: Any) -> str:
            return "<think>so it is</think>\n\nAnswer: 5" if 3 in ids else ""

    class Engine:
        def stream(self, requests: Any) -> Any:
            from shoestring.generate.request import Completion

            assert all(r.stop == frozenset([1]) for r in requests)
            for i, _ in enumerate(requests):
                yield i, Completion((3, 4, 1), (-0.5, -0.25, 0.0), "stop")

    ((_, reply),) = ask(LocalTeacher(Engine(), Words(), "big"), [question()])  # pyright: ignore[reportArgumentType]
    assert (reply.thinking, reply.text, reply.tokens) == ("so it is", "Answer: 5", (3, 4, 1)) and reply.model == "big"
    assert dict(reply.usage) == {"in": 5, "cached": 0, "out": 3, "thinking": 3}
