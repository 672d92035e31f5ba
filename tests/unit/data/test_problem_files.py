import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from shoestring.answers import equal, operand_key
from shoestring.data.sources import bundled

TRAINED = {"stories", "chain_sum", "chain_sum_three", "products", "lcm", "number_format", "number_sequence", "basic_arithmetic"}
OTHERS = {"gcd", "letter_counting", "syllogism"}
GENERATOR = {"chain_sum_three": "chain_sum"}


def test_families_and_rows(shipped) -> None:
    assert set(shipped) == TRAINED | OTHERS
    for name, rows in shipped.items():
        splits = {s: [r for r in rows if r["split"] == s] for s in ("train", "test")}
        assert len(splits["train"]) + len(splits["test"]) == len(rows)
        assert 60 <= len(splits["test"]) <= 120
        if name in TRAINED:
            assert 250 <= len(splits["train"]) <= 2000
        for r in rows:
            assert set(r) == {"prompt", "answer", "solution", "domain", "source", "licence", "split"}
            assert r["domain"] == name
            assert r["licence"] == "Apache-2.0"
            made = "shoestring tools/" if name == "stories" else f"reasoning-gym 0.1.25 {GENERATOR.get(name, name)} {{"
            assert r["source"].startswith(made)
            assert equal(r["answer"], r["answer"])
    assert sum(p.stat().st_size for p in bundled.folder().iterdir()) < 600_000


def test_train_and_test_share_no_operands(shipped) -> None:
    for rows in shipped.values():
        keys = {s: [operand_key(r["prompt"], r["domain"]) for r in rows if r["split"] == s] for s in ("train", "test")}
        assert not set(keys["train"]) & set(keys["test"])
        assert len(set(keys["test"])) == len(keys["test"])
        assert len({r["prompt"] for r in rows}) == len(rows)


def test_readme_states_what_lies_there() -> None:
    readme = (bundled.folder() / "README.md").read_text()
    for path in bundled.folder().glob("*.gz"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in readme, path.name
        assert path.read_bytes()[4:8] == bytes(4)  # no time stamp
    heldout = bundled.folder().parent / "heldout.txt"
    assert hashlib.sha256(heldout.read_bytes()).hexdigest() in readme
    assert 1100 < len(re.findall(r"\w+", bundled.heldout_text())) < 1400


def tool_of(name: str) -> Any:
    path = Path(__file__).resolve().parents[3] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    sys.modules[name] = tool
    spec.loader.exec_module(tool)
    return tool


def test_stories_are_made_again_and_right(shipped) -> None:
    """The same bytes; and the last result is the answer, by evaluating every step."""
    tool = tool_of("generate_stories")
    _, packed = tool.pack(tool.build())
    assert packed == (bundled.folder() / "stories.jsonl.gz").read_bytes()
    for r in shipped["stories"]:
        steps, _, stated = r["solution"].partition("\nAnswer: ")
        said = [s.split("=") for s in steps.split(", ")]
        assert all(eval(left.replace("/", "//")) == int(right) for left, right in said) and stated == said[-1][1] == r["answer"]
        numbers = re.findall(r"\d+", r["prompt"])
        assert sorted(re.findall(r"\d+", ",".join(s[0] for s in said)) + numbers) == sorted(numbers + numbers + [s[1] for s in said[:-1]])


def test_the_tool_makes_the_same_bytes() -> None:
    pytest.importorskip("reasoning_gym", reason="needs Reasoning Gym: pip install 'shoestring[gym]'")
    tool = tool_of("generate_problems")
    for family in tool.FAMILIES:
        if family.name in ("gcd", "syllogism", "chain_sum_three"):
            content, _ = tool.pack(tool.build(family)[0])
            digest = hashlib.sha256(content).hexdigest()
            assert digest in (bundled.folder() / "README.md").read_text(), family.name
