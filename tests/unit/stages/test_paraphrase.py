"""Paraphrases of a server: kept where its answers agree with the gold, paid by the token, never twice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("httpx2", reason="needs httpx2: pip install 'shoestring[endpoint]'")

import scripted_teacher as st

from shoestring import recipe, stages
from shoestring.estimate.flops import ModelShape
from shoestring.estimate.machine import prior
from shoestring.generate import endpoint as endpoint_module
from shoestring.records import Artifact, Intent, StepReport, Usage, UserError
from shoestring.stages import paraphrase
from shoestring.stages.context import Facts, read_lines, write_lines

SKU = "teacher:own/m"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "BACKOFF", 0.01)


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    rows = [{"prompt": f"What is {i} + {i + 1}?", "answer": str(2 * i + 1), "domain": "sums", "licence": "mit", "source": "own"} for i in range(6)]
    return write_lines(tmp_path / "sums.jsonl", rows)


def server(url: str, **rest: Any) -> dict[str, Any]:
    return {"url": url, "model": "m", "price": "own/m", **rest}


def rewrites(h: Any) -> None:
    """0: other numbers; 1: the same words; 2: a question that asks for something else, whose answer is another."""
    if "Rewrite this problem" not in h.prompt:
        return (st.says("Answer: 6") if "product" in h.prompt else st.says())(h)
    a, b = map(int, re.findall(r"\d+", h.prompt))
    said = {0: "Add 0 and 2.", 1: "What is 1 + 2?", 2: "Find the product of 2 and 3."}
    st.says(said.get(a, f"Somebody has {a} apples and gets {b} more: how many?"))(h)


@pytest.fixture
def made(make_context: Any, drive: Any, tmp_path: Path, sums: Path) -> Callable[..., tuple[list[dict[str, Any]], list[Any]]]:
    def go(where: str = "run", until: int | None = None, inputs: Any = None, **keys: Any) -> tuple[list[dict[str, Any]], list[Any]]:
        given: dict[str, Any] = {"sources": [] if inputs else [str(sums)]} | keys
        config = paraphrase.Config(**given)
        events = drive(paraphrase.run(config, inputs or {}, make_context(tmp_path / where, "paraphrase")), until)
        return read_lines(tmp_path / where / "paraphrases.jsonl"), events

    return go


def used(events: list[Any]) -> float:
    return sum(e.quantity for e in events if isinstance(e, Usage) and e.sku == f"{SKU}/out")


def meta(events: list[Any]) -> dict[str, Any]:
    return dict(next(e for e in events if isinstance(e, Artifact)).meta)


def test_kept_where_the_answers_agree(made: Any, tmp_path: Path) -> None:
    with st.serving(st.refuses(429, retry_after="0.2"), rewrites) as s:
        rows, events = made(teacher=server(s.url), checks=2)
        assert s.seen[6]["time"] - s.seen[0]["time"] >= 0.2 and len(s.seen) == 1 + 6 + 2 * 4
        assert [r["prompt"] for r in rows] == [f"Somebody has {a} apples and gets {a + 1} more: how many?" for a in (3, 4, 5)]
        assert [r["answer"] for r in rows] == ["7", "9", "11"]
        assert {(r["source"], r["licence"], r["domain"]) for r in rows} == {("own paraphrased", "mit", "sums")}
        assert meta(events)["left_out"] == {"other numbers": 1, "no other words": 1, "answered otherwise": 1}
        assert used(events) == (6 + 8) * 12
        asked = len(s.seen)
        again, events = made(teacher=server(s.url), checks=2)
        assert again == rows and len(s.seen) == asked and not used(events), "a restart repays nothing"
    both = read_lines(tmp_path / "run" / "work" / "paraphrase" / "problems.jsonl")
    assert len(both) == 9 and both[6:] == rows
    parts = {e.stage: e.seconds for e in events if isinstance(e, StepReport)}
    assert parts["paraphrase.reading"] > 0 and parts["paraphrase.choice"] > 0


def test_one_wrong_answer_of_three_is_enough(made: Any) -> None:
    def fickle(h: Any) -> None:
        (st.says("Answer: 0") if "3 apples" in h.prompt and sum("3 apples" in p for p in st.prompts(h.seen)) == 2 else rewrites)(h)

    with st.serving(fickle) as s:
        rows, _ = made(teacher=server(s.url), checks=3, concurrency=1)
    assert [r["answer"] for r in rows] == ["9", "11"]


def test_a_thought_and_a_cut_are_no_paraphrase(made: Any) -> None:
    def thinks(h: Any) -> None:
        if "Rewrite" not in h.prompt:
            rewrites(h)
        elif "3 + 4" in h.prompt:
            st.says("Somebody has 3 apples and gets 4 more: how", finish="length")(h)
        else:
            a, b = re.findall(r"\d+", h.prompt)
            st.says(f"Sum up {a} with {b}.", reasoning_content="let me rewrite it")(h)

    with st.serving(thinks) as s:
        rows, events = made(teacher=server(s.url), checks=1)
    assert {r["prompt"] for r in rows} == {f"Sum up {a} with {a + 1}." for a in (0, 1, 2, 4, 5)}
    assert meta(events)["left_out"] == {"no reply": 1}


@pytest.mark.parametrize("until", [4, 9])
def test_a_stop_keeps_what_is_answered(made: Any, until: int) -> None:
    with st.serving(rewrites) as s:
        rows, events = made(teacher=server(s.url), checks=1, concurrency=1, until=until)
        said = meta(events)
        assert said["stopped"] and len(rows) == said["made"]
        if until == 4:  # later than that, all may have been answered by the time the stop is heard
            assert not rows and "not asked: stopped" in said["left_out"] and said["left_out"]["not answered"] > 0
        asked = len(s.seen)
        rows, _ = made(teacher=server(s.url), checks=1, concurrency=1)
        assert len(rows) == 3 and len(s.seen) <= 6 + 4 + 1 and (len(s.seen) > asked or until > 4)


def test_dropped_between_two_replies(make_context: Any, tmp_path: Path, sums: Path, made: Any) -> None:
    with st.serving(rewrites) as s:
        config = paraphrase.Config(sources=[str(sums)], teacher=server(s.url), checks=1, concurrency=1)
        events = paraphrase.run(config, {}, make_context(tmp_path / "run", "paraphrase"))
        answer, heard = None, 0
        while heard < 3:
            event = events.send(answer)
            answer = "go" if isinstance(event, Intent) else None
            heard += isinstance(event, StepReport) and event.stage == "paraphrase"
        events.close()
        had = len(read_lines(tmp_path / "run" / "work" / "paraphrase" / "rewritten.jsonl"))
        rows, events = made(teacher=server(s.url), checks=1, concurrency=1)
        assert len(rows) == 3 and len(s.seen) <= 10 + 1, "what was in flight, and nothing else, is asked again"
        assert used(events) == (10 - had) * 12


def test_problems_of_the_stage_before(made: Any, sums: Path) -> None:
    from shoestring.stages.workbench import load_problems

    rows = write_lines(sums.with_name("p.jsonl"), [vars(p) for p in load_problems([str(sums)], "train")])
    with st.serving(rewrites) as s:
        new, _ = made(inputs={"problems": rows}, teacher=server(s.url), limit=4)
        assert [r["answer"] for r in new] == ["7"]
        with pytest.raises(UserError, match="needs problems; put a curate stage"):
            made("none", inputs={"nothing": rows}, teacher=server(s.url))
    with st.serving(st.says("Add 9 and 9.")) as s, pytest.raises(UserError, match=r"not one paraphrase is kept \(6 other numbers\)"):
        made("bad", teacher=server(s.url))


def test_the_plan(sums: Path) -> None:
    facts = Facts(ModelShape(2, 32, 4, 2, 8, 48, 61, True), prior(frozenset(), 1), "x/machine-second", "paraphrase", problems=50)

    def tokens(**keys: Any) -> dict[str, float]:
        made = paraphrase.forecast(paraphrase.Config(teacher=server("http://h/v1"), max_new=100, **keys), facts)
        assert made.counted == "literature" and made.problems is not None
        return {u.sku: u.quantity for u in made.usages if u.unit == "token"} | {"problems": made.problems}

    def out(t: dict[str, float]) -> float:
        return t[f"{SKU}/out"]

    assert tokens()["problems"] == 75 and tokens(sources=[str(sums)])["problems"] == 9
    usages = paraphrase.forecast(paraphrase.Config(teacher=server("http://h/v1"), max_new=100, sources=[str(sums)]), facts).usages
    assert sum(u.quantity for u in usages if u.sku == f"{SKU}/out") == 6 * 3 * 50
    assert sum(u.quantity for u in usages if u.sku == f"{SKU}/in") > 6 * 3 * 30
    assert out(tokens(limit=10)) < out(tokens())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "teacher needs a server"), (dict(teacher=server("http://h/v1", nme=1)), 'teacher: unknown key "nme"'),
        (dict(teacher={"recorded": "x"}), "teacher needs a server"), (dict(teacher=server("http://h/v1"), checks=0), "checks = 0"),
        (dict(teacher=server("http://h/v1"), limit=-1), "limit"), (dict(teacher=server("http://h/v1"), temperature=3.0), "temperature = 3"),
    ],
)  # fmt: skip
def test_refusals(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        paraphrase.Config(**keys)


def test_in_a_recipe_and_back(tmp_path: Path) -> None:
    """Tables in lists and stages with servers survive being written out."""
    table = '{ url = "http://127.0.0.1:1/v1", model = "m", price = "machine" }'
    text = (
        'name = "x"\nbudget = "1 USD"\nbase = "org/model"\nrate = "1 USD/hour"\n[[stage]]\nuse = "curate"\nsources = ["bundled:lcm"]\n'
        f'models = ["a/b", {table}]\nlabels = {{ url = "http://127.0.0.1:1/v1", model = "m", price = "machine", names = ["x", "y"] }}\n'
        f'[[stage]]\nuse = "paraphrase"\nteacher = {table}\n'
    )
    first = recipe.loads(text, stages.configs())
    again = recipe.loads(first.to_toml(), stages.configs())
    assert again.hash == first.hash and [t.config for t in again.stages] == [t.config for t in first.stages]
    assert json.loads(json.dumps(again.stages[0].config.models))[1]["model"] == "m"
    with pytest.raises(UserError, match="recipe.toml:.*models"):
        recipe.loads(text.replace('"a/b"', "3"), stages.configs())
