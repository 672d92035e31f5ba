"""One real proof beside the simulated ones: the quickstart under 40% of its planned budget, killed twice, resumed.

It must end under that budget with a model that loads and a score of it, and every second must be in the ledger.
"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
import tiny_run
from tiny_run import attempts, entries, steps_done, total

from shoestring.cost.ledger import Ledger

running = tiny_run.beside(__file__, "running")


@pytest.mark.slow
def test_forty_percent_of_the_quickstart_killed_twice(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'shoestring[train]'")
    running.need_the_model()
    run = tmp_path / "quickstart"
    plan = json.loads(running.command("plan", running.RECIPE, "--json"))
    budget = Decimal(str(round(0.4 * plan["total"]["usd"]["mid"], 6)))
    if budget < Decimal(plan["least_usd"]):
        pytest.skip("40% would be refused: on this machine the essential stages alone are planned to take more")
    args = ("run", running.RECIPE, "--runs", tmp_path, "--set", f"budget={budget} USD")

    def scoring() -> bool:
        return steps_done(run, "score-base") > 0

    def training() -> bool:  # in the first stage that trains, or where the money is out before it, in what comes last
        return steps_done(run, "sft") > 2 or steps_done(run, "score-grpo") > 0

    died = [running.kill_when(scoring, tmp_path / "first.txt", *args)]
    before = entries(run)
    died.append(running.kill_when(training, tmp_path / "second.txt", *args, "--resume"))
    assert entries(run)[: len(before)] == before
    before = entries(run)
    out = running.command(*args, "--resume")
    assert entries(run)[: len(before)] == before, "the ledger only grows"

    state, bill = (json.loads((run / name).read_text()) for name in ("run.json", "bill.json"))
    assert state["closed"] and state["status"] in ("stopped", "finished") and state["attempts"] == 3
    assert Decimal(bill["marginal"]["total"]) <= budget == Decimal(bill["budget"])
    scored = {r["model"] for r in json.loads((run / "scores.json").read_text()) if r["benchmark"] == "unseen"}
    assert state["model_name"] in scored
    model = transformers.AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    ids = tokenizer("What is 1 + 1?", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=2, do_sample=False).shape[1] > ids["input_ids"].shape[1]
    with Ledger.open(run / "ledger.jsonl") as ledger:
        assert ledger.verify() == len(entries(run)), "the chain holds and attributed + idle = lease"
        assert not ledger.open_reservations()
    first, second, last = attempts(run).values()
    for attempt, when in zip((first, second), died, strict=True):
        assert attempt.reason == "killed" and attempt.posted == pytest.approx(when - attempt.begun, abs=2.0)
    assert last.posted == pytest.approx(last.ended - last.begun, abs=0.1)
    print(
        f"planned {plan['total']['usd']['mid']:.6f} USD, budget {budget}, spent {total(run):.6f}, killed {len(died)} times, "
        f"{state['status']} with {state['model_name']!r}, failed {first.seconds.get('failed', 0) + second.seconds.get('failed', 0):.1f} s"
        f"\n{out[-1500:]}"
    )
