"""R1's schedule: the model as its own teacher, training anew from the base, the recipes, and rewards that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoestring import plan, recipe, stages
from shoestring.cost.prices import PriceBook
from shoestring.estimate.machine import Profile
from shoestring.records import Artifact, Problem, Quantity, StepReport, UserError
from shoestring.rewards._mixture import Mixture
from shoestring.stages import _distill_keep, distill, scoring, sft
from shoestring.stages._grpo_watch import Listening
from shoestring.stages.context import read_lines, write_lines
from shoestring.stages.prompts import to_row

ROOT = Path(__file__).resolve().parents[3]


def problems(n: int, family: str) -> list[Problem]:
    return [Problem.make(f"{family} {i}?", str(i), domain=family, licence="CC0-1.0") for i in range(n)]


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    pool = [*problems(6, "a"), *problems(4, "b")]
    tried = [
        {"problem_id": p.id, "model": "base", "score": 1.0, "stop_reason": "stop", "text": p.answer, "prompt_tokens": [5],
         "tokens": [6, 1], "sampled": [True, True], "logprobs": [-1.0, -1.0]} for p in pool[:2]
    ]  # fmt: skip
    return {
        "pool": write_lines(tmp_path / "pool.jsonl", [to_row(p) for p in pool]),
        "problems": write_lines(tmp_path / "problems.jsonl", [to_row(p) for p in pool[:2]]),
        "samples-of-base": write_lines(tmp_path / "samples.jsonl", tried),
    }


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer is right but those to family b."""
    from shoestring import rewards

    def score_all(texts: list[str], asked: list[Problem], **columns: Any) -> list[rewards.Verdict]:
        return [rewards.of_score(float(p.domain == "a")) for p in asked]

    monkeypatch.setattr(rewards, "score_all", score_all)


def the(events: list[Any], kind: str) -> Artifact:
    return next(e for e in events if isinstance(e, Artifact) and e.kind == kind)


@pytest.mark.usefixtures("lenient")
def test_the_newest_weights_answer_everything_anew(make_context: Any, drive: Any, inputs: Any, tmp_path: Path) -> None:
    """Three samples each of two chosen problems and four of the pool; what the base had said counts nothing."""
    keys = {"samples": 3, "keep": 2, "solutions": False, "max_new": 6}
    events = drive(
        distill.run(distill.Config(**keys, teacher="self", pool=4), inputs, make_context(tmp_path / "a", "r", model_name="rl"))
    )
    rows = read_lines(the(events, "traces").path)
    assert the(events, "traces").meta["attempts"] == 6 * 3
    assert {r["model"] for r in rows} == {"rl"} and {r["domain"] for r in rows} == {"a"}
    asked = {r["problem_id"] for r in read_lines(tmp_path / "a" / "work" / "r" / "attempts.jsonl") if "problem_id" in r}
    every = {p.id: p.domain for p in [*problems(6, "a"), *problems(4, "b")]}
    assert sorted(every[i] for i in asked) == ["a", "a", "a", "a", "b", "b"]  # two chosen, and two more of each family
    own = drive(distill.run(distill.Config(**keys), inputs, make_context(tmp_path / "b", "r", model_name="rl")))
    assert the(own, "traces").meta["attempts"] == 2 * 3 and any(r["model"] == "base" for r in read_lines(the(own, "traces").path))
    funnel = {r["step"]: r for r in read_json(the(events, "rejected").path)}
    assert funnel["answers"]["after"] == 18 and funnel["kept"]["after"] == len(rows)
    before = [r["before"] for r in funnel.values()][1:]
    assert before == [r["after"] for r in funnel.values()][:-1]
    assert not any(e.kind == "rejected" for e in own if isinstance(e, Artifact))


