"""The arithmetic in a question, known across families: "3 + 5", "Calculate 5 - -3." and "-5 + 3" are one.

Only where the arithmetic is the question: "3/4 of the class" in a story says nothing of the story.
"""

from __future__ import annotations

import re

MAX_WORDS = 12  # beside the numbers
_WORD = re.compile(r"[^\W\d_]+")
_EXPRESSION = re.compile(r"(?<![\w.])[-(\s]*\d+(?:[\s()]*[-+*/][-\s()]*\d+)+(?![\w]|\.\d)")


def expression_key(prompt: str) -> str | None:
    """Identity of an arithmetic expression across families: its kinds of operation and its operands without order or
    sign. None for a question without an expression, or with many words around it."""
    match = _EXPRESSION.search(prompt)
    if match is None or len(_WORD.findall(prompt)) > MAX_WORDS:
        return None
    text = match[0]
    kinds = sorted({"+" if c in "+-" else c for c in re.findall(r"(?<=[\d)])\s*([-+*/])", text)})
    return "".join(kinds) + " " + " ".join(sorted(re.findall(r"\d+", text), key=int))
