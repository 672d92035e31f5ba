"""A user's own reward: `file.py:function`, with the signature that TRL gives custom rewards.

    def reward(completions, **columns) -> list[float | None]

`completions` are texts, one an answer; `columns` has one list a column, as long: prompts, answer, solution, domain, id,
the keys of grader_args, and what the stage passes (`lengths`). None means no opinion. Scores may be any finite number.
Only whoever starts a run may name such a file, never a problem's row.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shoestring.records import Problem, UserError
from shoestring.rewards._verdict import Verdict, of_score


class UserReward:
    """`function` behind the interface of a reward module."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function

    def check(self, problem: Problem) -> None:
        """The function has no say in which gold can be graded."""

    def grade(self, text: str, problem: Problem) -> float:
        """The score of one text, 0 where the function has no opinion."""
        return self.score_many([text], [problem])[0].score or 0.0

    def score_many(self, texts: Sequence[str], problems: Sequence[Problem], **columns: Any) -> list[Verdict]:
        """One verdict a text. Raises UserError if the function fails, or returns anything but one number or None a text."""
        names = sorted({k for p in problems for k in p.grader_args})
        given: dict[str, Any] = {name: [p.grader_args.get(name) for p in problems] for name in names}
        given |= {"prompts": [p.prompt for p in problems]}
        given |= {key: [getattr(p, key) for p in problems] for key in ("answer", "solution", "domain", "id")}
        try:
            scores = self.function(list(texts), **{**given, **columns})
        except Exception as error:
            place = _line(error)
            raise UserError(f"reward {self.name}: {type(error).__name__}: {error}{place}") from error
        if not isinstance(scores, list | tuple) or len(scores) != len(texts):
            got = f"{len(scores)} values" if isinstance(scores, list | tuple) else type(scores).__name__
            raise UserError(f"reward {self.name}: it must return a list of {len(texts)} scores, one a completion, not {got}")
        return [self._verdict(s) for s in scores]

    def _verdict(self, score: Any) -> Verdict:
        if score is None:
            return Verdict(None, "skipped")
        try:
            value = float(score)
        except (TypeError, ValueError):
            raise UserError(f"reward {self.name}: {score!r} is neither a number nor None") from None
        if not math.isfinite(value):
            raise UserError(f"reward {self.name}: a score is {value}; return None to have no opinion")
        return of_score(value)


def _line(error: BaseException) -> str:
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return f" ({Path(at.tb_frame.f_code.co_filename).name}, line {at.tb_lineno})" if at is not None else ""


def load(spec: str) -> UserReward:
    """The function of "path/file.py:name". Raises UserError if there is no such file or function, or it fails to load."""
    path, colon, name = spec.rpartition(":")
    file = Path(path)
    if not colon or not name.isidentifier() or file.suffix != ".py":
        raise UserError(f"reward {spec!r} must read file.py:function")
    if not file.is_file():
        raise UserError(f"reward {spec!r}: there is no file {path}")
    module_spec = importlib.util.spec_from_file_location(f"_user_reward_{file.stem}_{abs(hash(file.resolve()))}", file)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses and pickling look a module up by its name
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"reward {spec!r}: loading it fails: {type(error).__name__}: {error}{_line(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        found = sorted(k for k, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__)
        raise UserError(f"reward {spec!r}: {file.name} has no function {name!r}; it has {', '.join(found) or 'none'}")
    return UserReward(spec, function)
