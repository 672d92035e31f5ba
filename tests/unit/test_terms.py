"""The recipe's keys about money: read, complained about with their line, written back, and what the hash knows of them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from shoestring import recipe, stages
from shoestring.records import UserError
from shoestring.terms import Egress, Storage, Terms

HEAD = 'name = "x"\nbudget = "5 USD"\nbase = "b"\n'
STAGE = '[[stage]]\nuse = "sft"\n'
ALL = """credits = ["10 USD grant", "5 USD"]
window = "22:00-06:00 Europe/Berlin"
storage = { provider = "aws", kind = "ebs_gp3", gb = 20 }
egress = { provider = "aws", gb = 1.5 }
worth = "0.01 USD per point"
"""


def load(keys: str = "", *sets: str) -> recipe.Recipe:
    return recipe.loads(HEAD + keys + STAGE, stages.configs(), sets)


def test_all_of_them_and_back() -> None:
    made = load(ALL)
    t = made.terms
    assert t.credits == ("10 USD grant", "5 USD") and str(t.window) == "22:00-06:00 Europe/Berlin" and t.worth == Decimal("0.01")
    assert t.storage == Storage("aws", "ebs_gp3", 20.0) and t.storage.sku == "storage:aws/ebs_gp3" and t.egress == Egress("aws", 1.5)
    again = recipe.loads(made.to_toml(), stages.configs())
    assert again == made and again.hash == made.hash
    assert load().terms == Terms() and load('credits = "10 USD"\n').terms.credits == ("10 USD",)
    assert load("", 'worth="0.5 USD per point"').terms.worth == Decimal("0.5")


def test_the_hash_knows_what_decides_the_result() -> None:
    """A recipe without the keys keeps the hash that it had before there were any."""
    plain = load()
    assert load('credits = "10 USD"\nwindow = "01:00-05:00"\nreport_to = ["wandb"]\n').hash == plain.hash
    for key in ('worth = "0.01 USD per point"', 'storage = { provider = "aws", kind = "k", gb = 1 }', 'egress = { provider = "aws", gb = 1 }'):
        assert load(key + "\n").hash != plain.hash
    assert load('worth = "0.010 USD per point"\n').hash == load('worth = "0.01 USD per point"\n').hash


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("credits = 10", "credits must be text"), ('credits = "10 EUR"', "'EUR' is not known"), ('credits = "ten USD"', "not an amount"),
        ('credits = []', "credits is empty"), ('worth = "0.01 USD"', "per point"), ('worth = "0 USD per point"', "above zero"),
        ('window = "night"', "hours of a day"), ('window = "22:00-06:00 Mars/Base"', "unknown time zone"),
        ("storage = 5", "storage must be a table"), ('storage = { provider = "aws", kind = "k" }', 'storage lacks "gb"'),
        ('storage = { provider = "aws", kind = "k", gb = 0 }', "GB above zero"), ('storage = { provider = "aws", kind = 3, gb = 1 }', "storage.kind"),
        ('storage = { provider = "aws", kindd = "k", gb = 1 }', 'did you mean "kind"'), ('egress = { provider = "aws", gb = true }', "GB above zero"),
    ],
)  # fmt: skip
def test_complaints_name_the_line(key: str, says: str) -> None:
    with pytest.raises(UserError, match="recipe.toml:4: ") as caught:
        load(key + "\n")
    assert says in str(caught.value) and "\n" not in str(caught.value)
