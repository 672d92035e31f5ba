"""The recipe parser: positions, nearest words, overrides, the resolved recipe, and never anything but UserError."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.recipe import MachineSpec, Recipe, load, loads, parse_money
from shoestring.records import UserError


@dataclass(frozen=True)
class Sft:
    lr: float = 1e-4
    epochs: int = 2
    pack: bool = True
    families: tuple[str, ...] = ()
    note: str | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, not {self.epochs}")


@dataclass(frozen=True)
class Grpo:
    steps: int = 20
    group: int = 8
    loss: Literal["grpo", "dapo"] = "grpo"
    limit: int | None = None
    names: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Needs:
    path: str


CONFIGS: dict[str, type] = {"sft": Sft, "grpo": Grpo, "needs": Needs}
GOOD = """\
# the first dollar
name = "quick"
budget = "0.05 USD"
machine = "this"
base = "smollm2-135m-instruct"

[[stage]]
use = "sft"
lr = 2e-4
families = [
  "sums", # [ a bracket in a comment
  "lcm",
]

[[stage]]
use = "grpo"
steps = 50
options = { a = 1, b = [1, 2] }
"""


def complaint(text: str, *overrides: str, **rest: Any) -> str:
    with pytest.raises(UserError) as caught:
        loads(text, CONFIGS, overrides, origin="recipes/x.toml", **rest)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_good_recipe() -> None:
    r = loads(GOOD, CONFIGS)
    assert (r.name, r.budget, r.machine, r.rate, r.seed) == ("quick", Decimal("0.05"), MachineSpec(), None, 0)
    assert r.stages[0].config == Sft(lr=2e-4, families=("sums", "lcm"))
    assert r.stages[1].config == Grpo(steps=50, options={"a": 1, "b": [1, 2]})
    assert [s.line for s in r.stages] == [7, 15]


def test_unknown_key_names_file_line_and_nearest() -> None:
    message = complaint(GOOD.replace("steps = 50", "stepz = 50"))
    assert message == 'recipes/x.toml:17: unknown key "stepz" in stage "grpo"; did you mean "steps"?'


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('name = "quick"', 'nam = "quick"', r':2: unknown key "nam"; did you mean "name"\?'),
        ('budget = "0.05 USD"\n', "", r'x\.toml: missing key "budget"'),
        ("0.05 USD", "abc", r":3: budget 'abc' is not an amount such as \"0.05 USD\""),
        ("0.05 USD", "0 USD", r":3: budget '0 USD' must be above zero"),
        ("0.05 USD", "-1 USD", r":3: budget '-1 USD' must be above zero"),
        ("0.05 USD", "5 EUR", r":3: .*currency 'EUR' is not known"),
        ("0.05 USD", "5", r":3: .*has no currency"),
        ('"0.05 USD"', "0.05", r":3: budget must be text with a currency"),
        ('"this"', '"that"', r':4: machine must be "this" or a table'),
        ('"this"', '{ provider = "aws" }', r':4: machine lacks "sku"'),
        ('"this"', '{ provider = "aws", sku = "p5", zone = "a" }', r':4: unknown key "zone" in machine'),
        ('"this"', '{ provider = "aws", sku = "p5", market = "spots" }', r':4: unknown market .* "spot"\?'),
        ('"this"', '{ provider = "aws", sku = "p5", count = 0 }', r":4: machine.count must be a whole number"),
        ('"this"', '{ provider = "aws", sku = "p5" }\nrate = "1 USD/hour"', r":5: rate prices"),
        ('use = "sft"', 'use = "stf"', r':8: unknown stage "stf"; did you mean "sft"\? \(stages: grpo, needs, sft\)'),
        ('use = "sft"', 'use = "zzzzzz"', r':8: unknown stage "zzzzzz"; stages: grpo, needs, sft'),
        ('use = "sft"', "lr = 1", r"not TOML|lacks"),
        ('use = "grpo"\nsteps = 50', 'use = "sft"\nepochs = 1', r':15: the stage name "sft" is already used at line 7'),
        ('use = "grpo"', 'use = "grpo"\nname = "a.b"', r":17: stage name 'a.b' must be made of"),
        ("lr = 2e-4", "lr = true", r':9: lr in stage "sft" must be a number, not True'),
        ("lr = 2e-4", "lr = nan", r':9: lr in stage "sft" must be a number'),
        ("lr = 2e-4", "epochs = 1.5", r":9: epochs .* must be a whole number, not 1.5"),
        ("lr = 2e-4", "epochs = 0", r':9: stage "sft": epochs must be at least 1, not 0'),
        ('"lcm",', "3,", r":10: families .* must be text, not 3"),
        ("steps = 50", 'loss = "gpro"', r':17: loss .* must be one of grpo, dapo, not \'gpro\'; did you mean "grpo"'),
        ("steps = 50", "limit = 0.5", r":17: limit .* whole number"),
        ("{ a = 1, b = [1, 2] }", "3", r":18: options .* must be a table, not 3"),
        ("steps = 50", "steps = ", r":17:\d+: not TOML"),
        ("steps = 50", "steps = 1\nsteps = 2", r"not TOML: .*steps"),
        ('use = "grpo"', 'use = "needs"', r':17: unknown key "steps" in stage "needs"'),
    ],
)
def test_complaints(old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert re.search(expected, complaint(GOOD.replace(old, new, 1)))


def test_missing_stage_key_and_no_stages() -> None:
    head = GOOD[: GOOD.index("[[stage]]")]
    assert 'missing key "path" in stage "needs"' in complaint(head + '[[stage]]\nuse="needs"\n')
    assert "no stages" in complaint(head)
    assert ":7: this stage lacks" in complaint(head + "[[stage]]\n")
    assert "[[stage]]" in complaint(head + "[stage]\nuse='sft'\n")


def test_second_stage_may_be_named() -> None:
    r = loads(GOOD + '\n[[stage]]\nuse = "sft"\nname = "sft-2"\n', CONFIGS, ["sft-2.epochs=3"])
    assert [s.name for s in r.stages] == ["sft", "grpo", "sft-2"]
    assert r.stages[2].config.epochs == 3 and r.stages[0].config.epochs == 2


def test_overrides() -> None:
    r = loads(GOOD, CONFIGS, ["grpo.steps=7", "budget=0.02 USD", "seed=3", "sft.note=bare word", 'grpo.names=["a"]'])
    assert r.stages[1].config.steps == 7 and r.stages[1].config.names == ["a"]
    assert (r.budget, r.seed, r.stages[0].config.note) == (Decimal("0.02"), 3, "bare word")
    assert loads(GOOD, CONFIGS, ["seed=3"], seed=9).seed == 9


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("grpo.stepz=1", '--set grpo.stepz=1: unknown key "stepz" in stage "grpo"; did you mean "steps"?'),
        ("gppo.steps=1", '--set gppo.steps=1: unknown stage "gppo"; did you mean "grpo"?'),
        ("budgt=1", '--set budgt=1: unknown key "budgt"; did you mean "budget"?'),
        ("budget=abc", "--set budget=abc: budget 'abc' is not an amount"),
        ("grpo.steps=many", "--set grpo.steps=many: steps in stage \"grpo\" must be a whole number, not 'many'"),
        ("steps", "write it as stage.key=value"),
        ("grpo.use=sft", '--set grpo.use=sft: unknown key "use"'),
        ("seed=-1", "--set seed=-1: seed must be"),
    ],
)
def test_bad_overrides(override: str, expected: str) -> None:
    assert expected in complaint(GOOD, override)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    with pytest.raises(UserError, match=r"r\.toml: cannot read the recipe: no such file"):
        load(path, CONFIGS)
    path.write_bytes(b'name = "a"\nbase = "\xff"\n')
    with pytest.raises(UserError, match=r"r\.toml:2: not UTF-8 \(byte 0xff\)"):
        load(path, CONFIGS)
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load(path, CONFIGS) == loads(GOOD, CONFIGS)
    with pytest.raises(UserError, match="cannot read the recipe"):
        load(tmp_path, CONFIGS)


def test_hash_ignores_name_and_budget_only() -> None:
    one = loads(GOOD, CONFIGS)
    assert one.hash == loads(GOOD, CONFIGS, ["name=other", "budget=9 USD"]).hash
    assert one.hash == loads("\n\n# moved\n" + GOOD, CONFIGS).hash
    changed = [["seed=1"], ["grpo.steps=51"], ["base=x"], ["rate=1 USD/hour"], ['machine={provider="a",sku="b"}']]
    assert len({one.hash, *(loads(GOOD, CONFIGS, c).hash for c in changed)}) == 1 + len(changed)


def test_a_users_code_belongs_to_the_hash(tmp_path: Path) -> None:
    """file.py:function in a key or a value of a stage; read once, so that an edit while the run goes on changes nothing."""
    file = tmp_path / "mine.py"
    text = GOOD.partition("[[stage]]")[0] + f'[[stage]]\nuse = "grpo"\noptions = {{ "{file}:brief" = 0.5, parts = ["{file}:brief", "numpy:sum"] }}\n'
    assert loads(text, CONFIGS).code == (), "whoever reads the stage says that it is not there"
    file.write_text("def brief(completions, **rest): return [1.0] * len(completions)\n")
    one = loads(text, CONFIGS)
    assert [name for name, _ in one.code] == [str(file)] and loads(one.to_toml(), CONFIGS) == one
    before = one.hash
    file.write_text("def brief(completions, **rest): return [0.0] * len(completions)\n")
    assert one.hash == before != loads(text, CONFIGS).hash
    assert loads(GOOD, CONFIGS).code == ()


def test_hash_of_a_default_equals_the_written_default() -> None:
    assert loads(GOOD, CONFIGS).hash == loads(GOOD.replace("steps = 50", "steps = 50\ngroup = 8"), CONFIGS).hash


def test_money() -> None:
    assert parse_money("0.10 USD/hour", "rate", "/hour") == Decimal("0.10")
    assert parse_money(" .5usd ") == Decimal("0.5")
    for bad in ("1e3 USD", "nan USD", "1,5 USD", "", "USD", "٣ USD\n;", None, True):
        with pytest.raises(ValueError, match="budget"):
            parse_money(bad)


# names and text of any kind survive being written and read again
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
SLUG = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True)
MONEY = st.decimals(min_value=Decimal("0.000001"), max_value=10**9, places=6).map(lambda d: f"{d:f} USD")
SCALAR = st.one_of(st.booleans(), st.integers(-(2**53), 2**53), st.floats(-1e9, 1e9), TEXT)
OPTIONS = st.dictionaries(TEXT, st.recursive(SCALAR, lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXT, x, max_size=2),
                                             max_leaves=5), max_size=3)  # fmt: skip


@given(
    st.builds(Sft, st.floats(0, 1e200), st.integers(1, 9), st.booleans(), st.lists(TEXT, max_size=3).map(tuple), st.none() | TEXT),
    st.builds(Grpo, st.integers(), st.integers(), st.sampled_from(["grpo", "dapo"]), st.none() | st.integers(),
              st.lists(TEXT, max_size=3), OPTIONS),
    SLUG, MONEY, TEXT.filter(str.strip), st.integers(0, 2**62), st.none() | MONEY,
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_resolved_recipe_loads_back_equal(
    sft: Sft, grpo: Grpo, name: str, money: str, base: str, seed: int, rate: str | None
) -> None:
    from shoestring.recipe import StageTable

    machine = MachineSpec() if rate else MachineSpec("cloud", "aws", "p5", 2, "us-east-1/az4", "spot")
    made = Recipe(name, parse_money(money), machine, parse_money(rate) if rate else None, base, seed,
                  (StageTable("sft", "sft", sft), StageTable("grpo", "g-1", grpo)))  # fmt: skip
    again = loads(made.to_toml(), CONFIGS)
    assert again == made
    assert again.hash == made.hash
    assert again.to_toml() == made.to_toml()


def test_resolved_recipe_writes_every_default() -> None:
    text = loads(GOOD, CONFIGS).to_toml()
    for key in ("seed = 0", "epochs = 2", "pack = true", "group = 8", 'loss = "grpo"', "names = []"):
        assert key in text
    assert "limit" not in text  # None: TOML has no null


def read(text: str, *overrides: str) -> None:
    try:
        loads(text, CONFIGS, overrides)
    except UserError as e:
        assert "\n" not in str(e)


@given(st.text(max_size=60), st.integers(0, len(GOOD)), st.integers(0, 12))
@settings(max_examples=300, deadline=None)
def test_garbage_gives_only_user_errors(piece: str, at: int, cut: int) -> None:
    read(piece)
    read(GOOD[:at] + piece + GOOD[at + cut :])


WORDS = ["name", "stage", "[[", "]]", "[", "]", "{", "}", "=", '"', "'", '"""', "'''", "\n", ".", ",", "#", "use", "sft",
         "1", "1e9", "0x", "2020-01-01", "true", "inf", "machine", "budget", " ", "\\", "\t"]  # fmt: skip


@given(st.lists(st.sampled_from(WORDS), max_size=25).map("".join))
@settings(max_examples=300, deadline=None)
def test_token_garbage_gives_only_user_errors(text: str) -> None:
    read(text)
    read(GOOD + text)
    read(GOOD, text, f"grpo.options={text}", f"sft.lr={text}")


def test_deep_and_long_garbage_is_quick() -> None:
    for text in (
        "a = " + "[" * 5000,
        "#" * 20000,
        "a." * 3000 + "b = 1",
        "name = " + "9" * 6000,
        "\x00",
        "[[stage]]\n" * 300,
    ):
        read(text)
        read(GOOD + "\n" + text)


def test_never_imports_torch_or_numpy() -> None:
    import subprocess
    import sys

    code = ("import sys, shoestring.recipe, shoestring.cost.bill, shoestring.cost.budget, shoestring.cost.prices as p,"
            "shoestring.estimate.headers, shoestring.estimate.memory, shoestring.estimate.machine\n"
            "list(p.PriceBook.default())\n"
            "assert not {'torch', 'numpy', 'transformers', 'gguf'} & set(sys.modules)")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)
