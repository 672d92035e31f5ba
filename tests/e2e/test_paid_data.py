"""Labels, pass rates, paraphrases and rationales by a server, as a user runs them: priced, billed, killed, and not paid twice."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("httpx2", reason="needs httpx2: pip install 'shoestring[endpoint]'")

import jsonschema
import scripted_teacher as st
from tiny_run import ROOT, World, total, wait_for

BOOK = '[[teacher]]\nmodel = "m"\nsource = "test"\ndate = "2026-11-01"\nin_usd_per_mtok = 100\nout_usd_per_mtok = 100\n'
SECRET = "sk-never-in-a-file"
PAY = ["--rate", "0.36 USD/hour"]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "book.toml").write_text(BOOK)
    return {"SHOESTRING_PRICES": str(tmp_path / "book.toml"), "TEACHER_KEY": SECRET}


def table(url: str, role: str, price: str = "own/m") -> list[str]:
    return [f"--{role}", url, f"--{role}-model", "m", f"--{role}-key-env", "TEACHER_KEY", f"--{role}-price", price]


def schema(name: str) -> Any:
    return json.loads((ROOT / "docs" / "schemas" / f"{name}.schema.json").read_text())


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in path.read_text().splitlines()]


def bought(run: Path, outcome: str = "useful") -> float:
    lines = json.loads((run / "bill.json").read_text())["lines"]
    return sum(float(x["quantity"]) for x in lines if x["resource"] == "teacher:own/m/out" and x["outcome"] == outcome)


def label(h: Any, slow: float = 0.0) -> None:
    st.says("even" if int(h.prompt.rsplit("+", 1)[0].split()[-1]) % 2 == 0 else "odd", slow=slow)(h)


@pytest.mark.slow
def test_curate_with_labels(world: World, tmp_path: Path, env: dict[str, str]) -> None:
    """No budget: the plan alone. An unknown price: refused. Then priced, killed in the middle, resumed, billed once."""
    out = tmp_path / "chosen.jsonl"

    def args(url: str, price: str = "own/m") -> list[Any]:
        return ["curate", world.problems, "--out", out, "--count", "20", "--label-names", "odd,even", "--base", world.base,
                "--language", "any", *table(url, "labels", price), *PAY]  # fmt: skip

    with st.serving(st.refuses(429, retry_after="0.3"), lambda h: label(h, 0.15)) as s:
        assert "no --budget" in world.run(*args(s.url), env=env, cwd=tmp_path).one_line()
        line = world.run(*args(s.url, "own/none"), "--budget", "5 USD", env=env, cwd=tmp_path).one_line()
        assert 'no price is known for "teacher:own/none/in"' in line and not s.seen
        folder = tmp_path / "chosen.jsonl.run"
        process = world.start(*args(s.url), "--budget", "5 USD", "--json", env=env, cwd=tmp_path)
        cached = folder / "stages" / "curate" / "labels.jsonl"
        wait_for(lambda: cached.exists() and cached.read_bytes().count(b"\n") >= 6, process)
        process.kill()
        process.communicate()
        time.sleep(0.5)  # the server hears of what was on its way
        had, first = cached.read_bytes().count(b"\n"), len(s.seen)
        done = world.ok(*args(s.url), "--budget", "5 USD", "--resume", "--json", env=env, cwd=tmp_path)
        assert len(s.seen) == first + 43 - had, "only what had no reply on the disk is asked again"
    told = json.loads(done.out)
    jsonschema.validate(told, schema("curate"))
    assert told["paid"]["status"] == "finished" and told["selection"]["domains_from"] == "labels" and told["selection"]["chosen"] == 20
    assert {d["domain"] for d in told["domains"]} == {"odd", "even"} and Counter(r["domain"] for r in rows(out)).total() == 20
    assert 43 - 1 <= bought(folder) / 2 <= 43 * 6 and float(told["paid"]["total"]) == total(folder)
    plan = json.loads((folder / "plan.json").read_text())
    assert next(x for x in plan["stages"] if x["use"] == "curate")["usd"]["mid"] > 0.1, "the plan has the tokens"
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]


@pytest.mark.slow
def test_free_steps_are_useful_seconds(world: World, tmp_path: Path, env: dict[str, str]) -> None:
    recipe = world.recipe(
        tmp_path,
        'name = "tiny"\nbudget = "200 USD"\nmachine = "this"\nrate = "0.36 USD/hour"\nbase = "{base}"\n[[stage]]\nuse = "curate"\n'
        'sources = ["{problems}"]\nlanguage = "en"\ncount = 20\ncandidates = 20\nsamples = 0\nfamily_high = 1.0\n',
    )  # fmt: skip
    world.ok("run", recipe, "--runs", tmp_path, env=env)
    lines = json.loads((tmp_path / "tiny" / "bill.json").read_text())["lines"]
    took = Counter[str]()
    for x in lines:
        if x["stage"] == "curate" and x["unit"] == "second":
            took[x["outcome"]] += float(x["quantity"])
    assert took["useful"] > 5 * took["idle"], took


def rewrites(h: Any) -> None:
    if "Rewrite this problem" in h.prompt:
        a, b = (x for x in h.prompt.replace("?", " ").split() if x.isdigit())
        st.says(f"Sum up {a} with {b}.")(h)
    else:
        st.says("Answer: 99" if "Sum up 0" in h.prompt else None)(h)


@pytest.mark.slow
def test_paraphrase(world: World, tmp_path: Path, env: dict[str, str]) -> None:
    out = tmp_path / "more.jsonl"
    with st.serving(st.refuses(429, retry_after="0.2"), rewrites) as s:
        args = ["data", "augment", world.problems, "--out", out, "--base", world.base, "--checks", "1", *table(s.url, "paraphrase"), *PAY]
        assert "no --budget" in world.run(*args, env=env, cwd=tmp_path).one_line() and not s.seen
        assert "leave them out" in world.run(*args, "--how", "shuffle", "--budget", "9 USD", env=env, cwd=tmp_path).one_line()
        done = world.ok(*args, "--budget", "50 USD", "--json", env=env, cwd=tmp_path)
    told = json.loads(done.out)
    jsonschema.validate(told, schema("data-augment"))
    given = rows(world.problems)
    zeros = sum(r["prompt"].startswith("What is 0") and r["split"] == "train" for r in given)
    assert told["given"] == 43 and told["made"] == 43 - zeros == len(rows(out)) and told["left_out"] == {"answered otherwise": zeros}
    golds = {tuple(x for x in r["prompt"].replace("?", "").split() if x.isdigit()): r["answer"] for r in given}
    for r in rows(out):
        assert golds[tuple(x for x in r["prompt"].replace(".", "").split() if x.isdigit())] == r["answer"] and r["source"].endswith("paraphrased")
    assert bought(tmp_path / "more.jsonl.run") == 86 * 12 and float(told["paid"]["total"]) > 86 * 12 * 1e-4


@pytest.mark.slow
def test_rationales_and_long_traces_are_learnt(world: World, tmp_path: Path, env: dict[str, str]) -> None:
    """`shoestring distill --rationalise --prefer long`: the longest right answer, a rationale where none was right, and no
    hint anywhere that a student sees; sft then trains on it."""
    short, long = "So.\nAnswer: {}", "First we look at both numbers, then we add them up, one after the other.\nAnswer: {}"

    def answers(h: Any) -> None:
        words = h.prompt.split("?")[0].split()
        a, b = int(words[2]), int(words[4])
        if "The answer is" in h.prompt:
            return st.says("We count on from the first number, as many steps as the second says.\nAnswer: " + str(a + b))(h)
        if a == 0:
            return st.says("Answer: 1000")(h)
        n = sum(p == h.prompt for p in st.prompts(h.seen))
        st.says((short if n % 2 else long).format(a + b))(h)

    out = tmp_path / "d"
    with st.serving(answers) as s:
        world.ok("distill", "--model_name_or_path", world.base, "--dataset_name", world.problems, "--teacher_url", s.url,
                 "--teacher_model", "m", "--teacher_price", "own/m", "--rationalise", "true", "--prefer", "long", "--num_generations",
                 "2", "--max_completion_length", "64", "--concurrency", "1", "--output_dir", out, "--set", "distill.solutions=false",
                 "--budget", "50 USD", *PAY, env=env)  # fmt: skip
        hinted = [p for p in st.prompts(s.seen) if "The answer is" in p]
    traces = rows(out / "traces" / "distill.jsonl")
    zeros = [r for r in traces if r["messages"][0]["content"].startswith("What is 0")]
    assert len(traces) == 43 and len(hinted) == len(zeros) > 0
    for r in traces:
        assert r["rationalised"] == (r in zeros) and r["score"] == 1.0 and r["text"].startswith("We count on" if r in zeros else "First we")
        assert "The answer is" not in json.dumps(r["messages"]) and r["messages"][0]["content"].startswith("What is ")
    from shoestring.models.tokenizer import Tokenizer

    tokenizer = Tokenizer(world.base)
    assert all("The answer is" not in tokenizer.decode(r["prompt_tokens"]) for r in traces), "the prompt is the plain question"
    lines = json.loads((out / "bill.json").read_text())["lines"]
    took = Counter[str]()
    for x in lines:
        if x["stage"] == "distill" and x["unit"] == "second":
            took[x["outcome"]] += float(x["quantity"])
    assert took["useful"] > 5 * took["idle"], took
    world.ok("sft", "--model_name_or_path", world.base, "--dataset_name", out / "traces" / "distill.jsonl", "--output_dir",
             tmp_path / "s", "--max_steps", "2", "--budget", "50 USD", *PAY, env=env)  # fmt: skip
