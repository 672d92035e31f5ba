"""Benchmarks in the evaluate stage on a tiny model: sharing, resuming, thinking budgets, comparing; and what the rows come to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoestring import stats
from shoestring.data import benchmarks
from shoestring.records import StepReport, UserError
from shoestring.stages import _evaluate_asks as asks
from shoestring.stages import _evaluate_results as results
from shoestring.stages import evaluate
from shoestring.stages.context import read_lines, write_lines


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps({"question": f"what is {i} and {i} together", "answer": f"#### {2 * i}"}) + "\n" for i in range(6)))
    return str(path)


@pytest.fixture
def config(data: str) -> evaluate.Config:
    return evaluate.Config(benchmarks=["gsm8k"], data={"gsm8k": data}, max_new=6)


def answers(run_dir: Path) -> list[dict[str, Any]]:
    return [r for p in sorted((run_dir / asks.FOLDER).glob("*.jsonl")) for r in read_lines(p) if "problem_id" in r]


def told(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "eval.json").read_text())


def test_greedy(config: Any, make_context: Any, drive: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    events = drive(evaluate.run(config, {}, make_context(tmp_path / "a", "score", planned_seconds=60.0)))
    assert {e.kind for e in events if hasattr(e, "kind")} == {"evaluation", "scores", "gains", "samples"}
    rows = answers(tmp_path / "a")
    assert len(rows) == 6 and all(r["tokens"] and r["sample"] == 0 for r in rows)
    (result,) = told(tmp_path / "a")["results"]
    assert "1,319" in result["warning"] and result["problems"] == 6 and result["pass_at_k"].keys() == {"1"}
    (score,) = json.loads((tmp_path / "a" / "scores.json").read_text())
    assert score["benchmark"] == "gsm8k" and score["family"] == "macro" and score["warning"] == result["warning"]
    assert sum(r["usd"] for r in rows) == pytest.approx(result["usd"]) and result["usd"] > 0


def test_k_samples_share_their_prompt(config: Any, make_context: Any, drive: Any, tmp_path: Path) -> None:
    """The engine's counters: 8 samples of a prompt take its rows once."""
    pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    many = replace(config, samples=8, temperature=1.0, pass_at=[1, 2, 8])
    drive(evaluate.run(many, {}, make_context(tmp_path / "a", "score")))
    (r,) = told(tmp_path / "a")["results"]
    assert r["answers"] == 48 and r["pass_at_k"].keys() == {"1", "2", "8"} and r["majority_at_k"].keys() == {"2", "8"}
    assert 0 < r["prompt_rows"] <= r["prompt_tokens"] / 8
    texts = {(row["problem_id"], row["text"]) for row in answers(tmp_path / "a")}
    assert len(texts) > 6, "samples differ"


