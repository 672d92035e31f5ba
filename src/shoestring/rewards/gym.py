"""Reasoning Gym's own verifier for the family that a problem came from: 1 if it accepts the stated answer, else 0.

For families with many right answers (a path, a filled grid), where comparing with the gold refuses most of them. Needs
the extra `gym`. The problem's domain is the family. Grader arguments: `metadata`, the entry's metadata (an object), which
most such verifiers read; `family`, where it is not the domain; `partial = true` pays the verifier's own partial credit
(it gives 0.01 to 0.5 for a readable or nearly right answer), which is not paid otherwise.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from shoestring import answers
from shoestring.records import Problem, UserError
from shoestring.rewards import _pool
from shoestring.rewards._verdict import Verdict, of_score

LONGEST = 20_000


def _stated(text: str) -> str | None:
    """The content of the last <answer> tag as it stands (grids keep their lines), else the marked answer."""
    close = text.rfind("</think>")
    if close < 0 and "<think>" in text:
        return None
    body = text[close + len("</think>") :] if close >= 0 else text
    end = body.rfind("</answer>")
    start = body.rfind("<answer>", 0, end) if end >= 0 else -1
    return body[start + len("<answer>") : end].strip() if start >= 0 else answers.extract(text)


@lru_cache(1024)
def _refusal(family: str) -> str:
    if importlib.util.find_spec("reasoning_gym") is None:
        raise UserError("the grader 'gym' needs Reasoning Gym: pip install 'shoestring[gym]', or use 'exact'")
    (found,) = _pool.shared("gym").run([{"family": family}])
    return str(found.get("refused", ""))


def _task(problem: Problem) -> dict[str, Any]:
    """What the verifier needs of a problem. Raises ValueError if it cannot grade it."""
    arguments = problem.grader_args
    metadata, partial = arguments.get("metadata", {}), arguments.get("partial", False)
    if not isinstance(metadata, Mapping):
        raise ValueError(f"grader argument metadata must be an object, not {type(metadata).__name__}")
    if not isinstance(partial, bool):
        raise ValueError(f"grader argument partial = {partial!r} must be true or false")
    if not problem.answer.strip():
        raise ValueError("the gold answer is empty")
    family = str(arguments.get("family", problem.domain)).removeprefix("gym/")
    if refused := _refusal(family):
        raise ValueError(refused)
    entry = {"question": problem.prompt, "answer": problem.answer, "metadata": dict(metadata)}
    return {"family": family, "entry": entry}


def check(problem: Problem) -> None:
    """Raises ValueError if the family is unknown or its verifier does not accept the gold itself."""
    task = _task(problem)
    (said,) = _pool.shared("gym").run([{**task, "answer": problem.answer}])
    if said.get("score", 0.0) < 1.0:
        why = "not accepted" if "score" in said else "not readable (does it need grader argument metadata?)"
        raise ValueError(f"the gold answer {problem.answer[:60]!r} is {why} by Reasoning Gym's {task['family']}")


def grade(text: str, problem: Problem) -> float:
    """1.0 or 0.0, or the verifier's own score with `partial`. Raises ValueError if the family is unknown."""
    return score_many([text], [problem])[0].score or 0.0


def score_many(texts: Sequence[str], problems: Sequence[Problem], **_: Any) -> list[Verdict]:
    """One verdict a text. Raises as `grade` does."""
    out: list[Verdict] = [Verdict(0.0, "no answer")] * len(texts)
    tasks, at = [], []
    for i, (text, problem) in enumerate(zip(texts, problems, strict=True)):
        task, stated = _task(problem), _stated(text)
        if stated is not None and len(stated) > LONGEST:
            out[i] = Verdict(0.0, "hostile", f"{len(stated)} characters")
        elif stated is not None:
            tasks.append({**task, "answer": stated})
            at.append(i)
    for i, said in zip(at, _pool.shared("gym").run(tasks) if tasks else [], strict=True):
        if "score" in said:
            score = min(1.0, max(0.0, said["score"]))
            out[i] = of_score(score if problems[i].grader_args.get("partial") else float(score >= 1.0))
        else:
            out[i] = Verdict(0.0, said.get("stopped", "unreadable"))
    return out
