"""Is a question written in English? By its script, and by the words that every English text is full of."""

from __future__ import annotations

import re

LATIN = 0.7  # share of the letters that must be Latin (Greek letters are mathematics)
FUNCTION = 0.03  # share of the words, in a text of MIN_WORDS and more
MIN_WORDS = 20

_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]{2,}")
_LATEX = re.compile(r"\$[^$]*\$|\\[A-Za-z]+")
_OTHER = re.compile(r"[^\W\d_A-Za-z\u00aa-\u024f\u0370-\u03ff\u1d00-\u1eff\u2070-\u218f\U0001d400-\U0001d7ff]")
# common in English and rare in other languages written with Latin letters
_ENGLISH = frozenset((
    "the", "of", "and", "to", "is", "that", "what", "how", "are", "with", "which", "each", "if", "find", "there",
    "by", "it", "be", "from", "this", "has", "have", "for", "on", "his", "her", "they", "you", "your", "at", "not",
    "one", "two", "many", "does", "can", "will", "all", "as", "its", "was", "were", "when", "where", "there", "been",
    "between", "given", "let", "such",
))  # fmt: skip


def foreign(text: str) -> bool:
    """True if most letters are of another script, or a text of 20 words and more has next to no English ones.

    Short questions, formulas and code pass: nothing can be told of them.
    """
    if not text.isascii():
        other = len(_OTHER.findall(text))
        letters = sum(map(str.isalpha, text))
        if other > (1 - LATIN) * letters:
            return True
    words = _WORD.findall(_LATEX.sub(" ", text) if "\\" in text or "$" in text else text)
    if len(words) < MIN_WORDS:
        return False
    return sum(w.lower() in _ENGLISH for w in words) < FUNCTION * len(words)
