"""kill -9 while a teacher is asked, and a budget that ends in mid-flight: real runs against a scripted server."""

from __future__ import annotations

import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("httpx2", reason="needs httpx2: pip install 'shoestring[endpoint]'")

import scripted_teacher as st
from tiny_run import World, entries, total, wait_for

BOOK = """
[[teacher]]
model = "m"
source = "test"
date = "2026-11-01"
in_usd_per_mtok = {usd}
out_usd_per_mtok = {usd}
"""
RECIPE = """
name = "tiny"
budget = "{budget} USD"
machine = "this"
rate = "0.36 USD/hour"
base = "{base}"

[[stage]]
use = "data"
dataset = "{problems}"
give = "problems"

[[stage]]
use = "distill"
samples = 1
max_new = 40
solutions = false
concurrency = 3
teacher = {{ url = "{url}", model = "m", price = "own/m", key_env = "TEACHER_KEY" }}
"""
SECRET = "sk-never-in-a-file"


def run(world: World, folder: Path, url: str, budget: str = "50", usd: str = "100") -> tuple[Path, dict[str, str]]:
    book = folder / "book.toml"
    folder.mkdir(parents=True, exist_ok=True)
    book.write_text(BOOK.format(usd=usd))
    return world.recipe(folder, RECIPE, url=url, budget=budget), {"SHOESTRING_PRICES": str(book), "TEACHER_KEY": SECRET}


def answered(folder: Path) -> int:
    path = folder / "stages" / "distill" / "replies.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def billed(folder: Path, outcome: str) -> dict[str, float]:
    lines = json.loads((folder / "bill.json").read_text())["lines"]
    found = [x for x in lines if x["resource"].startswith("teacher:own/m") and x["outcome"] == outcome]
    return {x["resource"].rpartition("/")[2]: float(x["quantity"]) for x in found}


@pytest.mark.slow
def test_kill_and_resume_repays_nothing(world: World, tmp_path: Path) -> None:
    with st.serving(st.says(slow=0.08)) as server:
        recipe, env = run(world, tmp_path, server.url)
        folder = tmp_path / "tiny"
        process = world.start("run", recipe, "--runs", tmp_path, env=env)
        wait_for(lambda: answered(folder) >= 6, process)
        process.kill()
        process.communicate()
        had = answered(folder)
        first = len(server.seen)
        world.ok("run", recipe, "--runs", tmp_path, "--resume", env=env)
        counts = Counter(st.prompts(server.seen))
        assert len(counts) == 43 and len(server.seen) == first + 43 - had, "only what had no reply on the disk is asked again"
        rows = [json.loads(x) for x in (folder / "traces" / "distill.jsonl").read_text().splitlines()]
        assert len(rows) == 43 and {r["score"] for r in rows} == {1.0}
        paid = billed(folder, "useful")
        assert 12 * 42 <= paid["out"] <= 12 * 43, "every reply once; one that fell between its row and its line is in what was open"
        assert billed(folder, "failed")["out"] >= 3 * 1, "what was open at the kill may have been charged"
        written = [p for p in tmp_path.rglob("*") if p.is_file()]
        assert written and not [p for p in written if SECRET.encode() in p.read_bytes()]
        assert total(folder) <= 50


@pytest.mark.slow
@pytest.mark.parametrize("script", [[st.says()], [st.truncated, st.says(), st.dies, st.refuses(500), st.says(end=False), st.says()]])
def test_a_budget_that_ends_in_mid_flight(world: World, tmp_path: Path, script: list[Any]) -> None:
    """A tenth of a dollar an answer at most, and a budget for some of the 43: it stops below, with the traces it has."""
    with st.serving(*script) as server:
        recipe, env = run(world, tmp_path, server.url, budget="1.2", usd="1000")
        done = world.run("run", recipe, "--runs", tmp_path, env=env)
        folder = tmp_path / "tiny"
        assert total(folder) <= 1.2, done.out
        assert 1 <= answered(folder) < 43 and "ceiling" in done.out
        rows = (folder / "traces" / "distill.jsonl").read_text().splitlines()
        assert 0 < len(rows) <= answered(folder)
        usages = [e["payload"] for e in entries(folder) if e["kind"] == "usage" and e["payload"]["sku"].startswith("teacher")]
        assert sum(Decimal(str(u["quantity"])) for u in usages) / 1000 > Decimal("0.1")
        asked = len(server.seen)
        world.ok("run", recipe, "--runs", tmp_path, "--resume", "--set", "budget=50 USD", env=env)
        assert answered(folder) == 43 and len(server.seen) - asked <= 43 - len(rows) + 4


@pytest.mark.slow
def test_refused_before_a_folder_is_made(world: World, tmp_path: Path) -> None:
    recipe, env = run(world, tmp_path, "http://127.0.0.1:9/v1")
    line = world.run("run", recipe, "--runs", tmp_path, env=env | {"TEACHER_KEY": ""}).one_line()
    assert "TEACHER_KEY is not set" in line and not (tmp_path / "tiny").exists()
    line = world.run("run", recipe, "--runs", tmp_path, env={"TEACHER_KEY": "k"}).one_line()
    assert 'no price is known for "teacher:own/m/in"' in line and not (tmp_path / "tiny").exists()
    world.ok("plan", recipe, env=env | {"TEACHER_KEY": ""})


@pytest.mark.slow
def test_recorded_by_flags(world: World, tmp_path: Path) -> None:
    """Recordings of half of the problems, one of them wrong: kept what is right, nothing billed but the machine."""
    problems = [json.loads(x) for x in world.problems.read_text().splitlines() if json.loads(x)["split"] == "train"]
    rows = [{"question": p["prompt"], "response": st.solved(p["prompt"]), "model": "open", "licence": "MIT"} for p in problems[:20]]
    rows[3]["response"] = "Answer: 99"
    recorded = tmp_path / "r.jsonl"
    recorded.write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = tmp_path / "d"
    done = world.ok("distill", "--model_name_or_path", world.base, "--dataset_name", world.problems, "--recorded", recorded, "--output_dir", out,
                    "--num_generations", "1", "--set", "distill.solutions=false", "--budget", "200 USD", "--rate", "3600 USD/hour")  # fmt: skip
    traces = [json.loads(x) for x in (out / "traces" / "distill.jsonl").read_text().splitlines()]
    assert len(traces) == 19 and {r["teacher_licence"] for r in traces} == {"MIT"} and {r["usage_basis"] for r in traces} == {"recorded"}
    assert "5.0% of 20 replies" in " ".join(done.out.split()) and "0 (recorded)" in " ".join(done.out.split())
    assert not billed(out, "useful") and not billed(out, "failed")
