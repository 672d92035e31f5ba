"""Traces of answers whose thinking was forced: what the machine wrote is marked, so that nobody trains on it as a sample."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from shoestring.generate.engine import Engine
from shoestring.generate.request import Request, Thinking
from shoestring.records import Problem
from shoestring.stages import workbench


def test_forced_tokens_are_marked(tiny_decoder: Any) -> None:
    class Words:
        end, ends = 60, frozenset([60])

        def decode(self, ids: Any) -> str:
            return " ".join(map(str, ids))

    engine = Engine(tiny_decoder())
    problem = Problem("q", "2 + 3", "5")
    plain = Request((4, 5), 9, 1.0, 3)
    forced = replace(plain, thinking=Thinking(4, (50, 51), ((60, 60),), answer=5))
    free, made = workbench.sample(engine, [plain, forced], [problem, problem], Words(), "m")  # pyright: ignore[reportArgumentType]
    assert free.sampled == (True,) * 9 and all(free.logprobs)
    assert made.tokens[:6] == (*free.tokens[:4], 50, 51)
    assert made.sampled == (True,) * 4 + (False,) * 2 + (True,) * 3
    assert [lp == 0.0 for lp in made.logprobs] == [not s for s in made.sampled], "as records.Trace says"
    assert engine.generate([forced])[0].logprobs[4] < 0.0, "the engine itself knows the true value"
