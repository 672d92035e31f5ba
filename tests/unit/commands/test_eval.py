"""`shoestring eval`: flags become the recipe that one would write by hand, and complaints name the flag."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoestring import cli, recipe, stages
from shoestring.commands import eval as command
from shoestring.commands.parser import parse
from shoestring.records import UserError


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "#### 1"}) + "\n")
    return str(path)


def made(*args: str, out: str = "runs/my-eval", model: str = "smollm2-135m-instruct") -> recipe.Recipe:
    parsed = parse(cli.parser(), ["eval", model, "--budget", "1 USD", "--output_dir", out, *args])
    return command.recipe_of(parsed, parsed.out)


def test_it_is_the_recipe_that_one_would_write(data: str) -> None:
    flags = made(
        "--benchmark", "gsm8k", "--data", data, "--samples", "4", "--temperature", "0.6", "--top-p", "0.95", "--pass_at", "1,4",
        "--max_problems", "10", "--seed", "3", "--rate", "0.1 USD/hour",
    )  # fmt: skip
    text = f"""
        name = "my-eval"
        budget = "1 USD"
        rate = "0.1 USD/hour"
        base = "smollm2-135m-instruct"
        seed = 3
        [[stage]]
        use = "evaluate"
        benchmarks = ["gsm8k"]
        data = {{ gsm8k = "{data}" }}
        samples = 4
        temperature = 0.6
        top_p = 0.95
        pass_at = [1, 4]
        max_problems = 10
        max_new = {command.MAX_NEW}
    """
    assert flags == recipe.loads(text, stages.configs())
    assert recipe.loads(flags.to_toml(), stages.configs()) == flags


def test_thinking_and_an_endpoint(data: str) -> None:
    args = ("--benchmark", "gsm8k", "--data", data)
    c: Any = made(*args, "--thinking", "256,512", "--waits", "2", "--parallel", "4", "--answer", "100").stages[0].config
    assert (c.thinking, c.waits, c.parallel, c.answer) == ([256, 512], 2, 4, 100)
    r = made(*args, "--endpoint", "http://127.0.0.1:9/v1", model="their-model")
    c = r.stages[0].config
    assert r.base == command.STANDIN and (c.endpoint_model, c.endpoint_price) == ("their-model", "machine")


def test_data_by_name_and_in_order(data: str) -> None:
    names = ["gsm8k", "svamp", "math-500"]
    assert command._data(names, ["a", "b", "c"]) == {"gsm8k": "a", "svamp": "b", "math-500": "c"}
    assert command._data(names, ["svamp=b", "a"]) == {"svamp": "b", "gsm8k": "a"}
    assert command._data(["gsm8k"], ["x?prompt=q"]) == {"gsm8k": "x?prompt=q"}
    with pytest.raises(UserError, match="2 files for 1 benchmarks"):
        command._data(["gsm8k"], ["a", "b"])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--benchmark", "gsm8"], "--benchmark: .*did you mean"),
        (["--benchmark", "gsm8k", "--samples", "4"], "--samples: .*temperature"),
        (["--benchmark", "gsm8k", "--thinking", "9,3"], "--thinking"),
    ],
)
def test_complaints_name_the_flag(args: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        made(*args)


def test_no_benchmark_and_no_number(capsys: Any) -> None:
    for args in (["eval", "m"], ["eval", "m", "--benchmark", "gsm8k", "--thinking", "many"]):
        with pytest.raises(SystemExit):
            parse(cli.parser(), args)
    assert "numbers separated by commas" in capsys.readouterr().err


def test_without_a_budget_nothing_runs(data: str, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    args = ["eval", "smollm2-135m-instruct", "--benchmark", "gsm8k", "--data", data, "--rate", "1 USD/hour", "--output_dir", str(out)]
    assert cli.main(args) == 2 and not out.exists()
    assert "no --budget" in capsys.readouterr().err
