"""Easy first: the order by pass rate, whatever the order given."""

from __future__ import annotations

import random

from shoestring.data import curriculum
from shoestring.records import Problem


def test_order() -> None:
    problems = [Problem.make(f"q{i}", "1") for i in range(40)]
    rates = {p.id: (i % 5) / 4 for i, p in enumerate(problems) if i % 7}
    lengths = {p.id: i % 3 for i, p in enumerate(problems)}
    made = curriculum.easy_first(problems, rates, lengths)
    assert sorted(p.id for p in made) == sorted(p.id for p in problems)
    keys = [(-rates.get(p.id, 0.5), lengths[p.id], p.id) for p in made]
    assert keys == sorted(keys)
    assert curriculum.easy_first(random.Random(1).sample(problems, 40), rates, lengths) == made
