"""Hard cases with their verdicts, one file a grader: each row says what is tried, and where the case comes from."""

import json
from pathlib import Path

import pytest

from shoestring import rewards
from shoestring.records import Problem

FOLDER = Path(__file__).parent / "fixtures"
GRADERS = sorted(p.stem for p in FOLDER.glob("*.jsonl"))


def cases(grader: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / f"{grader}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("grader", GRADERS)
def test_hard_cases(grader: str) -> None:
    if grader == "math":
        pytest.importorskip("math_verify", reason="needs math-verify: pip install 'shoestring[math]'")
    reward, wrong = rewards.get(grader), []
    for case in cases(grader):
        problem = Problem.make("q", case["gold"], grader=grader, grader_args=case["args"])
        try:
            reward.check(problem)
            got = reward.grade(case["text"], problem)
        except ValueError:
            with pytest.raises(ValueError):
                reward.grade(case["text"], problem)
            got = "refused"
        if got != case["score"]:
            wrong.append(f"{case['note']}: gold {case['gold']!r}, {case['text']!r}: {got}, not {case['score']}")
    assert not wrong, "\n".join(wrong)


def test_both_sides_are_there() -> None:
    """A fixture without refusals, right and wrong answers would prove less than it seems to."""
    assert {"math", "numeric", "exact", "choice", "format"} <= set(GRADERS)
    for grader in GRADERS:
        found = cases(grader)
        assert {c["score"] for c in found} == {"refused", 0, 1}, grader
        assert all(c["source"] and c["note"] for c in found)
    assert len(cases("math")) > 100 and len(cases("numeric")) > 40
