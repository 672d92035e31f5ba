"""The recorded teacher that ships: licensed, right by our own grader, readable as a teacher and as problems."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from shoestring import data, recipe, rewards, stages
from shoestring.data import licences, sources
from shoestring.estimate import lengths
from shoestring.generate import recorded
from shoestring.generate.recorded import RecordedTeacher
from shoestring.generate.teacher import Question
from shoestring.records import UserError
from shoestring.stages import _curate_pool, _distill_teacher, sizes

FOLDER = Path(data.__file__).with_name("recorded")
TRACES, QUESTIONS = FOLDER / "rg_traces.jsonl.gz", FOLDER / "rg_questions.jsonl.gz"
RECIPE = Path(__file__).resolve().parents[3] / "recipes" / "s1-mini.toml"


def test_every_completion_may_be_learnt() -> None:
    with gzip.open(TRACES, "rt", encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    problems = {p.prompt: p for p in sources.load(str(QUESTIONS))}
    readme = (FOLDER / "README.md").read_text()
    assert f"| {len(rows):,} |" in readme and f"| {len(problems):,} |" in readme
    for model, n in Counter(r["model"] for r in rows).items():
        assert f"{n:,}" in readme and licences.of_model(model).output == "allowed"
    for r in rows:
        p = problems[r["question"]]
        assert r["problem_id"] == p.id and rewards.get(p.grader).grade(r["response"], p) == 1.0
        assert r["family"] != "gsm_symbolic" and len(r["response"]) >= 200 and r["licence"] and r["source"]
    assert {r["question"] for r in rows} == set(problems)


def test_it_answers_as_a_teacher() -> None:
    teacher = RecordedTeacher(TRACES, "", lambda text: round(lengths.tokens(text)))
    some = sources.load(str(QUESTIONS))[::100]
    asked = [Question(p.id, ({"role": "user", "content": p.prompt},)) for p in some]
    replies = dict(teacher.once(asked))
    assert all(replies[i].reason == "stop" and replies[i].facts["licence"] for i in range(len(some)))
    assert all(rewards.get(p.grader).grade(replies[i].text, p) == 1.0 for i, p in enumerate(some))


def test_what_the_questions_carry() -> None:
    for item in sources.stream(str(QUESTIONS)):
        assert not isinstance(item, str)
        assert item[1]["tokens"] > 0 and 0 <= item[1]["pass_rate"] <= 1 and item[0].licence == "Apache-2.0"


def test_the_recipe_has_its_59_thousand() -> None:
    made = recipe.load(RECIPE, stages.configs())
    config = next(t for t in made.stages if t.use == "curate").config
    sizes = sum(int(s.partition("size=")[2].partition("&")[0] or 0) for s in config.sources)
    assert sizes * 0.89 + 1901 >= 59_000 and config.count == 1000, "a tenth of the generated ones is the test split"
    for s in (config.sources[0], *(t.config.teacher["recorded"] for t in made.stages if t.use == "distill")):
        assert s.startswith("bundled:"), "a recipe is copied to other folders"


def test_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a source with all that its rows carry, in the plan's sizes, and as a teacher."""
    monkeypatch.chdir(tmp_path)
    assert sources.load("bundled:rg_questions") == sources.load(str(QUESTIONS)) and not sources.is_generated("bundled:rg_questions")
    assert list(sources.stream("bundled:rg_questions")) == list(sources.stream(str(QUESTIONS)))
    assert [p.prompt for p in sources.load("bundled:rg_questions?answer=domain")][:2] == [p.prompt for p in sources.load(str(QUESTIONS))][:2]
    assert sizes.sample("bundled:rg_questions", "train") == sizes.sample(str(QUESTIONS), "train") != ()
    assert _curate_pool.recorded_tokens(("bundled:rg_questions",)) > 50 and not _curate_pool.is_large(("bundled:rg_questions",))
    assert recorded.located("bundled:rg_traces") == TRACES
    _distill_teacher.check(_distill_teacher.parse({"recorded": "bundled:rg_traces", "model": "qwq-32b"}))
    with pytest.raises(UserError, match="did you mean 'rg_questions'"):
        sources.load("bundled:rg_question")
    with pytest.raises(UserError, match="did you mean bundled:rg_traces"):
        recorded.located("bundled:rg_trace")
