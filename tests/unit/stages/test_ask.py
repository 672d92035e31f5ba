"""`ask`: what the user says around a problem, in the rollouts and in the score, and what it adds to the plan."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shoestring.records import Problem
from shoestring.stages import evaluate, grpo, prompts

TALK = ("What is 3 + 5?", "3+5=8\nAnswer: 8", "{question}")
ASK = 'Think.\n{question}\nEnd with the line "Answer: " and the number.'


def test_the_problems_text_stands_where_it_is_wanted() -> None:
    p = Problem.make("1 {question} + 1?", "2")
    assert prompts.plain(p)[0]["content"] == p.prompt
    (message,) = prompts.plain(p, ASK)
    assert message == {"role": "user", "content": f'Think.\n{p.prompt}\nEnd with the line "Answer: " and the number.'}
    assert prompts.ask_tokens(prompts.QUESTION) == 0 < prompts.ask_tokens(ASK)


def test_turns_that_show_how_to_answer() -> None:
    p = Problem.make("1 {question} + 1?", "2")
    assert prompts.plain(p, TALK) == [
        {"role": "user", "content": "What is 3 + 5?"},
        {"role": "assistant", "content": "3+5=8\nAnswer: 8"},
        {"role": "user", "content": p.prompt},
    ]
    assert prompts.plain(p, (ASK,)) == prompts.plain(p, ASK)
    assert prompts.ask_tokens(TALK) > prompts.ask_tokens(TALK[2:]) == 0


MAKERS = [grpo.Config, lambda **keys: evaluate.Config(sources=["bundled:lcm"], **keys)]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("turns", ["", "aQ", "Qa", "Qab", "QaQ", "aba"])
def test_turns_that_do_not_end_in_the_question_are_refused(make: Any, turns: str) -> None:
    with pytest.raises(ValueError, match=r"ask = \[.*\]: turns of the user and of the model.* once, in the last"):
        make(ask=tuple("{question}" if t == "Q" else t for t in turns))


def test_a_recipe_says_either() -> None:
    from shoestring import recipe, stages

    for said, wanted in (('"a {question}"', "a {question}"), ('["a", "b", "{question}"]', ("a", "b", "{question}"))):
        text = 'name = "a"\nbudget = "0.10 USD"\nmachine = "this"\nbase = "smollm2-135m-instruct"\n'
        text += f'[[stage]]\nuse = "evaluate"\nsources = ["bundled:lcm"]\nask = {said}\n'
        made = recipe.loads(text, stages.configs())
        config: Any = made.stages[0].config
        assert config.ask == wanted and recipe.loads(made.to_toml(), stages.configs()).hash == made.hash


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("ask", ["Answer with a number.", "{question} {question}", ""])
def test_a_text_without_the_question_is_refused(make: Any, ask: str) -> None:
    with pytest.raises(ValueError, match=r"ask = .* must hold \{question\} once"):
        make(ask=ask)


def test_benchmarks_ask_in_their_own_way() -> None:
    with pytest.raises(ValueError, match="ask is for sources"):
        evaluate.Config(benchmarks=["gsm8k"], ask=ASK)


def test_rollouts_ask_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    from collections import Counter

    from shoestring.stages import _grpo_roll, workbench

    asked: list[Any] = []
    monkeypatch.setattr(workbench, "sample", lambda engine, requests, problems, *rest: asked.extend(requests) or problems)
    tokenizer: Any = SimpleNamespace(end=0, ends=frozenset([0]), chat=lambda messages: tuple(messages[0]["content"]))
    context: Any = SimpleNamespace(seed=1, stage="rl")
    config = grpo.Config(ask=ASK, group=2)
    questions = [Problem.make("1 + 1?", "2"), Problem.make("2 + 2?", "4")]
    _grpo_roll.roll(SimpleNamespace(), tokenizer, questions, config, context, 0, None, Counter())  # pyright: ignore[reportArgumentType]
    wanted = [tuple(prompts.plain(p, ASK)[0]["content"]) for p in questions for _ in range(2)]
    assert [r.prompt for r in asked] == wanted


def test_a_score_asks_so_and_worked_examples_plainly() -> None:
    config = evaluate.Config(sources=["bundled:lcm"], untrained=["bundled:gcd"], per_family=2, shots=1, ask=ASK)
    made = evaluate.questions(config, 0, base=True)
    assert {a.prompting for a in made} == {"zero-shot", "few-shot"}
    for a in made:
        few = a.prompting == "few-shot"
        assert a.messages[-1]["content"] == (a.problem.prompt if few else prompts.plain(a.problem, ASK)[0]["content"])


def test_the_plan_counts_it(tmp_path: Path) -> None:
    from shoestring import plan, recipe, stages
    from shoestring.cost.prices import PriceBook

    root = Path(__file__).resolve().parents[3]
    made = recipe.load(root / "recipes" / "r1-zero-mini.toml", stages.configs())
    book = PriceBook.default()

    def seconds(made: Any) -> dict[str, float]:
        planned = plan.make(made, book, book.machine_sku(made.machine, made.rate))
        return {s.name: s.seconds.mid for s in planned.stages}

    plainly = [
        dataclasses.replace(t, config=dataclasses.replace(t.config, ask=prompts.QUESTION)) if hasattr(t.config, "ask") else t
        for t in made.stages
    ]
    asked, plain = seconds(made), seconds(dataclasses.replace(made, stages=plainly))
    assert asked["rl"] > plain["rl"] and asked["score-rl"] > plain["score-rl"] and asked["curate"] == plain["curate"]
