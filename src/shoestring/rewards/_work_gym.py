"""In the worker: Reasoning Gym's own verifier of a family (github.com/open-thought/reasoning-gym, Apache-2.0).

Some of its verifiers hand a model's text to an algebra parser; they are limited like every other task here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any


def prepare() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The function that does one task: {"family", "entry", "answer"}; without "answer" only the family is looked up."""
    from reasoning_gym.factory import DATASETS, get_score_answer_fn  # pyright: ignore[reportMissingImports]

    scorer = lru_cache(256)(get_score_answer_fn)

    def work(task: dict[str, Any]) -> dict[str, Any]:
        family = task["family"]
        if family not in DATASETS:
            return {"refused": f"Reasoning Gym has no family {family!r}"}
        if "answer" not in task:
            return {"score": 1.0}
        try:
            verify: Any = scorer(family)
            return {"score": float(verify(answer=task["answer"], entry=task["entry"]))}
        except (MemoryError, RecursionError):
            raise
        except Exception:
            return {"unreadable": True}

    return work
