"""order = "given": the first epoch is the file's own order, later ones are shuffled, and every epoch has every row."""

from __future__ import annotations

from shoestring.stages import sft
from shoestring.stages.rows import batches_of


def test_given_order() -> None:
    config = sft.Config(epochs=2.0, batch=5, order="given")
    lengths = [3 + (7 * i) % 11 for i in range(20)]
    made = batches_of(config, 1, lengths, True)
    flat = [i for step in made for i in step]
    assert flat[:20] == list(range(20)) and flat[20:] != list(range(20)) and sorted(flat[20:]) == list(range(20))
    plain = batches_of(config, 1, lengths)
    assert [i for step in plain for i in step][:20] != list(range(20))