@pytest.mark.parametrize(
    ("sizes", "pool", "counts"),
    [((9, 9, 9), 4, (2, 1, 1)), ((9, 9, 9), 9, (3, 3, 3)), ((1, 9, 9), 9, (1, 4, 4)), ((2, 2, 2), 9, (2, 2, 2))],
)
def test_the_pools_problems_are_spread_evenly_to_the_last(
    sizes: tuple[int, ...], pool: int, counts: tuple[int, ...], make_context: Any, tmp_path: Path
) -> None:
    rows = [to_row(p) for n, d in zip(sizes, "xyz", strict=True) for p in problems(n, d)]
    given = {"pool": write_lines(tmp_path / "even.jsonl", rows)}
    config = distill.Config(samples=1, solutions=False, teacher="self", pool=pool)
    found = distill._more(config, given, make_context(tmp_path / "a", "r"), set())
    assert [sum(p.domain == d for p in found) for d in "xyz"] == list(counts)
    assert len({p.id for p in found}) == len(found)


def read_json(path: Path) -> Any:
    import json

    return json.loads(path.read_text())


@pytest.mark.usefixtures("lenient")
def test_stopped_and_resumed_it_keeps_the_same(make_context: Any, drive: Any, inputs: Any, tmp_path: Path) -> None:
    config = distill.Config(samples=2, keep=1, solutions=False, max_new=6, teacher="self", pool=4, self_filter=True)
    whole = drive(distill.run(config, inputs, make_context(tmp_path / "a", "r")))
    drive(distill.run(config, inputs, make_context(tmp_path / "b", "r")), -1)
    parts = drive(distill.run(config, inputs, make_context(tmp_path / "b", "r")))
    assert read_lines(the(whole, "traces").path) == read_lines(the(parts, "traces").path)
    assert read_json(the(whole, "rejected").path) == read_json(the(parts, "rejected").path)


def attempt(score: float = 1.0, fault: str = "", **rest: Any) -> dict[str, Any]:
    return {"score": score, "fault": fault, **rest}


