"""Curate's servers: pass rates and labels by the token, failures, a stop, a restart that repays nothing, the plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("httpx2", reason="needs httpx2: pip install 'shoestring[endpoint]'")

import scripted_teacher as st

from shoestring.estimate.flops import ModelShape
from shoestring.estimate.machine import prior
from shoestring.generate import endpoint as endpoint_module
from shoestring.records import Intent, StepReport, Usage, UserError
from shoestring.stages import curate
from shoestring.stages.context import Facts, read_lines, write_lines

SKU = "teacher:own/m"
FACTS = Facts(ModelShape(2, 32, 4, 2, 8, 48, 61, True), prior(frozenset(), 1), "x/machine-second", "curate")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "BACKOFF", 0.01)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"{3 * i} + {i + 7} =", "answer": str(4 * i + 7), "domain": f"d{i % 2}", "licence": "mit", "source": "own"}
        for i in range(40)
    ]
    return write_lines(tmp_path / "own.jsonl", rows)


def server(url: str, **rest: Any) -> dict[str, Any]:
    return {"url": url, "model": "m", "price": "own/m", **rest}


def config(pool: Path, **keys: Any) -> curate.Config:
    small = dict(sources=[str(pool)], count=6, candidates=10, samples=1, shots=0, max_new=60, family_high=1.0, too_easy=1.0)
    return curate.Config(**small | keys)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def curated(make_context: Any, drive: Any, tmp_path: Path, pool: Path) -> Callable[..., tuple[list[dict[str, Any]], list[Any]]]:
    """curated(where, until, keys…) → (the chosen rows, the events)."""

    def go(where: str = "run", until: int | None = None, **keys: Any) -> tuple[list[dict[str, Any]], list[Any]]:
        events = drive(curate.run(config(pool, **keys), {}, make_context(tmp_path / where, "curate")), until)
        path = tmp_path / where / "problems.jsonl"
        return (read_lines(path) if path.exists() else []), events

    return go


def used(events: list[Any], kind: str = "out", outcome: str = "") -> float:
    return sum(e.quantity for e in events if isinstance(e, Usage) and e.sku == f"{SKU}/{kind}" and outcome in ("", e.outcome))


def funnel(folder: Path) -> dict[str, dict[str, Any]]:
    return {r["step"]: r for r in json.loads((folder / "funnel.json").read_text())}


def test_pass_rates_of_a_server(curated: Any, tmp_path: Path) -> None:
    """Half of its answers are wrong; a 429 is waited for; every attempt is posted, and before what is asked next."""
    wrong = st.says("it is 1000.\nAnswer: 1000")

    def some(h: Any) -> None:
        (wrong if int(h.prompt.split()[0]) % 2 else st.says())(h)

    with st.serving(st.refuses(429, retry_after="0.2"), st.truncated, some) as s:
        rows, events = curated(models=[server(s.url)], concurrency=1, too_easy=0.9)
    assert len(s.seen) == 12 and s.seen[1]["time"] - s.seen[0]["time"] >= 0.2
    assert rows and all(r["rates"] == {"base": r["rates"]["base"], "m": 0.0} and r["pass_rate"] <= 0.9 for r in rows)
    kept = read_lines(tmp_path / "run" / "work" / "curate" / "samples-1.jsonl")
    assert len(kept) == 10 and {r["score"] for r in kept} == {0.0, 1.0} and all(r["lenient"] == r["score"] for r in kept)
    assert used(events, outcome="useful") == 10 * 12 and used(events, outcome="failed") > 0, "the truncated stream is paid for"
    assert funnel(tmp_path / "run")["difficulty"]["before"] - funnel(tmp_path / "run")["difficulty"]["after"] == sum(r["score"] for r in kept)
    held: dict[str, float] = {}
    for e in events:
        if isinstance(e, Intent):
            held = {u.sku: u.quantity for u in e.usages}
        elif isinstance(e, Usage):
            held[e.sku] -= e.quantity
            assert held[e.sku] >= 0, "what is posted never exceeds what was reserved"
    said = next(e.extra for e in events if isinstance(e, StepReport) and e.stage == "curate.grading")
    assert said["verdicts"]["wrong"] > 0 and said["tokens"]["out"] == used(events) and said["failed_attempts"] == 1


def test_the_base_may_be_left_out(curated: Any, tmp_path: Path) -> None:
    with st.serving(st.says()) as s:
        rows, events = curated(models=[server(s.url, max_new=99)], ask_base=False, samples=2)
    assert len(s.seen) == 20 and {x["body"]["max_tokens"] for x in s.seen} == {99}
    assert {json.dumps(r["rates"]) for r in rows} == {'{"m": 1.0}'} and not (tmp_path / "run" / "work" / "curate" / "samples.jsonl").exists()
    assert "samples-of-base" not in [getattr(e, "kind", "") for e in events]
    assert len({x["body"]["seed"] for x in s.seen}) == 20, "samples differ by their seed"


def test_worked_examples_are_asked_along(curated: Any, tmp_path: Path, pool: Path) -> None:
    write_lines(pool, [{**r, "solution": f"Answer: {r['answer']}"} for r in read_lines(pool)])
    with st.serving(st.says()) as s:
        curated(models=[server(s.url)], ask_base=False, shots=2)
    assert {len(x["body"]["messages"]) for x in s.seen} == {5}


@pytest.mark.parametrize("drop", [3, 8])
def test_a_restart_repays_nothing(curated: Any, make_context: Any, tmp_path: Path, pool: Path, drop: int) -> None:
    """Dropped after some replies: what has a row on the disk is not asked again, and the end is the same."""
    keys = dict(ask_base=False, concurrency=1)
    with st.serving(st.says()) as s:
        whole, _ = curated("whole", models=[server(s.url)], **keys)
        before, labels = len(s.seen), server(s.url)
        events = curate.run(config(pool, models=[labels], **keys), {}, make_context(tmp_path / "run", "curate"))
        reply, heard = None, 0
        while heard < drop:
            event = events.send(reply)
            reply = "go" if isinstance(event, Intent) else None
            heard += isinstance(event, StepReport) and event.stage == "curate"
        events.close()
        had = len(read_lines(tmp_path / "run" / "work" / "curate" / "replies-1.jsonl"))
        again, events = curated(models=[server(s.url)], **keys)
        assert len(s.seen) - before <= 10 + 1 and had >= drop, "what was in flight, and nothing else, is asked again"
        assert used(events) == (10 - had) * 12
    assert again == whole


def test_a_stop_keeps_what_was_tried(curated: Any, tmp_path: Path) -> None:
    with st.serving(st.says()) as s:
        rows, _ = curated(models=[server(s.url)], ask_base=False, concurrency=1, until=4, labels=server(s.url, model="n"))
        assert len(s.seen) <= 5, "nothing new is begun, and no label is asked for"
    assert 0 < len(rows) <= 5
    step = funnel(tmp_path / "run")["pass rate known"]
    assert step["before"] == 10 and step["after"] == len(rows)


def test_a_server_that_gives_nothing(curated: Any) -> None:
    with st.serving(st.says(), st.says(), st.dies) as s:
        rows, _ = curated("some", models=[server(s.url, retries=0)], ask_base=False, concurrency=1)
        assert len(rows) == 2
    with st.serving(st.refuses(401)) as s, pytest.raises(UserError, match="401"):
        curated("key", models=[server(s.url)], ask_base=False)
    with st.serving(st.truncated) as s, pytest.raises(UserError, match="not one answer came"):
        curated("cut", models=[server(s.url, retries=0)], ask_base=False)


def test_labels_of_a_list(curated: Any, tmp_path: Path) -> None:
    """One of the list as it stands, in a sentence, in other letters; what is none of it is counted, not guessed."""
    def answers(h: Any) -> None:
        n = int(h.prompt.rsplit("\n\n", 1)[1].split()[0]) // 3
        said = ["Number Theory", "This is a matter of **geometry**.", "Domain: number theory", "cooking", ""][n % 5]
        st.says(said or "Number theory or geometry")(h)

    with st.serving(st.refuses(429, retry_after="0.1"), answers) as s:
        rows, events = curated(samples=0, count=20, candidates=20, labels=server(s.url, names=["number theory", "geometry"]))
        assert len(s.seen) == 41
        assert all("number theory, geometry" in p for p in st.prompts(s.seen)) and s.seen[1]["body"]["temperature"] == 0
        assert used(events) == 40 * 12
        step = funnel(tmp_path / "run")["labels"]
        assert (step["before"], step["after"]) == (40, 40) and step["why"] == "3 domains by m; 16 unknown label"
        assert {r["domain"] for r in rows} == {"number theory", "geometry", "other"}
        counts = {d["domain"]: d["pool"] for d in json.loads((tmp_path / "run/domains.json").read_text())}
        assert counts == {"number theory": 16, "geometry": 8, "other": 16}
        again, events = curated(samples=0, count=20, candidates=20, labels=server(s.url, names=["number theory", "geometry"]))
        assert len(s.seen) == 41 and again == rows and not used(events), "a second attempt repays nothing"


def test_free_labels_after_difficulty(curated: Any, tmp_path: Path) -> None:
    """Only what difficulty leaves is labelled; the same label in other letters is one domain."""
    def answers(h: Any) -> None:
        if "Name the field" not in h.prompt:
            (st.says() if int(h.prompt.split()[0]) % 2 else st.says("Answer: 0"))(h)
        else:
            st.says("**Arithmetic**." if int(h.prompt.rsplit("\n\n", 1)[1].split()[0]) % 4 else "arithmetic\nbecause it adds")(h)

    with st.serving(answers) as s:
        rows, _ = curated(models=[server(s.url)], ask_base=False, too_easy=0.9, labels=server(s.url, model="n"))
        labelled = sum("Name the field" in p for p in st.prompts(s.seen))
    assert {r["domain"] for r in rows} == {"arithmetic"} and funnel(tmp_path / "run")["labels"]["before"] == labelled < 10


def test_a_stop_in_the_labels_keeps_the_other_domains(curated: Any, tmp_path: Path) -> None:
    with st.serving(st.says("algebra")) as s:
        rows, _ = curated(samples=0, count=40, candidates=40, labels=server(s.url), concurrency=1, until=7)
    why = funnel(tmp_path / "run")["labels"]["why"]
    assert "not asked: stopped" in why and {r["domain"] for r in rows} == {"algebra", "d0", "d1"}


def test_free_seconds_are_reported(curated: Any) -> None:
    """Nothing but the clock between events is nobody's: each reading of the test's clock is a second."""
    with st.serving(st.says("algebra")) as s:
        _, events = curated(samples=0, labels=server(s.url))
    parts = [e.stage for e in events if isinstance(e, StepReport) and e.stage != "curate"]
    assert parts == ["curate.free", "curate.difficulty", "curate.labelling", "curate.choice"]
    assert all(e.seconds > 0 and e.step == 1 for e in events if isinstance(e, StepReport) and e.stage != "curate")


def test_the_plan_prices_the_servers(pool: Path) -> None:
    def tokens(**keys: Any) -> dict[str, float]:
        made = curate.forecast(config(pool, **keys), FACTS)
        assert made.counted == "literature" or not keys
        return {u.sku: u.quantity for u in made.usages if u.unit == "token"}

    assert tokens() == {}
    one = tokens(models=[server("http://h/v1")])
    assert one[f"{SKU}/out"] == 10 * 30 and one[f"{SKU}/in"] > 10 * 20
    assert tokens(models=[server("http://h/v1", max_new=600)], samples=2)[f"{SKU}/out"] == 20 * 300
    more = tokens(models=[server("http://h/v1")], shots=4)
    assert more[f"{SKU}/in"] > one[f"{SKU}/in"], "worked examples are read with every request"
    labels = tokens(samples=0, labels=server("http://h/v1", max_new=20))
    assert labels[f"{SKU}/out"] == 40 * 10 and labels[f"{SKU}/in"] > 40 * 40
    assert tokens(labels=server("http://h/v1", max_new=20))[f"{SKU}/out"] == 10 * 10, "no more than are left by then"
    assert tokens(samples=0, labels=server("http://127.0.0.1/v1") | {"price": "machine"}) == {}
    base = curate.forecast(config(pool), FACTS)
    without = curate.forecast(config(pool, models=[server("http://h/v1")], ask_base=False), FACTS)
    assert without.sampled == 0 and without.flops == 0 < base.flops and "m: 10 requests" in without.notes[0]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (dict(models=[{"model": "m"}]), "models needs a server"), (dict(models=[server("http://h/v1", nmes=1)]), 'unknown key "nmes"'),
        (dict(models=[{"url": "http://h/v1", "model": "m"}]), "models lacks price"), (dict(ask_base=False), "ask_base = false"),
        (dict(models=[server("http://h/v1")] * 2), "'m' is asked twice"), (dict(concurrency=3), "concurrency = 3"),
        (dict(labels={"url": "http://h/v1", "price": "a/b"}), "labels lacks model"), (dict(labels=server("http://h/v1", names="x")), "labels.names"),
        (dict(labels=server("http://h/v1", max_new=0)), "labels.max_new"), (dict(labels=server("http://h/v1", price="machine")), "labels.price"),
    ],
)  # fmt: skip
def test_refusals(pool: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(pool, **keys)


def test_a_key_that_is_not_set(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    for keys in (dict(models=[server("http://h/v1", key_env="NO_SUCH_KEY")]), dict(labels=server("http://h/v1", key_env="NO_SUCH_KEY"))):
        with pytest.raises(UserError, match="NO_SUCH_KEY is not set"):
            curate.check(config(pool, **keys), "")
