"""Labels as models write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.data import labels

NAMES = ["number theory", "Theory", "Geometry & topology"]


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("Number Theory", "number theory"), ("**Number theory.**", "number theory"), ("Domain: number  theory\nbecause", "number theory"),
        ("The field is: Number theory", "number theory"), ("\n- geometry & topology\n", "geometry and topology"), ("field theory", "field theory"),
        ("“Algebra”", "algebra"), ("I think that this is a hard problem about sums", ""), ("", ""), ("...", ""), ("ＡＬＧＥＢＲＡ", "algebra"),
    ],
)  # fmt: skip
def test_free(said: str, label: str) -> None:
    assert labels.read_label(said) == label


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("Number Theory.", "number theory"), ("theory", "Theory"), ("It is about geometry and topology, I think", "Geometry & topology"),
        ("It belongs to number theory", "number theory"), ("number theory or geometry and topology", ""), ("cooking", ""), ("", ""),
        ("theoryless", ""), ("**Label:** Geometry & Topology", "Geometry & topology"),
    ],
)  # fmt: skip
def test_of_a_list(said: str, label: str) -> None:
    assert labels.read_label(said, NAMES) == label


@given(st.text(max_size=60))
def test_any_text(said: str) -> None:
    label = labels.read_label(said)
    assert label == labels.read_label(label) or not label or len(label.split()) <= labels.LONGEST
    assert labels.read_label(said, NAMES) in {"", *NAMES}


def test_what_is_asked() -> None:
    assert labels.asked("1 {x}").endswith("\n\n1 {x}") and "a, b." in labels.asked("q", ["a", "b"])
