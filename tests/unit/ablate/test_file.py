"""An ablation's file: what it means, and complaints with file and line."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from ablate_world import RECIPE

from shoestring import stages
from shoestring.ablate import file
from shoestring.records import UserError

ROOT = Path(__file__).parents[3]
HEAD = 'name = "ab"\nbudget = "1 USD"\nrecipe = "recipe.toml"\nseeds = [0]\n'


def load(tmp_path: Path, text: str) -> file.Ablation:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "ab.toml").write_text(text)
    return file.load(tmp_path / "ab.toml", stages.configs())


def test_changes_kept_stages_bases_and_families(tmp_path: Path) -> None:
    text = HEAD + (
        'evaluate = ["bundled:gcd"]\n[[arm]]\nname = "a"\n[[arm]]\nname = "b"\nbase = "other/base"\nstages = ["sft", "last"]\n'
        "[arm.set]\nsft.epochs = 4\n\"sft.lr\" = 1e-5\n"
    )
    made = load(tmp_path, text)
    a, b = (made.recipe(arm, seed=3) for arm in made.arms)
    assert [t.name for t in a.stages] == ["first", "sft", "grpo", "last"] and [t.name for t in b.stages] == ["sft", "last"]
    assert (b.stages[0].config.epochs, b.stages[0].config.lr, b.base, b.seed) == (4.0, 1e-5, "other/base", 3)
    assert a.stages[0].config.untrained == a.stages[3].config.untrained == ["bundled:gcd"]
    assert (a.name, a.hash == made.recipe(made.arms[0], seed=3).hash) == ("ab-a", True)


def test_an_inline_recipe_is_read_as_a_file_is(tmp_path: Path) -> None:
    inline = RECIPE.replace("[[stage]]", "[[recipe.stage]]").replace('name = "r"', "").replace('budget = "1 USD"', "")
    text = 'name = "ab"\nbudget = "1 USD"\n[[arm]]\nname = "a"\n[recipe]' + inline
    made, other = load(tmp_path, text), load(tmp_path, HEAD + '[[arm]]\nname = "a"\n')
    assert made.recipe(made.arms[0]).hash == other.recipe(other.arms[0]).hash
    with pytest.raises(UserError, match=r'ab\.toml:16: unknown key "lrr" in stage "sft"; did you mean "lr"'):
        load(tmp_path, text.replace('use = "sft"', 'use = "sft"\nlrr = 3'))


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ('set = { "sft.epoch" = 2 }', r'ab\.toml:7: unknown key "epoch" in stage "sft"; did you mean "epochs"\?'),
        ('[arm.set]\n"sft.lr" = "fast"', r'ab\.toml:8: lr in stage "sft" must be a number'),
        ('[arm.set]\nsft.epochs = -1', r"ab\.toml:8: .*epochs = -1"),
        ('set = { "stf.lr" = 2 }', r'ab\.toml:7: unknown stage "stf"; did you mean "sft"'),
        ("set = 3", r"ab\.toml:7: set is a table"),
        ('stages = ["sft", "lst"]', r'ab\.toml:5: arm "a": the recipe has no stage "lst"; did you mean "last"'),
        ('stages = ["sft"]', r'ab\.toml:5: arm "a" has no evaluate stage'),
        ('recipe = "gone.toml"', r"ab\.toml:7: recipe 'gone.toml': cannot be read beside this file"),
        ('usd = "much"', r"ab\.toml:7: "),
        ("steps = 3", r'ab\.toml:7: unknown key "steps"'),
    ],
)  # fmt: skip
def test_a_bad_arm_is_refused_with_file_and_line(tmp_path: Path, arm: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as e:
        load(tmp_path, HEAD + f'[[arm]]\nname = "a"\n{arm}\n')
    assert "\n" not in str(e.value) and "--set" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD.replace("seeds = [0]", "seeds = [0, 0]"), "ab.toml:4: seeds names one twice"),
        (HEAD + 'shared = ["frist"]\n', 'no stage "frist"; did you mean "first"'),
        (HEAD + 'shared = ["sft"]\n', "comes after stages of its own"),
        (HEAD.replace("budget", "bugdet"), 'ab.toml:2: unknown key "bugdet"; did you mean "budget"'),
        (HEAD.replace('"1 USD"', '"1 EUR"'), "ab.toml:2: "),
        (HEAD + 'shared = ["first"]\n[[arm]]\nname = "b"\nset = {"first.max_new" = 3}\n', 'its own keys in "first"'),
        (HEAD + 'shared = ["first"]\n[[arm]]\nname = "b"\nbase = "x/y"\n', "another base"),
        (HEAD + '[[arm]]\nname = "a"\n', 'two arms are called "a"'),
        (HEAD + '[[arm]]\nname = "shared"\n', "an arm's name is made of"),
        ("name = \n", "ab.toml:1:"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as e:
        load(tmp_path, text + '[[arm]]\nname = "a"\n')
    assert said in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "recipes" / "ablations").glob("*.toml")))
def test_shipped_ablations_are_sound(name: str) -> None:
    made = file.load(ROOT / "recipes" / "ablations" / f"{name}.toml", stages.configs())
    assert len(made.seeds) == 3 and bool(made.evaluate) == (name not in ("rl-proof", "ppo"))
    recipes = {a.name: made.recipe(a) for a in made.arms}
    if name == "rl-proof":
        by_use = {n: {s.use for s in r.stages} for n, r in recipes.items()}
        assert "sft" not in by_use["rl-alone"] and "grpo" not in by_use["cold-start"] and {"sft", "grpo"} <= by_use["cold-start-rl"]
        asked = {s.config.ask for s in recipes["rl-alone"].stages if s.name in ("rl", "score")}
        assert len(asked) == 1, "scored as it was trained"
    elif name == "ppo":
        both = {n: next(t.config for t in r.stages if t.use == "grpo") for n, r in recipes.items()}
        assert replace(both["ppo"], variant="bnpo") == both["group"], "the critic is all that differs"
    elif name == "s1-mini":
        steps = {n: next(t.config.steps for t in r.stages if t.use == "sft") for n, r in recipes.items()}
        assert set(steps.values()) == {125} and list(recipes) == ["random", "chosen", "longest", "all", "chosen-no-base"]
    else:
        assert len(recipes) == 4 and all(a.usd for a in made.arms)
        assert {a.usd for a in made.arms} == {made.arms[0].usd}, "equal dollars"
