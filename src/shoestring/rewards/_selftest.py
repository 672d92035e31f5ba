"""Before training: does a reward pay right answers, and only those? A reward that pays garbage is refused.

A model under reinforcement learns whatever is paid. So a few problems are answered here in known ways: right in every
form that graders read, and wrong in the ways that graders have paid for by mistake (nothing at all, another problem's
answer, the right answer only inside thinking that never ended, every option at once, an empty box).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from shoestring import answers, rewards
from shoestring.records import Problem, UserError
from shoestring.rewards._verdict import Verdict

LOOKED_AT = 6  # problems a grader


@dataclass(frozen=True)
class Finding:
    """One answer and what it was paid."""

    problem: Problem
    text: str
    right: bool
    verdict: Verdict


def good_texts(problem: Problem, reward: rewards.Reward) -> list[str]:
    """Right answers: the worked solution, and the gold in every form."""
    own = getattr(reward, "examples", None)
    if own is not None:
        return own(problem)[0]
    gold = problem.answer
    forms = [f"Answer: {gold}", f"so it is \\boxed{{{gold}}}", f"<answer>{gold}</answer>"]
    return [*forms, f"<think>let me see</think>\nAnswer: {gold}", *([problem.solution] if problem.solution else [])]


def bad_texts(problem: Problem, reward: rewards.Reward, others: Sequence[str]) -> list[str]:
    """Wrong answers. others: golds of other problems; those that say the same as this gold are left out."""
    own = getattr(reward, "examples", None)
    if own is not None:
        return own(problem)[1]
    gold = problem.answer
    wrong = [o for o in others if answers.normalise(o) != answers.normalise(gold)]
    texts = ["", " \n", "Answer:", "\\boxed{}", "<answer></answer>", "Answer: I do not know", "Answer: ?", "x" * 50]
    texts += [f"<think>Answer: {gold}", f"Answer: {gold}\n<think>hm</think>\nI cannot say."]
    texts += [form for w in wrong[:3] for form in (f"Answer: {w}", f"\\boxed{{{gold}}} no, \\boxed{{{w}}}")]
    return texts + ([f"Answer: {' or '.join([gold, *wrong[:3]])}"] if wrong and len(gold) > 1 else [])


def examine(reward: rewards.Reward, problems: Sequence[Problem], grader: rewards.Reward | None = None) -> list[Finding]:
    """Every known answer to the problems and what `reward` pays for it. grader: whose `examples` say what is right, where
    that is not `reward` itself (a mixture, a user's function)."""
    golds = [p.answer for p in problems]
    out: list[Finding] = []
    for at, p in enumerate(problems):
        others = golds[:at] + golds[at + 1 :] + ["-987654321", "C" if answers.normalise(p.answer).strip("()") != "c" else "D"]
        marked = grader or reward
        texts = [(t, True) for t in good_texts(p, marked)] + [(t, False) for t in bad_texts(p, marked, others)]
        verdicts = rewards.score(reward, [t for t, _ in texts], [p] * len(texts))
        out += [Finding(p, t, right, v) for (t, right), v in zip(texts, verdicts, strict=True)]
    return out


def complaint(findings: Sequence[Finding]) -> str:
    """Why a reward must not be trained on; "" if nothing is wrong.

    Of each problem: the best right answer must be paid more than any wrong one, and if it is paid more than nothing, at
    least twice as much. A right answer that is silent everywhere is a reward that says nothing.
    """
    for problem in dict.fromkeys(f.problem.id for f in findings):
        own = [f for f in findings if f.problem.id == problem]
        good = [f.verdict.score for f in own if f.right and f.verdict.score is not None]
        bad = [(f.verdict.score, f.text) for f in own if not f.right and f.verdict.score is not None]
        if any(f.right for f in own) and not good:
            return f"it has no opinion on any right answer to {own[0].problem.prompt[:60]!r}"
        if not bad:
            continue
        worst, text = max(bad)
        if not good:  # no right answer is known: at least nothing wrong may be paid
            if worst > 0:
                return f"it pays {worst:g} for the wrong answer {text[:60]!r} to {own[0].problem.prompt[:60]!r}"
            continue
        best = max(good)
        if worst >= best or (best > 0 and worst > best / 2):
            return (
                f"it pays {worst:g} for the wrong answer {text[:60]!r} and at most {best:g} for a right one "
                f"to {own[0].problem.prompt[:60]!r}"
            )
    return ""


def refuse(problems: Sequence[Problem], reward: rewards.Reward | None = None, name: str = "") -> dict[str, int]:
    """Examine what is about to be trained on: each problem's own grader, or `reward` (a mixture, a user's function).

    A few problems a grader are drawn, always the same ones. Returns how many known answers each grader was given.
    Raises UserError naming the reward, the answer and what it was paid.
    """
    by: dict[str, list[Problem]] = {}
    for p in problems:
        by.setdefault(p.grader, []).append(p)
    counts: dict[str, int] = {}
    for grader, ps in sorted(by.items()):
        own = rewards.get(grader)
        drawn = random.Random(0).sample(ps, min(LOOKED_AT, len(ps)))
        findings = examine(reward or own, drawn, own)
        said = name or grader
        if why := complaint(findings):
            raise UserError(f"reward {said!r} fails its self-test and is not trained on: {why}")
        counts[grader] = len(findings)
    return counts
