"""Reading answers out of text and comparing them. Standard library only.

Three questions are answered here and nowhere else: what is the final answer in a text (`extract`), are two answers
the same (`equal`), and are two questions the same problem (`operand_key`: 3 + 5 and 5 + 3 are one problem).
A gold answer that cannot be compared raises ValueError: it must never pay a reward.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque

_MAX_NUMBER = 400  # characters; longer digit strings are compared as text
_MAX_EXPONENT = 100

_MINUS = dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d"), "-")
_NUMBER = re.compile(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d+)?(?:\.(\d*))?(?:[eE]([+-]?\d{1,4}))?")
# A number inside running text. A sign belongs to it only if nothing that could be an operand stands before it.
_IN_TEXT = re.compile(
    r"(?:(?<![\w.)\]])[+-])?(?<![\w.])(?<!\d,)(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,4})?(?![A-Za-z_])"
)
_MARKER = re.compile(r"\banswer[ \t]{0,8}\*{0,2}[ \t]{0,8}:", re.IGNORECASE)
_ENUMERATION = re.compile(r"^[ \t]*\d{1,3}[.)][ \t]+", re.MULTILINE)
_WORD = re.compile(r"[^\W_]+", re.UNICODE)
_TAGS = re.compile(r"<\|[a-z_]{1,20}\|>")
_EDGE = " \t\r\n$%*`\"'“”‘’.,;:!?"
_OPEN, _CLOSE = "<think>", "</think>"

# number_sequence: a longer piece of the same sequence is the same problem, so only the beginning counts.
_SEQUENCE_PREFIX = {"number_sequence": 4}


def _joins() -> re.Pattern[str]:
    """Runs of the characters that NFKC would join to the digits beside them: raised and lowered ones, fractions, circled
    numbers."""
    places = (
        (0xAA, 0xBF), (0x2B0, 0x300), (0x1D2C, 0x1DC0), (0x2070, 0x20A0), (0x2150, 0x2190), (0x2460, 0x2500), (0x2776, 0x2794),
        (0x3190, 0x3400), (0x1F100, 0x1F10D),
    )  # fmt: skip
    kinds: dict[str, list[str]] = {"<super>": [], "<sub>": [], "": []}
    for c in (chr(i) for start, end in places for i in range(start, end)):
        tag, form = unicodedata.decomposition(c).partition(" ")[0], unicodedata.normalize("NFKC", c)
        if tag in ("<super>", "<sub>"):
            kinds[tag].append(c)
        elif form != c and any("0" <= d <= "9" for d in form):
            kinds[""].append(c)
    raised, lowered, other = (re.escape("".join(cs)) for cs in kinds.values())
    return re.compile(f"([{raised}]+)|([{lowered}]+)|([{other}])")


_JOINS = _joins()


def _apart(match: re.Match[str]) -> str:
    """10² is 10^2 and not 102, 3½ is 3 1/2 and not 31/2, 101₂ is 101_2."""
    text, (start, end) = match.string, match.span()
    form = unicodedata.normalize("NFKC", match[0]).replace("\u2044", "/")
    before = "^" if match[1] else "_" if match[2] else " " if text[:start][-1:].isalnum() else ""
    return before + form + (" " if text[end : end + 1].isalnum() else "")


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).translate(_MINUS)


def _canonical_number(text: str) -> str | None:
    """The plain decimal form of a number ("+1,200.50" -> "1200.5", "3.5e1" -> "35"), or None if it is not one."""
    if not text or len(text) > _MAX_NUMBER:
        return None
    match = _NUMBER.fullmatch(text)
    if match is None or (match[2] is None and not match[3]) or not text.isascii():
        return None
    sign, whole, fraction = match[1], (match[2] or "").replace(",", ""), match[3] or ""
    exponent = int(match[4] or 0)
    if abs(exponent) > _MAX_EXPONENT:
        return None
    if exponent > 0:
        fraction = fraction.ljust(exponent, "0")
        whole, fraction = whole + fraction[:exponent], fraction[exponent:]
    elif exponent < 0:
        whole = whole.rjust(-exponent, "0")
        whole, fraction = whole[:exponent], whole[exponent:] + fraction
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    body = f"{whole}.{fraction}" if fraction else whole
    return "-" + body if sign == "-" and body != "0" else body


def normalise(text: str) -> str:
    """One form for equal answers: numbers in plain decimal form, other text case-folded with single spaces.

    Surrounding white space, $, %, quotes, asterisks and closing punctuation are dropped, "1,000.0" becomes "1000",
    a unicode minus becomes "-", 10² becomes "10^2" and 3½ "3 1/2". "" comes back where nothing is left. Normalising twice
    changes nothing.
    """
    if not text.isascii():
        text = _JOINS.sub(_apart, text)
    plain = " ".join(_plain(text.replace("\\$", "$").replace("\\%", "%").replace("{,}", ",")).casefold().split())
    while True:
        number = _canonical_number(plain)
        if number is not None:
            return number
        stripped = plain.lstrip(_EDGE.replace(".", "")).rstrip(_EDGE)  # a leading point may begin ".5"
        sign = re.fullmatch(r"([+-]) ?\$ ?(.+)", stripped)  # -$5
        if sign:
            stripped = sign[1] + sign[2]
        if stripped == plain:
            return plain if any(c.isalnum() for c in plain) or _is_symbolic(plain) else ""
        plain = stripped


def _is_symbolic(text: str) -> bool:
    """Answers made of symbols only ("<", "+ -") are answers; a leftover of punctuation is not."""
    return any(unicodedata.category(c) in ("Sm", "So") for c in text)


def is_number(text: str) -> bool:
    """True if the whole of `text`, normalised, is one number."""
    return _canonical_number(normalise(text)) is not None


def equal(answer: str | None, gold: str) -> bool:
    """True if `answer` says the same as `gold` after `normalise` (3.50 is 3.5, "1,000" is 1000, Yes is yes).

    Numbers are compared exactly, in decimal. Raises ValueError if the gold is empty once normalised.
    """
    wanted = normalise(gold)
    if not wanted:
        raise ValueError(f"the gold answer {gold!r} is empty: nothing can be compared with it")
    return answer is not None and normalise(answer) == wanted


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last match; only one is held at a time, so that a long text costs no memory."""
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def _boxed(text: str) -> tuple[int, str] | None:
    """Position and content of the last closed \\boxed{...}; braces inside may nest."""
    at = text.rfind("\\boxed{")
    if at < 0:
        return None
    start, depth = at + len("\\boxed{"), 1
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return at, text[start:i]
    return None


