"""TRL's flags of GRPO's loss mean what they mean there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from shoestring import cli
from shoestring.commands import train
from shoestring.commands.parser import parse
from shoestring.records import UserError
from shoestring.train.variants import VARIANTS

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "grpo.md").read_text(encoding="utf-8")


def config(*args: str) -> Any:
    given = ["grpo", "--model_name_or_path", "smollm2-135m-instruct", "--dataset_name", "bundled:lcm", "--budget", "1 USD"]
    parsed = parse(cli.parser(), [*given, "--output_dir", "runs/x", *args])
    return next(t.config for t in train._recipe(parsed, parsed.out).stages if t.name == "grpo")


def test_trl_says_the_same_in_other_words() -> None:
    c = config("--beta", "0.04", "--epsilon", "0.1", "--num_iterations", "2", "--loss_type", "grpo", "--scale_rewards", "none")
    assert (c.kl, c.bounds(), c.updates, c.variant, c.scaling()) == (0.04, (0.1, 0.1), 2, "grpo", "none")
    assert config("--epsilon", "0.1", "--epsilon_high", "0.3").bounds() == (0.1, 0.3)
    assert config("--loss_type", "cispo", "--epsilon_high", "5").bounds()[1] == 4.0
    assert config("--loss_type", "grpo", "--importance_sampling_level", "sequence").variant == "gspo"
    assert config("--beta", "0.1", "--sync_ref_model", "--ref_model_sync_steps", "8").reference_every == 8
    c = config("--vllm_importance_sampling_correction", "--vllm_importance_sampling_mode", "token_mask",
               "--vllm_importance_sampling_cap", "3")  # fmt: skip
    assert (c.old, c.importance, c.importance_cap) == ("trainer", "masked", 3.0)
    assert config().variant == "bnpo" and config().bounds() == (0.2, 0.28)


SEQUENCE = ["--importance_sampling_level", "sequence"]


@pytest.mark.parametrize("args", [[], ["--loss_type", "grpo"], ["--loss_type", "gspo"]])
def test_a_ratio_of_sequences_has_the_bounds_that_gspo_is_documented_with(args: list[str]) -> None:
    """docs/grpo.md's table, which is also TRL's own recipe of the paper; not the 0.2 of a token's ratio."""
    v = VARIANTS["gspo"]
    made = config(*args, *SEQUENCE)
    assert made.variant == "gspo" and made.bounds() == (v.low, v.high) == (3e-4, 4e-4)
    assert re.search(r"^\| `gspo` \|.*\| 3e-4, 4e-4 \|", PAGE, re.MULTILINE)
    assert "Without\n`--epsilon` its bounds are gspo's 3e-4 and 4e-4" in PAGE
    assert config(*args, *SEQUENCE, "--epsilon", "1e-3").bounds() == (1e-3, 1e-3)
    assert config(*args, *SEQUENCE, "--epsilon", "1e-3", "--epsilon_high", "2e-3").bounds() == (1e-3, 2e-3)


@pytest.mark.parametrize("kind", sorted(VARIANTS.keys() - {"grpo", "gspo", "luspo"}))
def test_a_ratio_of_sequences_is_refused_where_there_is_none(kind: str) -> None:
    with pytest.raises(UserError, match="no such loss"):
        config("--loss_type", kind, *SEQUENCE)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--loss_type", "gpro"], "--loss_type"), (["--ref_model_sync_steps", "8"], "belongs to --sync_ref_model"),
        (["--sync_ref_model"], "needs kl"), (["--vllm_importance_sampling_cap", "3"], "--vllm_importance_sampling_cap"),
        (["--scale_rewards", "batch"], "--scale_rewards"),
        (["--loss_type", "dapo", "--importance_sampling_level", "sequence"], "no such loss"),
        (["--vllm_importance_sampling_mode", "token_mask"], "belongs to"),
    ],
)  # fmt: skip
def test_what_would_do_nothing_is_refused(args: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        config(*args)
