"""`shoestring ablate`: the plan, the run, what it prints, and its schema."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ablate"))
from ablate_world import Ablations, ablations

from shoestring.ablate import running
from shoestring.commands import ablate
from shoestring.records import UserError

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ablations:
    made = ablations(tmp_path, monkeypatch)
    inner = running.Runner.__init__

    def init(self: Any, *args: Any) -> None:  # the stub world's clock
        inner(self, *args[:6], made.world.now, made.world.clock)

    monkeypatch.setattr(running.Runner, "__init__", init)
    return made


def run(world: Ablations, *flags: str, budget: str = "1000", top: str = "") -> int:
    parser = argparse.ArgumentParser()
    ablate.add(parser.add_subparsers())
    args = parser.parse_args(["ablate", str(world.write(budget, top)), "--runs", str(world.folder / "runs"), *flags])
    args.started = 0.0
    return ablate.run(args)


def validate(data: Any, part: str = "") -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install 'shoestring[test]'")
    schema = json.loads((DOCS / "schemas" / "ablate.schema.json").read_text())
    if part:
        schema = {"$defs": schema["$defs"], "$ref": f"#/$defs/{part}"}
    jsonschema.Draft202012Validator(schema).validate(data)


def test_the_plan_says_minutes_and_dollars_and_runs_nothing(world: Ablations, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(world, "--plan", "--json") == 0
    out, err = capsys.readouterr()
    made = json.loads(out)
    validate(made, "plan")
    assert [a["arm"] for a in made["arms"]] == ["plain", "other"] and made["total"]["usd"][1] > 300
    assert "min in all" in err and not world.out.exists()
    with pytest.raises(UserError, match="too small"):
        run(world, "--plan", budget="100")


def test_a_run_prints_every_arm_and_holds_to_its_schema(world: Ablations, capsys: pytest.CaptureFixture[str]) -> None:
    top = 'evaluate = ["bundled:gcd"]\nshared = ["first"]'
    assert run(world, "--only", "plain", "--json", top=top) == 0
    validate(partial := json.loads(capsys.readouterr().out))
    assert partial["status"] == "partial" and partial["arms"][1]["mean"] is None and partial["arms"][1]["gain"] is None
    assert run(world, "--resume", "--json", top=top) == 0
    out, err = capsys.readouterr()
    validate(json.loads(out))
    assert "other against plain: +" in err and "Other domains" in err and "shared by all arms, run once: first" in err
    page = (world.out / "report.html").read_text()
    assert page.count("<svg") >= 4 and "What was planned" in page and "other against plain" in page and "<script" not in page


def test_unknown_seeds_and_arms_are_refused(world: Ablations) -> None:
    with pytest.raises(UserError, match="the file's seeds are 0, 1"):
        run(world, "--seeds", "0,7")
    with pytest.raises(UserError, match='no arm "othr"; did you mean "other"'):
        run(world, "--only", "othr")
