"""Which replies become traces: the form that a trace must have, which right ones are preferred, and what was invalid.

The form follows DeepSeek-R1 (Guo et al. 2025, section 2.3.3), whose 800,000 samples left out "chain-of-thought with mixed
languages, long paragraphs, and code blocks"; its limits are not published, these are ours.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from shoestring.data.language import foreign

LONG_PARAGRAPH = 4000  # characters without an empty line
FOREIGN, FEW = 0.02, 6  # a script that the question does not use: this share of the letters, and at least so many
NGRAM, LOOPS, LOOPED = 8, 4, 0.3  # words in a row, how often they come, and their share of the text
RUN = 40  # times the same character
SCRIPTS = ("LATIN", "CYRILLIC", "CJK", "HIRAGANA", "KATAKANA", "HANGUL", "ARABIC", "HEBREW", "DEVANAGARI", "THAI", "BENGALI")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ue000-\uf8ff\ufffd]")
_HINT = re.compile(
    r"\b(?:the|this) (?:correct |given |provided |known )*answer (?:is|was|has been) (?:given|provided|stated|known|told)"
    r"|\b(?:given|provided|stated|known) (?:correct )?answer\b|\bas (?:the )?hint(?:ed)?\b|\bthe hint\b|\bI was told\b",
    re.IGNORECASE,
)


@lru_cache(maxsize=8192)
def _script(letter: str) -> str:
    """The writing system of a letter, "" for those of all languages (Greek: mathematics) and unknown ones."""
    name = unicodedata.name(letter, "")
    return next((s for s in SCRIPTS if name.startswith((s, "FULLWIDTH " + s, "HALFWIDTH " + s))), "")


def _scripts(text: str) -> Counter[str]:
    if text.isascii():
        return Counter({"LATIN": sum(map(str.isalpha, text))})
    found: Counter[str] = Counter()
    for c, n in Counter(text).items():
        if c.isalpha() and (script := _script(c)):
            found[script] += n
    east = sum(found.pop(s, 0) for s in ("HIRAGANA", "KATAKANA", "CJK"))  # one Japanese sentence has all three
    if east:
        found["CJK"] = east
    return found


def fault(text: str, question: str, code: bool = False) -> str | None:
    """The first thing wrong with the form of a trace (thought and answer), or None. code: the problem asks for a program."""
    if not text.strip():
        return "empty"
    if _UNPRINTABLE.search(text):
        return "unprintable characters"
    if text.count("<think>") != text.count("</think>"):
        return "thinking without an end"
    own, used = _scripts(question), _scripts(text)
    letters = sum(used.values())
    allowed = set(own) or {used.most_common(1)[0][0] if used else ""}
    if any(n >= FEW and n > FOREIGN * letters for s, n in used.items() if s not in allowed):
        return "mixed languages"
    if not code and "```" in text:
        return "code block"
    if _loops(text):
        return "garbled repeats"
    if not code and foreign(text) and not foreign(question):  # in the question's letters and another language's words
        return "mixed languages"
    if any(len(p) > LONG_PARAGRAPH for p in re.split(r"\n\s*\n", text)):
        return "long paragraph"
    return None


def _loops(text: str) -> bool:
    lines = Counter(s for line in text.splitlines() if any(map(str.isalpha, s := line.strip())))
    if lines and (most := lines.most_common(1)[0][1]) >= LOOPS and 2 * most > lines.total():
        return True
    if re.search(rf"(\S)\1{{{RUN - 1}}}", text):
        return True
    words = text.split()
    if len(words) < NGRAM * LOOPS:
        return len(text) > 400 and len(set(text)) < 8
    grams = (tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1))
    counts = Counter(g for g in grams if 2 * sum(any(c.isalpha() for c in w) for w in g) > NGRAM)  # a grid of digits is no loop
    return sum(n for n in counts.values() if n >= LOOPS) > LOOPED * len(words)


def tells_the_hint(text: str) -> bool:
    """Whether a rationale speaks of the answer that it was given."""
    return _HINT.search(text) is not None


def chosen(rows: Sequence[dict[str, Any]], keep: int, prefer: str) -> list[dict[str, Any]]:
    """At most `keep` rows with different texts: the shortest, the longest, or the shortest and then, one by one, what is
    least like those that are chosen (Jaccard's distance of three words in a row)."""
    order = sorted(rows, key=lambda r: (len(r["tokens"]), r["text"]), reverse=prefer == "long")
    first: dict[str, dict[str, Any]] = {}
    for r in order:
        first.setdefault(r["text"].strip(), r)
    different = list(first.values())
    if prefer != "diverse" or len(different) <= keep or keep < 2:
        return different[:keep]
    grams = [_grams(r["text"]) for r in different]
    picked = [0]
    while len(picked) < keep:
        rest = [i for i in range(len(different)) if i not in picked]
        picked.append(max(rest, key=lambda i: (min(_apart(grams[i], grams[j]) for j in picked), -i)))
    return [different[i] for i in picked]


def _grams(text: str) -> frozenset[tuple[str, ...]]:
    words = text.lower().split()
    return frozenset(tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2)))