def test_the_funnel_counts_each_reason_once() -> None:
    rows = [
        *[attempt()] * 5, *[attempt(0.0)] * 4, *[attempt(1.0, "cut off")] * 3, attempt(0.0, "cut off"),
        *[attempt(1.0, "mixed languages")] * 2, attempt(0.0, "mixed languages"), attempt(1.0, "garbled repeats"),
        attempt(unanswered=True),
    ]  # fmt: skip
    made = _distill_keep.funnel(rows, 4, 1, "short")
    left = {r["step"]: (r["before"], r["after"]) for r in made}
    assert left["answers"] == (17, 17) and left["comes to its end"] == (17, 13) and left["right"] == (13, 8)
    assert left["one language"] == (8, 6) and left["no garbled repeats"] == (6, 5) and left["kept"] == (5, 4)
    assert [r["why"] for r in made if r["step"] == "one language"] == ["mixed languages: 2"]
    bare = _distill_keep.funnel(rows, 8, 1, "short", form=False)
    assert [r["step"] for r in bare] == ["answers", "comes to its end", "right", "kept"] and bare[-1]["before"] == 8


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Answer: 3\n" * 6, "garbled repeats"), ("step\n" * 4 + "a\nb\nc\nd\n", None), ("7" * 60, "garbled repeats"),
        ("first\nsecond\nthird\nAnswer: 3", None),
        ("Para sumar los numeros primero tomamos el uno y luego sumamos el dos hasta llegar al tres final, y ese numero es nuestra "
         "respuesta correcta porque sabemos sumar muy bien", "mixed languages"),
        ("To add the numbers we take the first of them and then we add two to it, so that the sum is three, which is the answer "
         "to the question that was asked", None),
    ],
)  # fmt: skip
def test_repeats_and_other_languages(text: str, wrong: str | None) -> None:
    assert _distill_keep.fault(text, "What is 1 + 2?") == wrong


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"teacher": "me"}, "teacher = 'me': \"self\" is the run's own model"), ({"pool": -1}, "samples, keep and pool"),
        ({"teacher": "self", "samples": 0}, 'teacher = "self" with samples = 0'),
    ],
)  # fmt: skip
def test_bad_keys(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as e:
        distill.Config(**keys)
    assert said in str(e.value)
    with pytest.raises(ValueError, match="start = 'top'"):
        sft.Config(start="top")  # pyright: ignore[reportArgumentType]


def test_sft_from_the_base_does_not_read_the_latest_weights(
    make_context: Any, drive: Any, traces: Any, tmp_path: Path, final_state: Any
) -> None:
    import torch

    def go(where: str, weights: Path | None = None, **keys: Any) -> tuple[list[float], dict[str, Any]]:
        config = sft.Config(epochs=1, batch=5, lr=1e-3, rows=64, **keys)
        events = drive(sft.run(config, traces, make_context(tmp_path / where, "sft", weights=weights)))
        losses = [e.loss for e in events if isinstance(e, StepReport) and e.loss is not None]
        return losses, final_state(tmp_path / where / "checkpoints" / "sft")

    first, state = go("a")
    weights = tmp_path / "a" / "checkpoints" / "sft" / "step-2"
    on, _ = go("b", weights)
    anew, again = go("c", weights, start="base")
    assert anew == first != on and all(torch.equal(again[k], state[k]) for k in state)


def quantity(x: float) -> Quantity:
    return Quantity(0.85 * x, x, 1.15 * x, "measured")


@pytest.mark.parametrize(
    ("name", "uses"),
    [
        ("r1-zero-mini", "evaluate curate grpo evaluate"),
        ("r1-mini", "evaluate curate distill sft evaluate grpo evaluate distill sft evaluate grpo evaluate"),
    ],
)  # fmt: skip
def test_the_recipes_are_what_they_are_called(name: str, uses: str) -> None:
    made = recipe.load(ROOT / "recipes" / f"{name}.toml", stages.configs())
    assert " ".join(t.use for t in made.stages) == uses
    again = recipe.loads(made.to_toml(), stages.configs())
    assert again == made and again.hash == made.hash
    book = PriceBook.default()
    rates = (quantity(x) for x in (4.7e11, 1100, 2700, 1.5, 1.6e9))  # as two cores were measured to do
    planned = plan.make(made, book, book.machine_sku(made.machine, made.rate), profile=Profile(*rates, "measured"))
    assert planned.total_usd().high < float(made.budget)


def test_the_schedule_of_r1_mini() -> None:
    made = recipe.load(ROOT / "recipes" / "r1-mini.toml", stages.configs())
    configs = {t.name: t.config for t in made.stages}
    assert configs["rejection"].anew and configs["rejection"].self_filter and not configs["rejection"].solutions
    assert configs["sft-rejection"].start == "base" and configs["sft-cold"].start == "latest"
    assert configs["rl-reasoning"].mix == {"number_format": 0.0} and configs["rl-mixed"].replay > 0


GOLD = [Problem.make(f"{i} + {i}", str(2 * i), domain="sums") for i in range(3, 9)]


PAYS = [{"grader": 1.0, "format": 0.2}, {"grader": 1.0, "lenient": 0.5}, {"grader": 2.0, "overlong": 0.5}]


@pytest.mark.parametrize("parts", PAYS)
def test_mixtures_that_pay_for_being_right_pass_the_self_test(parts: dict[str, float]) -> None:
    assert scoring.self_test(GOLD, Listening(Mixture(parts)), " + ".join(parts))["exact"] > 100


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"format": 1.0}, "it pays 1 for the wrong answer"), ({"format": 1.0, "grader": 0.5}, "it pays 1 for the wrong answer"),
        ({"lenient": 1.0}, "it pays 1 for the wrong answer '<think>Answer: "), ({"grader": -1.0}, "it pays"),
        ({"grader": 0.1, "lenient": 1.0}, "it pays 1 for the wrong answer"),
    ],
)  # fmt: skip
def test_mixtures_that_pay_wrong_answers_are_refused_before_anything_is_trained(
    parts: dict[str, float], said: str, make_context: Any, drive: Any, tmp_path: Path
) -> None:
    from shoestring.stages import grpo

    inputs = {"pool": write_lines(tmp_path / "pool.jsonl", [to_row(p) for p in GOLD])}
    with pytest.raises(UserError) as e:
        drive(grpo.run(grpo.Config(rewards=parts), inputs, make_context(tmp_path, "grpo")))
    assert "fails its self-test and is not trained on" in str(e.value) and said in str(e.value)
    assert not (tmp_path / "checkpoints").exists()