def _after_thinking(text: str) -> str | None:
    """What follows the thinking; the whole text if there is none; None if the thinking never ended."""
    close = text.rfind(_CLOSE)
    if close >= 0:
        return text[close + len(_CLOSE) :]
    return None if _OPEN in text else text


def _strict(text: str) -> str | None:
    found: list[tuple[int, str]] = []
    marker = _last(_MARKER, text)
    if marker is not None:
        rest = text[marker.end() :].lstrip(" \t\r\n*")
        found.append((marker.start(), rest.split("\n", 1)[0]))
    box = _boxed(text)
    if box is not None:
        found.append(box)
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    if start >= 0:
        found.append((start, text[start + len("<answer>") : end]))
    if not found:
        return None
    answer = _TAGS.sub("", max(found)[1]).strip().strip("*").strip()
    return answer or None


def extract(text: str, lenient: bool = False) -> str | None:
    """The final answer that a text states, or None.

    Strict: whichever comes last of the line after "Answer:", the content of \\boxed{} and of <answer> tags. With
    thinking tags only what follows the thinking counts; thinking that never ends states no answer.
    Lenient: the strict answer if there is one; else the last number; else the last line that has a letter or digit,
    stripped of punctuation.
    """
    body = _after_thinking(text)
    answer = _strict(body) if body is not None else None
    if answer is not None or not lenient:
        return answer
    body = body if body is not None and body.strip() else text
    answer = _strict(body)
    if answer is not None:
        return answer
    body = _TAGS.sub("", body)
    last = _last(_IN_TEXT, body.translate(_MINUS))
    if last is not None:
        return last[0]
    for line in reversed(body.splitlines()):
        stripped = line.strip(_EDGE + "()[]{}<>-")
        if any(c.isalnum() for c in stripped):
            return stripped
    return None


def numbers(text: str) -> list[str]:
    """Every number in a text, in order, in plain decimal form; enumeration marks ("1. ") at line starts are skipped."""
    found = (_canonical_number(m[0]) for m in _IN_TEXT.finditer(_ENUMERATION.sub("", _plain(text))))
    return [n for n in found if n is not None]


def words(text: str) -> list[str]:
    """The words of a text in order, case-folded; enumeration marks at line starts are skipped."""
    return _WORD.findall(_ENUMERATION.sub("", _plain(text)).casefold())


def operand_key(prompt: str, domain: str = "") -> str:
    """Identity of a procedural question, free of order: the domain and the sorted numbers of the question.

    "3 + 5", "5 + 3" and "3 - 5" share a key: what was trained on one is not unseen in another. A question without
    numbers is known by its sorted words. Number sequences are known by their first four terms, so that a longer piece
    of a sequence is the same problem. Numbers are normalised (7.3e+01, 73.000 and 73 agree).
    """
    found = numbers(prompt)[: _SEQUENCE_PREFIX.get(domain)]
    if found:
        return f"{domain}|n|" + " ".join(sorted(found))
    return f"{domain}|w|" + " ".join(sorted(words(prompt)))