def test_a_stopped_stage_goes_on_where_it_was(config: Any, make_context: Any, drive: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Chunks of two problems; a stop after one of three, then on: the same answers as without the stop."""
    pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    monkeypatch.setattr(asks, "SLOTS", 4)
    many = replace(config, samples=2, temperature=1.0)
    whole = make_context(tmp_path / "whole", "score")
    drive(evaluate.run(many, {}, whole))
    context = make_context(tmp_path / "cut", "score")
    drive(evaluate.run(many, {}, context), until=1)
    assert told(tmp_path / "cut")["stopped"] and told(tmp_path / "cut")["results"][0]["problems"] == 2
    events = drive(evaluate.run(many, {}, context))
    assert len([e for e in events if isinstance(e, StepReport)]) == 2, "the first chunk is not asked again"
    assert not told(tmp_path / "cut")["stopped"]
    keep = ("problem_id", "sample", "text", "strict", "tokens")
    assert [[r[k] for k in keep] for r in answers(tmp_path / "cut")] == [[r[k] for k in keep] for r in answers(tmp_path / "whole")]


def test_thinking_budgets_draw_a_curve(config: Any, make_context: Any, drive: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    c = replace(config, thinking=[4, 9], waits=1, answer=30, parallel=4, max_problems=3)
    drive(evaluate.run(c, {}, make_context(tmp_path / "a", "score")))
    curve = json.loads((tmp_path / "a" / "scaling.json").read_text())
    assert [(p["budget"], p["waits"], p["n"]) for p in curve["points"]] == [(4, 1, 3), (9, 1, 3)]
    rows = answers(tmp_path / "a")
    for p in curve["points"]:
        mine = [r for r in rows if r["role"] == "thinking" and r["budget"] == p["budget"]]
        assert p["mean_thinking_tokens"] == sum(r["thinking_tokens"] for r in mine) / 3 and max(p["thinking_tokens"]) <= p["budget"]
    assert [m["samples"] for m in curve["majority"]] == [1, 2, 4] and [r["budget"] for r in curve["rejection"]] == [4, 9]
    assert curve["majority"][2]["tokens"] == pytest.approx(4 * curve["majority"][0]["tokens"])
    assert curve["metrics"]["control"] == 1.0 and curve.keys() >= {"model", "benchmark"}
    families = [r["family"] for r in told(tmp_path / "a")["results"]]
    assert families == ["thinking 4, 1 waits", "thinking 9, 1 waits", "free samples"]


def test_another_model_is_compared(config: Any, make_context: Any, drive: Any, tmp_path: Path, tiny_base: Path) -> None:
    """The same weights under another name answer alike, so nothing is gained and nothing shown; a run compares the same."""
    pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    c = replace(config, compare=str(tiny_base))
    drive(evaluate.run(c, {}, make_context(tmp_path / "a", "score")))
    made = told(tmp_path / "a")
    (pair,) = made["comparisons"]
    assert (pair["from"], pair["to"], pair["problems"]) == (tiny_base.name, "base", 6)
    assert (pair["gain"], pair["p_value"]) == (0.0, 1.0) and pair["test"].startswith("McNemar")
    assert [r["model"] for r in made["results"]] == ["base", tiny_base.name]
    first, second = ([r["text"] for r in answers(tmp_path / "a") if r["model"] == m] for m in ("base", tiny_base.name))
    assert first == second
    drive(evaluate.run(replace(config, compare=str(tmp_path / "a")), {}, make_context(tmp_path / "b", "score")))
    (again,) = told(tmp_path / "b")["comparisons"]
    assert again["from"] == "a/base" and again["problems"] == 6
    gains = json.loads((tmp_path / "b" / "gains.json").read_text())
    assert gains[0]["benchmark"] == "gsm8k" and gains[0]["p_value"] == 1.0
    other = replace(config, compare=str(tmp_path / "a"), samples=1, thinking=[4], parallel=0, answer=30)
    with pytest.raises(UserError, match="answered no problem of this evaluation"):
        drive(evaluate.run(other, {}, make_context(tmp_path / "c", "score")))


def test_beside_unseen_problems(config: Any, make_context: Any, drive: Any, tmp_path: Path) -> None:
    """scores.json holds both, and a later stage without benchmarks keeps what an earlier one scored."""
    pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    both = replace(config, sources=["bundled:lcm"], per_family=2, shots=0, heldout=False)
    drive(evaluate.run(both, {}, make_context(tmp_path / "a", "score")))
    later = evaluate.Config(sources=["bundled:lcm"], per_family=2, max_new=4, heldout=False)
    drive(evaluate.run(later, {}, make_context(tmp_path / "a", "again", position=1, model_name="sft")))
    found = {(r["model"], r["benchmark"]) for r in json.loads((tmp_path / "a" / "scores.json").read_text())}
    assert {("base", "unseen"), ("base", "gsm8k"), ("sft", "unseen")} <= found


def row(problem: str, sample: int, right: int, said: str | None = "1", **rest: Any) -> dict[str, Any]:
    base = {
        "model": "base", "benchmark": "gsm8k", "role": "plain", "budget": 0, "waits": 0, "problem_id": problem, "sample": sample,
        "answer": "1", "strict": right, "lenient": right, "said": said, "tokens": 10, "thinking_tokens": 0, "waits_used": 0,
        "reason": "stop", "usd": 0.001, "text": "",
    }  # fmt: skip
    return base | rest


def test_pass_and_majority_by_hand(data: str) -> None:
    """Two problems of 4 samples: 3 and 1 right; the vote wins the first, and ties three ways in the second."""
    c = evaluate.Config(benchmarks=["gsm8k"], data={"gsm8k": data}, samples=4, temperature=1.0, pass_at=[1, 2, 4])
    rows = [row("a", i, int(i < 3), "1" if i < 3 else "2") for i in range(4)]
    rows += [row("b", i, int(i == 0), "1234"[i]) for i in range(4)]
    r = results.of_setting(c, asks.settings(c)[0], rows)
    assert r["accuracy"] == pytest.approx(0.5) == r["pass_at_k"]["1"]["value"]
    assert r["pass_at_k"]["2"]["value"] == pytest.approx((stats.pass_at_k(4, 3, 2) + stats.pass_at_k(4, 1, 2)) / 2)
    assert r["majority_at_k"]["4"]["value"] == pytest.approx((1 + 1 / 4) / 2)
    assert r["tokens_per_correct"] == 80 / 4 and r["usd_per_correct"] == pytest.approx(0.008 / 4)
    fewer = results.of_setting(c, asks.settings(c)[0], [x for x in rows if x["problem_id"] == "a" or x["sample"] < 2])
    assert fewer["pass_at_k"]["4"]["problems"] == 1, "a problem with two samples has no pass@4"
    assert fewer["pass_at_k"]["1"]["value"] == pytest.approx((3 / 4 + 1 / 2) / 2), "divided by the samples that exist"
    none = results.of_setting(c, asks.settings(c)[0], [row("a", 0, 0, None)])
    assert none["usd_per_correct"] is None and none["unread"] == 1


def test_rejection_and_votes_at_equal_tokens(data: str) -> None:
    c = evaluate.Config(benchmarks=["gsm8k"], data={"gsm8k": data}, thinking=[10, 30], parallel=2)
    free = [row("a", 0, 1, tokens=8), row("a", 1, 0, "2", tokens=20), row("b", 0, 1, tokens=40, reason="length"), row("b", 1, 0, "2", tokens=30)]
    free = [r | {"role": "parallel"} for r in free]
    forced = [row(p, 0, 1, role="thinking", budget=b, thinking_tokens=b) for p in "ab" for b in (10, 30)]
    (curve,) = results.curves(c, [*forced, *free])
    first, second = curve["rejection"]
    assert (first["accuracy"], first["tokens"], first["accepted"], first["tries"]) == (0.5, 8, 1, 4.0), "b has none: wrong"
    assert (second["accuracy"], second["accepted"]) == (0.25, 3) and second["spent"] > second["tokens"]
    assert [m["accuracy"] for m in curve["majority"]] == [0.5, 0.5], "ties are halves"
    assert curve["metrics"]["performance"] == 1.0 and curve["metrics"]["scaling"] == 0.0


def test_paired_with_samples(data: str) -> None:
    c = evaluate.Config(benchmarks=["gsm8k"], data={"gsm8k": data}, samples=2, temperature=1.0)
    a = [row(p, i, int(i == 0 or p in "ab")) for p in "abcdef" for i in range(2)]
    b = [row(p, i, int(p in "a")) for p in "abcdefg" for i in range(2)]
    (pair,) = results.compare(c, a, "base", b, "base", "other/base")
    assert pair["problems"] == 6 and pair["from"] == "other/base" and "sign-flip" in pair["test"]
    first, then = [1.0, 0, 0, 0, 0, 0], [1.0, 1.0, 0.5, 0.5, 0.5, 0.5]
    gain, ends, p = stats.paired_problems(first, then)
    assert (pair["gain"], tuple(pair["ci95"]), pair["p_value"]) == (gain, ends, p)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"samples": 4}, "temperature"),
        ({"samples": 2, "temperature": 1.0, "pass_at": [4]}, "pass_at"),
        ({"thinking": [256, 128]}, "thinking"),
        ({"waits": 2}, "waits"),
        ({"top_p": 0.0}, "top_p"),
        ({"data": {"svamp": "x"}}, "data names 'svamp'"),
        ({"benchmarks": ["gsm8"]}, "did you mean"),
        ({"benchmarks": ["gsm8k", "gsm8k"]}, "twice"),
        ({"endpoint": "http://127.0.0.1:1/v1"}, "endpoint lacks model"),
        ({"endpoint": "https://far.example/v1", "endpoint_model": "m", "endpoint_price": "machine"}, "endpoint.price"),
        ({"endpoint_model": "m"}, "belong to an endpoint"),
        ({"benchmarks": [], "sources": ["bundled:lcm"], "samples": 2}, "samples is for benchmarks"),
        ({"benchmarks": []}, "sources is empty"),
    ],
)
def test_settings_that_cannot_be(data: str, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        evaluate.Config(**({"benchmarks": ["gsm8k"], "data": {"gsm8k": data} if keys.get("benchmarks", 1) == 1 else {}} | keys))


def test_bad_input_is_found_before_the_run(config: Any, tmp_path: Path) -> None:
    evaluate.check(config, "any")
    with pytest.raises(UserError, match="no such file"):
        evaluate.check(replace(config, data={"gsm8k": str(tmp_path / "none.jsonl")}), "any")
    with pytest.raises(UserError, match="compare: neither a run"):
        evaluate.check(replace(config, compare=str(tmp_path / "none")), "any")


def test_the_forecast_counts_what_is_asked(config: Any) -> None:
    from shoestring.estimate.flops import ModelShape
    from shoestring.estimate.machine import prior
    from shoestring.stages.context import Facts

    facts = Facts(ModelShape(2, 32, 4, 2, 8, 48, 61, True), prior(frozenset(), 1), "x/machine-second", "score")

    def tokens(**keys: Any) -> int:
        return evaluate.forecast(replace(config, **keys), facts).tokens

    one = tokens()
    assert tokens(samples=4, temperature=1.0) == pytest.approx(4 * one, rel=0.01)
    assert tokens(max_problems=3) == pytest.approx(one / 2, rel=0.1)
    assert tokens(thinking=[20, 40], parallel=0) < tokens(thinking=[20, 40], parallel=4)
    found = benchmarks.get("gsm8k")
    missing = evaluate.Config(benchmarks=["gsm8k"], data={"gsm8k": "none.jsonl"}, max_new=6)
    assert evaluate.forecast(missing, facts).tokens > found.problems, "the stated number where the data is not here"
    sources = evaluate.Config(sources=["bundled:lcm"], per_family=5, shots=0, max_new=6)
    both = replace(config, sources=["bundled:lcm"], per_family=5, shots=0)
    alone = evaluate.forecast(sources, facts)
    assert evaluate.forecast(both, facts).flops == pytest.approx(alone.flops + evaluate.forecast(config, facts).flops)
    asked = replace(config, endpoint="https://far.example/v1", endpoint_model="m", endpoint_price="cat/m")
    skus = {u.sku for u in evaluate.forecast(asked, facts).usages}
    assert {"teacher:cat/m/in", "teacher:cat/m/out"} <= skus


def test_a_run_without_answers_cannot_be_compared_with(config: Any, tmp_path: Path) -> None:
    write_lines(tmp_path / "r" / asks.FOLDER / "00-x.jsonl", [{"evaluated": "x"}])
    with pytest.raises(UserError, match="no evaluated answers"):
        results.against_run(config, [row("a", 0, 1)], tmp_path / "r", False)


@pytest.mark.parametrize("key", [{"answer": 100}, {"parallel": 2}, {"top_p": 0.9}, {"concurrency": 4}], ids=str)
def test_a_setting_that_nothing_would_read_is_refused(data: str, key: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(key))):
        evaluate.Config(**({"benchmarks": ["gsm8k"], "data": {"gsm8k": data}} | key))


def test_a_run_that_was_asked_otherwise_is_no_comparison(config: Any, tmp_path: Path) -> None:
    """Found before anything is spent; other samples of the same asking are a fair comparison."""
    head = {"evaluated": "x", "settings": [s.facts() for s in asks.settings(config)]}
    write_lines(tmp_path / "r" / asks.FOLDER / "00-x.jsonl", [head, row("a", 0, 1)])
    same = replace(config, compare=str(tmp_path / "r"))
    asks.check(same)
    for other, said in (({"max_new": 7}, "max_new = 6"), ({"samples": 2, "temperature": 0.5}, "temperature = 0.0")):
        with pytest.raises(UserError, match=f"asked with {said}"):
            asks.check(replace(same, **other))


def test_what_was_paid_is_kept_where_no_token_was_counted(config: Any) -> None:
    from shoestring.stages._evaluate_bench import Said, graded

    chunk = asks.chunks(config, asks.loaded(config), "base")[0]
    rows = graded(chunk, "base", [Said("", 0)] * len(chunk.problems), 0.6, {})
    assert sum(r["usd"] for r in rows) == pytest.approx(0.6)


def test_a_benchmark_of_one_s_own_has_curves_and_comparisons(config: Any, data: str, tmp_path: Path) -> None:
    """Its answers bear the file's stem, not its path."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.toml").write_text('prompt = "question"\nanswer = "answer"\nafter = "####"\n')
    own = str(tmp_path / "a" / "mine.toml")
    c = replace(config, benchmarks=[own], data={own: data}, thinking=[10], parallel=0)
    rows = [row("a", 0, 1, benchmark="mine", role="thinking", budget=10, thinking_tokens=5)]
    assert [x["benchmark"] for x in results.curves(c, rows)] == ["mine"]
    assert results.compare(c, rows, "base", rows, "base", "other")[0]["problems"] == 1
    asks.check(c)
    with pytest.raises(UserError, match="two are called 'mine'"):
        both = [own, str(tmp_path / "b" / "mine.toml")]
        asks.check(replace(c, benchmarks=both, data={b: data for b in both}))


def test_changed_data_is_not_mixed_with_what_was_graded(
    config: Any, make_context: Any, drive: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    monkeypatch.setattr(asks, "SLOTS", 2)
    context = make_context(tmp_path / "a", "score")
    drive(evaluate.run(config, {}, context), until=1)
    path = Path(config.data["gsm8k"])
    path.write_text(path.read_text().replace("what is 0", "how much is 0"))
    asks._loaded.cache_clear()
    with pytest.raises(UserError, match="gsm8k: the benchmark's data has changed"):
        drive(evaluate.run(config, {}, context))


def test_loading_is_no_cost_of_the_first_answers(config: Any, make_context: Any, drive: Any, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    from shoestring.stages import _evaluate_bench as bench

    quick = bench._open
    monkeypatch.setattr(bench, "_open", lambda *a: ([a[1].clock() for _ in range(1000)], quick(*a))[1])
    context = make_context(tmp_path / "a", "score")
    drive(evaluate.run(config, {}, context))
    assert 0 < told(tmp_path / "a")["results"][0]["usd"] < context.usd(100.0)
