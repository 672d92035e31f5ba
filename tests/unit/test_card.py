"""The model card parses as the hub reads it, and its numbers are those of scores.json and bill.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from shoestring import card, recipe, stages

TEXT = 'name = "x"\nbudget = "1 USD"\nbase = "{base}"\nseed = 3\n[[stage]]\nuse = "sft"\n[[stage]]\nuse = "grpo"\n'
BILL = {"currency": "USD", "budget": "1", "headline": {"total": "0.012345"}, "marginal": {"total": "0.023456"},
        "sunk": [], "is_lower_bound": False, "lines": []}  # fmt: skip


def made(base: str = "org/model") -> recipe.Recipe:
    return recipe.loads(TEXT.format(base=base), stages.configs())


def score(family: str, accuracy: float | None, **rest: Any) -> dict[str, Any]:
    return {"model": "grpo", "benchmark": "unseen", "family": family, "n": 40, "accuracy": accuracy, "ci95": [0.4, 0.6], **rest}


def front(text: str) -> dict[str, Any]:
    """The YAML block, read by a YAML reader."""
    yaml = pytest.importorskip("yaml", reason="needs a YAML reader to read the card back: pip install pyyaml")
    head, _, _ = text.removeprefix("---\n").partition("---\n")
    return yaml.safe_load(head)


def lines(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_what_it_was_made_of(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(json.dumps([score("macro", 0.5), score("lcm", 0.9), score("macro", None)]))
    lines(tmp_path / "problems.jsonl", {"source": "gym lcm", "licence": "Apache-2.0"}, {"source": "mine", "licence": ""})
    lines(tmp_path / "sources.jsonl", {"source": "mine", "licence": "", "rows": 3}, {"source": "org/chats", "licence": "mit", "rows": 3})
    text = card.card(tmp_path, made(), {"model_name": "grpo", "artifacts": {"sources": "sources.jsonl"}})
    head = front(text)
    assert head["base_model"] == "org/model" and head["library_name"] == "transformers" and head["datasets"] == ["org/chats"]
    assert head["pipeline_tag"] == "text-generation" and "license" not in head, "nobody says"
    assert "Weights: grpo. Stages: sft → grpo." in text and made().hash in text and "seed 3" in text
    assert text.count("- mine (licence not stated)") == 1 and "- gym lcm (Apache-2.0)" in text and "- org/chats (mit)" in text
    assert "90.0%" not in text, "families stand in the report"


def test_numbers_are_those_of_the_files(tmp_path: Path) -> None:
    scores = [score("macro", 0.4321, ci95=[0.3987, 0.4654], n=123), score("macro", 0.25, model="base", benchmark="untrained")]
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    (tmp_path / "bill.json").write_text(json.dumps(BILL))
    (tmp_path / "plan.json").write_text(json.dumps({"left_out": ["the people", "storage"]}))
    text = card.card(tmp_path, made(), {"model_name": "grpo"})
    rows = [re.split(r"\s*\|\s*", r.strip("| ")) for r in re.findall(r"^\|.*\d%.*\|$", text, re.MULTILINE)][1:]
    for row, s in zip(rows, scores, strict=True):
        lo, hi = s["ci95"]
        assert row == [s["model"], s["benchmark"], f"{s['accuracy']:.1%}", f"{lo:.1%} to {hi:.1%}", str(s["n"])]
    assert "this model's run: 0.012345 USD of a budget of 1\n" in text and "failed and repeated work: 0.023456 USD" in text
    assert "not in these figures: the people; storage" in text
    (tmp_path / "bill.json").write_text(json.dumps(BILL | {"is_lower_bound": True}))
    assert "at least 0.012345 USD" in card.card(tmp_path, made(), {"model_name": "grpo"})


def test_the_adapter_is_named_where_there_is_one(tmp_path: Path) -> None:
    assert "## Adapter" not in card.card(tmp_path, made(), {"model_name": "sft"})
    (tmp_path / "model" / "adapter").mkdir(parents=True)
    said = {"r": 8, "lora_alpha": 16.0, "use_rslora": True, "target_modules": ["q_proj", "down_proj"], "base_model_name_or_path": "org/m"}
    (tmp_path / "model" / "adapter" / "adapter_config.json").write_text(json.dumps(said))
    text = card.card(tmp_path, made(), {"model_name": "sft"})
    assert "LoRA of rank 8, alpha 16, rank-stabilised, on q_proj, down_proj." in text and '"org/m"), "adapter")' in text


def test_without_files(tmp_path: Path) -> None:
    text = card.card(tmp_path, made(), {"model_name": "base"})
    assert not {"## Scores (measured)", "## Data", "## Bill"} & set(text.splitlines()) and "bill.json" in text


@pytest.mark.parametrize("name", ['a"b', "a: b", "# x", "- y", "ü"])
def test_no_name_breaks_the_front(tmp_path: Path, name: str) -> None:
    base = tmp_path / name
    base.mkdir()
    one = made().__class__(**(vars(made()) | {"base": str(base)}))
    assert front(card.card(tmp_path, one, {"model_name": "base"}))["base_model"] == str(base)


def test_licences(tmp_path: Path) -> None:
    for text, licence in (("---\nlicense: apache-2.0\ntags: [x]\n---\n# m", "apache-2.0"), ("# license: mit", ""), ("---\nx: y\n---", "")):
        (tmp_path / "README.md").write_text(text)
        assert card.licence_of(str(tmp_path)) == licence
    assert card.licence_of("/no/where") == "" and card.licence_of("smollm2-135m-instruct") == "apache-2.0"
    head = front(card.card(tmp_path, made("smollm2-135m-instruct"), {"model_name": "base"}))
    assert head["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct" and head["license"] == "apache-2.0"


def test_licences_are_named(tmp_path: Path) -> None:
    """Records by licence are counted; a base or teacher that one may not train on, or is not known, is named."""
    lines(
        tmp_path / "traces.jsonl",
        {"source": "x", "licence": "mit", "model": "qwq-32b", "teacher_licence": "Apache-2.0"}, {"source": "x", "licence": "mit", "model": "solver"},
        {"source": "y", "licence": "", "model": "solver"},
    )  # fmt: skip
    text = card.card(tmp_path, made(), {"model_name": "sft", "artifacts": {"traces": "traces.jsonl"}})
    assert "## Licences" in text and "traces.jsonl: 3 records by licence: mit 2, not stated 1" in text
    assert "1 answers by qwq-32b (Apache-2.0)" in text and "base org/model: its licence is not known here" in text
    assert not card.remarks(made("smollm2-135m-instruct"))


def test_every_teacher_is_in_the_card(tmp_path: Path) -> None:
    """That of logits and the recorded one too, allowed ones with how that is known."""
    (tmp_path / "big").mkdir()
    text = TEXT.format(base="smollm2-135m-instruct") + (
        f'[[stage]]\nuse = "logit_distill"\nteacher = "{tmp_path / "big"}"\n[[stage]]\nuse = "distill"\nteacher = {{ recorded = "bundled:rg_traces" }}\n'
    )
    one = recipe.loads(text, stages.configs())
    assert card.remarks(one) == [f"teacher {tmp_path / 'big'}: its licence is not known here: read whether it allows training on its output"]
    said = card.card(tmp_path, one, {"model_name": "sft"})
    assert f"- teacher {tmp_path / 'big'}: its licence is not known" in said and "- base smollm2-135m-instruct (apache-2.0)" in said
    assert "- teacher deepseek-r1 (mit): training on its output is allowed" in said and "- teacher qwq-32b (apache-2.0)" in said
    (tmp_path / "big" / "README.md").write_text("---\nlicense: llama3\n---\n")
    assert "is forbidden" in card.remarks(one)[0]


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ('{ url = "https://x.test/v1", model = "gpt-4o", price = "c/m" }', ["teacher gpt-4o (OpenAI terms): training on its output is forbidden"]),
        ('{ url = "https://x.test/v1", model = "deepseek-reasoner", price = "c/m" }', ["teacher deepseek-reasoner (DeepSeek terms of use): training on its output is allowed"]),
        ('{ recorded = "FILE" }', ["teacher claude-x (Anthropic", "teacher mine: its licence (own) is not known"]),
        ('{ recorded = "FILE", model = "qwq-32b" }', []), ('{ recorded = "/nowhere" }', []),
    ],
)  # fmt: skip
def test_teachers_before_the_run(tmp_path: Path, teacher: str, said: list[str]) -> None:
    rows = [{"model": "claude-x"}, {"model": "mine", "licence": "own"}, {"model": "qwq-32b", "licence": "Apache-2.0"}, {"model": "claude-x"}]
    lines(tmp_path / "rows.jsonl", *rows)
    text = TEXT.format(base="smollm2-135m-instruct") + f'[[stage]]\nuse = "distill"\nteacher = {teacher}\n'
    found = card.remarks(recipe.loads(text.replace("FILE", str(tmp_path / "rows.jsonl")), stages.configs()))
    assert len(found) == len(said) and all(f.startswith(s) for f, s in zip(found, said, strict=True)), found
