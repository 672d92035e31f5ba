"""`shoestring eval` as a user runs it, in a process of its own: JSON that holds its schema, a kill in the middle, the ceiling."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_run

SCHEMAS = tiny_run.ROOT / "docs" / "schemas"
SMALL_CHUNKS = """
import sys, time
from shoestring import cli
from shoestring.stages import _evaluate_asks as asks, _evaluate_bench as bench
asks.SLOTS = 2
quick = bench._generate
bench._generate = lambda *a: (time.sleep({wait}), quick(*a))[1]
sys.exit(cli.main())
"""  # chunks of one problem that take a while: a kill falls between them


@pytest.fixture(scope="module")
def world() -> tiny_run.World:
    return tiny_run.make_world()


@pytest.fixture(scope="module")
def data(world: tiny_run.World) -> Path:
    path = world.root / "gsm.jsonl"
    path.write_text("".join(json.dumps({"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"}) + "\n" for i in range(8)))
    return path


def flags(world: tiny_run.World, data: Path, out: Path, *more: str) -> list[str]:
    """A dollar is a second."""
    return [
        "eval", str(world.base), "--benchmark", "gsm8k", "--data", str(data), "--max_new", "6", "--samples", "2", "--temperature",
        "1", "--rate", "3600 USD/hour", "--output_dir", str(out), *more,
    ]  # fmt: skip


def start(world: tiny_run.World, data: Path, out: Path, *more: str, wait: float = 0.15) -> subprocess.Popen:
    code = SMALL_CHUNKS.format(wait=wait)
    return subprocess.Popen(
        [sys.executable, "-c", code, *flags(world, data, out, *more)], env=world.env, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def kept(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(x) for p in sorted((run / "evaluations").glob("*.jsonl")) for x in p.read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("usd", "prompt_tokens", "prompt_rows")} for r in rows if "problem_id" in r]


def test_json_and_page(world: tiny_run.World, data: Path, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install 'shoestring[test]'")
    done = world.ok(*flags(world, data, tmp_path / "a", "--thinking", "5,10", "--answer", "30", "--budget", "100 USD", "--json"))
    made = json.loads(done.out)
    jsonschema.validate(made, json.loads((SCHEMAS / "eval.schema.json").read_text()))
    assert made["status"] == "finished" and len(made["evaluation"]["results"]) == 3 and len(made["scaling"]) == 1
    scores = json.loads((tmp_path / "a" / "scores.json").read_text())
    jsonschema.validate(scores, json.loads((SCHEMAS / "scores.schema.json").read_text()))
    assert float(made["bill"]["marginal"]) < 100 and "gsm8k" in done.err and "1,319 problems" in done.err
    page = (tmp_path / "a" / "report.html").read_text()
    assert "<h2>Benchmarks" in page and "1,319 problems" in page and "Test-time scaling" in page


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(world: tiny_run.World, data: Path, tmp_path: Path) -> None:
    """SIGKILL after some chunks; --resume asks the rest (that the answers are the same: tests/unit/stages)."""
    process = start(world, data, tmp_path / "cut", "--budget", "100 USD")
    journal = tmp_path / "cut" / "stages" / "evaluate" / "answers.jsonl"
    tiny_run.wait_for(lambda: journal.exists() and journal.read_text().count('{"chunk"') >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = journal.read_text().count('{"chunk"')
    assert 2 <= before < 8
    done = world.finish(start(world, data, tmp_path / "cut", "--budget", "100 USD", "--resume"))
    assert done.code == 0, done.err
    steps = [r["step"] for r in tiny_run.metrics(tmp_path / "cut") if r["stage"] == "evaluate"]
    assert max(steps) == 8 and len(steps) == len(set(steps)) >= 7, "no chunk twice; the kill may fall before one is reported"
    found = kept(tmp_path / "cut")
    assert len(found) == 16 == len({(r["problem_id"], r["sample"]) for r in found})
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["status"] == "finished"
    outcomes = {k for a in tiny_run.attempts(tmp_path / "cut").values() for k in a.seconds}
    assert "failed" in outcomes, "what the killed attempt left unposted is on the bill"
    assert tiny_run.total(tmp_path / "cut") < 100


@pytest.mark.slow
def test_the_ceiling_holds(world: tiny_run.World, tmp_path: Path) -> None:
    """Answers that take far longer than the plan said: what was graded is the score, and the bill stays under the budget."""
    more = world.root / "many.jsonl"
    more.write_text("".join(json.dumps({"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"}) + "\n" for i in range(90)))
    done = world.finish(start(world, more, tmp_path / "a", "--budget", "25 USD", wait=1.0))
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "stopped"
    assert tiny_run.total(tmp_path / "a") <= 25
    made = json.loads((tmp_path / "a" / "eval.json").read_text())
    assert made["stopped"] and 0 < made["results"][0]["problems"] < 90
    (score,) = json.loads((tmp_path / "a" / "scores.json").read_text())
    assert score["n"] == made["results"][0]["problems"]
