"""The runs of words that a domain's questions have in common: its template, which says nothing of any one of them."""

from __future__ import annotations

import numpy as np

from shoestring.data.marks import Marks, grams, once_a_row

SHARE, COUNT = 0.1, 20  # a template's run stands in more than this of a domain's drawn questions, and in more than so many
DRAW_DOMAIN, DRAW_ALL = 1000, 200_000  # questions drawn a domain, and in all


def draw(domain: np.ndarray, text: np.ndarray, domains: int) -> np.ndarray:
    """Positions of up to DRAW_DOMAIN questions of each domain that is large enough to have a template.

    domain [N]: 0 to domains - 1; text [N]: a hash of the question, by which they are drawn: the same ones in whatever
    order they come.
    """
    sizes = np.bincount(domain, minlength=domains)
    large = sizes > COUNT
    quota = int(np.clip(DRAW_ALL // max(1, np.count_nonzero(large)), 50, DRAW_DOMAIN))
    order = np.lexsort((text, domain))
    rank = np.arange(len(order)) - np.concatenate(([0], np.cumsum(sizes)))[domain[order]]
    return np.sort(order[(rank < quota) & large[domain[order]]])


def drawn(marks: Marks) -> np.ndarray:
    """`draw` over marks."""
    return draw(marks.domain, marks.text, len(marks.names))


def of_domains(sample: Marks, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(hash, domain) of the runs of `size` words that too many of a domain's drawn questions share."""
    found = grams(sample, size)
    keep = once_a_row(found)
    runs, domain = found.hash[keep], sample.domain[found.row[keep]]
    order = np.lexsort((runs, domain))
    runs, domain = runs[order], domain[order]
    new = np.ones(len(runs), bool)
    new[1:] = (runs[1:] != runs[:-1]) | (domain[1:] != domain[:-1])
    counts = np.diff(np.append(np.flatnonzero(new), len(runs)))
    runs, domain = runs[new], domain[new]
    sizes = np.bincount(sample.domain, minlength=len(sample.names))
    common = counts > np.maximum(COUNT, SHARE * sizes[domain])
    return runs[common], domain[common]
