"""What a label model is asked of a question, and how its label is read. Standard library only: the plan reads it too."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# what a label model is asked (s1 asked for a class of the Mathematics Subject Classification; these words are ours)
FREE = (
    "Name the field that this problem belongs to, as a subject classification would: one short name such as \"number theory\", "
    "\"organic chemistry\" or \"logic puzzles\". Do not solve it. Write the name only.\n\n{prompt}"
)
FIXED = (
    "Which of these fields does the problem belong to? {names}. Do not solve it. Write one name of the list only, as it stands "
    "there.\n\n{prompt}"
)
OTHER = "other"  # the domain of a problem whose label cannot be read, or is none of the list
LONGEST = 6  # words of a label: more is an answer or an excuse
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")
_LEAD = re.compile(
    r"^(?:the )?(?:field|domain|label|subject|category|answer|name)(?: is\b\s*:?|\s*[:=])\s*(?=\S)", re.IGNORECASE
)


def asked(prompt: str, names: Sequence[str] = ()) -> str:
    """What a label model is asked of one question."""
    return FIXED.format(names=", ".join(names), prompt=prompt) if names else FREE.format(prompt=prompt)


def read_label(said: str, names: Sequence[str] = ()) -> str:
    """The label in a reply, "" where there is none.

    Free: its first line in small letters, without marks around it or a lead such as "Domain:", single spaces, "&" as "and";
    at most `LONGEST` words. names: the one of them that the reply is or, where just one is, holds as whole words.
    """
    lines = [line for line in said.splitlines() if line.strip()]
    if names:
        flat = {_flat(n): n for n in names}
        first = _flat(_LEAD.sub("", _EDGES.sub("", lines[0]))) if lines else ""
        if first in flat:
            return flat[first]
        whole = f" {_flat(said)} "
        held = [n for f, n in flat.items() if f" {f} " in whole]
        longest = [n for n in held if not any(n != o and f" {_flat(n)} " in f" {_flat(o)} " for o in held)]
        return longest[0] if len(longest) == 1 else ""
    label = _EDGES.sub("", _LEAD.sub("", _EDGES.sub("", lines[0]))) if lines else ""
    label = " ".join(unicodedata.normalize("NFKC", label).casefold().replace("&", " and ").split())
    return label if 0 < len(label.split()) <= LONGEST else ""


def _flat(text: str) -> str:
    """Words alone, for comparing."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold().replace("&", " and ")))
