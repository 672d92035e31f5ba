"""A data set as an artifact: traces for sft, problems for distill, a pool for grpo; bad rows are found by the plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoestring import plan, recipe, stages
from shoestring.estimate.flops import ModelShape
from shoestring.estimate.machine import prior
from shoestring.records import Artifact, UserError
from shoestring.stages import data
from shoestring.stages.context import Facts, read_lines
from shoestring.stages.data import Config

FACTS = Facts(ModelShape(2, 32, 4, 2, 8, 48, 61, True), prior(frozenset(), 1), "x/machine-second", "data", 3, 4)


def say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CHAT = {"messages": [say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "d")], "licence": "CC0-1.0"}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def artifacts(events: list[Any]) -> dict[str, list[dict[str, Any]]]:
    return {e.kind: read_lines(e.path) for e in events if isinstance(e, Artifact)}


@pytest.fixture
def run(tmp_path: Path, make_context: Callable[..., Any], drive: Callable[..., list[Any]]) -> Callable[[Config], dict[str, Any]]:
    return lambda config: artifacts(drive(data.run(config, {}, make_context(tmp_path / "run", "data"))))


def test_every_answer_of_a_conversation(tmp_path: Path, run: Callable[..., Any]) -> None:
    name = write(tmp_path / "a.jsonl", CHAT)
    made = run(Config(name))
    assert [r["messages"] for r in made["traces"]] == [CHAT["messages"][:2], CHAT["messages"]]
    assert len({r["problem_id"] for r in made["traces"]}) == 2 and made["traces"][0]["licence"] == "CC0-1.0"
    assert made["sources"] == [{"source": name, "licence": "CC0-1.0", "rows": 2}]
    assert [len(r["messages"]) for r in run(Config(name, turns="last"))["traces"]] == [4]
    assert data.forecast(Config(name), FACTS).traces == 2 and data.forecast(Config(name), FACTS).problems is None


def test_worked_solutions_of_problems(run: Callable[..., Any], tmp_path: Path) -> None:
    rows = run(Config("bundled:lcm", give="traces", limit=3))["traces"]
    assert len(rows) == 3 and all(r["messages"][1]["content"].rstrip() for r in rows) and rows[0]["licence"] == "Apache-2.0"
    bare = write(tmp_path / "p.jsonl", {"prompt": "1+1", "answer": "2"})
    with pytest.raises(UserError, match=r"p.jsonl:1: a problem without a worked solution"):
        data.forecast(Config(bare, give="traces"), FACTS)


def test_a_pool_for_grpo_and_problems_for_distill(run: Callable[..., Any]) -> None:
    from shoestring.stages.grpo import read_pool

    made = run(Config("bundled:lcm", limit=5))
    assert set(made) == {"pool", "sources"} and len(made["pool"]) == 5
    assert data.forecast(Config("bundled:lcm", limit=5), FACTS).problems is None
    assert data.forecast(Config("bundled:lcm", limit=5, give="problems"), FACTS).problems == 5
    assert set(run(Config("bundled:lcm", limit=5, give="problems"))) == {"problems", "sources"}
    assert callable(read_pool)


def test_grpo_reads_the_pool(tmp_path: Path, make_context: Callable[..., Any], drive: Callable[..., list[Any]]) -> None:
    from shoestring.stages.grpo import read_pool

    events = drive(data.run(Config("bundled:lcm", limit=5), {}, make_context(tmp_path / "run", "data")))
    pool = read_pool({e.kind: e.path for e in events if isinstance(e, Artifact)}, "grpo")
    assert {d: len(p) for d, p in pool.items()} == {"lcm": 5}


def test_conversations_are_no_problems(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rows are conversations, and problems with an answer"):
        data.gives(Config(write(tmp_path / "a.jsonl", CHAT), give="pool"))


def test_a_bad_row_is_found_by_the_plan(tmp_path: Path) -> None:
    name = write(tmp_path / "a.jsonl", CHAT, {"messages": [say("user", "x")]})
    text = f'name = "x"\nbudget = "1 USD"\nbase = "b"\n[[stage]]\nuse = "data"\ndataset = "{name}"\n[[stage]]\nuse = "sft"\n'
    from shoestring.cost.prices import PriceBook

    made, book = recipe.loads(text, stages.configs()), PriceBook.default()
    with pytest.raises(UserError, match=r"a.jsonl:2: messages ends with user.*shoestring data validate"):
        plan.make(made, book, book.machine_sku(made.machine, made.rate), FACTS.shape, FACTS.profile)
    whole = recipe.loads(text, stages.configs(), ["data.limit=1"])
    planned = plan.make(whole, book, book.machine_sku(made.machine, made.rate), FACTS.shape, FACTS.profile)
    assert planned.stage("sft").facts.traces == 2


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [("dataset", '" "', "dataset is empty"), ("limit", "-1", "cannot be below zero"), ("format", '"xml"', "must be one of auto"),
     ("turns", '"first"', "every, last"), ("give", '"all"', "auto, traces")],
)  # fmt: skip
def test_config(key: str, value: str, says: str) -> None:
    dataset = "" if key == "dataset" else 'dataset = "bundled:lcm"\n'
    text = f'name = "x"\nbudget = "1 USD"\nbase = "b"\n[[stage]]\nuse = "data"\n{dataset}{key} = {value}\n'
    with pytest.raises(UserError, match=says):
        recipe.loads(text, stages.configs())


def test_plain_rows_keep_what_the_tokenizer_puts_before_a_text(
    tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL's convention: bare prompt ids (a beginning-of-text id included), the completion's, the end. No template."""
    from shoestring.models import tokenizer

    class Inner:
        def encode(self, text: str) -> list[int]:
            return [59, *(2 + ord(c) % 50 for c in text), 1]  # one before, and an end that does not belong here

    monkeypatch.setattr(tokenizer.Tokenizer, "inner", Inner(), raising=False)
    (row,) = run(Config(write(tmp_path / "a.jsonl", {"prompt": "Q:", "completion": " A"})))["traces"]
    assert row["plain"] and row["prompt_tokens"] == [59, 2 + ord("Q") % 50, 2 + ord(":") % 50]


def test_sft_trains_plain_rows_without_the_template(tiny_base: Path) -> None:
    from shoestring.stages.sft import examples

    class Plain:
        end, ends = 1, frozenset([1])

        def chat(self, messages: Any) -> tuple[int, ...]:
            return (9, 9, 9)

        def encode(self, text: str) -> tuple[int, ...]:
            return tuple(2 + ord(c) % 50 for c in text)

    rows = [{"problem_id": "p", "messages": [say("user", "Q"), say("assistant", "A")], "plain": p, "prompt_tokens": [59, 7]}
            for p in (True, False)]  # fmt: skip
    bare, templated = examples(rows, Plain())
    assert bare.tokens == (59, 7, 2 + ord("A") % 50, 1) and bare.prompt_length == 2 and sum(bare.weight) == 2
    assert templated.tokens[:3] == (9, 9, 9)