def _apart(a: frozenset[Any], b: frozenset[Any]) -> float:
    return 1.0 - len(a & b) / len(a | b)


def invalid(attempts: Iterable[dict[str, Any]], kept_right: Sequence[bool]) -> dict[str, Any]:
    """Shares of invalid traces, measured. A trace is invalid where the grader does not find it right.

    before: of all replies. after_form: of those whose form is right and that came to their end, which needs no gold answer.
    kept: of what was kept, graded once more as it is written for the student. faults: why the form was wrong, by count.
    """
    rows = list(attempts)
    formed = [r for r in rows if not r["fault"]]

    def share(part: Sequence[dict[str, Any]]) -> float | None:
        return round(sum(r["score"] != 1.0 for r in part) / len(part), 4) if part else None

    return {
        "replies": len(rows), "before": share(rows), "formed": len(formed), "after_form": share(formed),
        "kept": round(1 - sum(kept_right) / len(kept_right), 4) if kept_right else None,
        "faults": dict(Counter(r["fault"] for r in rows if r["fault"]).most_common()), "basis": "measured",
    }  # fmt: skip


KEPT = {  # a fault's name → the step of the funnel that it leaves at
    "cut off": "comes to its end", "empty": "says something", "mixed languages": "one language",
    "garbled repeats": "no garbled repeats", "unprintable characters": "printable", "thinking without an end": "thinking ends",
    "code block": "no code block", "long paragraph": "no long paragraph",
}  # fmt: skip


def funnel(
    attempts: Iterable[dict[str, Any]], kept: int, keep: int, prefer: str, form: bool = True
) -> list[dict[str, Any]]:  # fmt: skip
    """Where the answers went: those that came to no end, that the grader does not find right, each fault of form (where it is
    a filter), and what was one too many. Rows as curate's funnel has them: step, before, after, why."""
    rows = [r for r in attempts if not r.get("unanswered")]
    out: list[dict[str, Any]] = [{"step": "answers", "before": len(rows), "after": len(rows), "why": "sampled, all problems"}]

    def step(name: str, left: list[dict[str, Any]], why: str) -> list[dict[str, Any]]:
        out.append({"step": name, "before": out[-1]["after"], "after": len(left), "why": why})
        return left

    rows = step(KEPT["cut off"], [r for r in rows if r["fault"] != "cut off"], "cut off at max_new: no end")
    rows = step("right", [r for r in rows if r["score"] == 1.0], "the problem's grader does not find the others right")
    found = Counter(r["fault"] for r in rows if r["fault"])
    for fault in [f for f in KEPT if form and f != "cut off"]:
        rows = step(KEPT[fault], [r for r in rows if r["fault"] != fault], f"{fault}: {found[fault]}")
    out.append({"step": "kept", "before": len(rows), "after": kept, "why": f"at most {keep} a problem, {prefer} first"})
    return out
