"""The look of the page: one style sheet (page.css), light and dark, and the few HTML pieces that sections share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .text import BASIS_WORDS, clean

CSS = Path(__file__).with_name("page.css").read_text("utf-8")


def h(value: Any, limit: int = 400) -> str:
    """Escaped text, cut at a length that no honest field reaches."""
    return escape(clean(value, limit), quote=True)


def tag(basis: Any) -> str:
    """Where a number comes from: measured, simulated or from literature."""
    word = str(basis)
    if word not in BASIS_WORDS:
        return '<span class="tag">source not recorded</span>'
    return f'<span class="tag {word}">{BASIS_WORDS[word]}</span>'


def section(title: str, lead: str, body: str) -> str:
    """`title` and `lead` are HTML already."""
    intro = f'<p class="lead">{lead}</p>' if lead else ""
    return f"<section><h2>{title}</h2>{intro}{body}</section>"


def absent(title: str, why: str) -> str:
    return section(title, f"Not shown: {h(why)}.", "")


def table(
    head: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]], total: Sequence[str] | None = None, label: str = ""
) -> str:
    """A table that scrolls inside its own box. Cells are HTML already; a head entry is (html, class)."""

    def line(cells: Sequence[str], cls: str = "") -> str:
        tds = "".join(
            f'<td class="{c}">{cell}</td>' if c else f"<td>{cell}</td>"
            for cell, (_, c) in zip(cells, head, strict=False)
        )
        return f'<tr class="{cls}">{tds}</tr>' if cls else f"<tr>{tds}</tr>"

    ths = "".join(f'<th scope="col" class="{c}">{t}</th>' if c else f'<th scope="col">{t}</th>' for t, c in head)
    body = "".join(line(r) for r in rows) + (line(total, "total") if total else "")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{h(label or "table")}">'
        f"<table><thead><tr>{ths}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def figure(caption: str, chart: str, legend: str = "", sub: str = "") -> str:
    """`caption`, `sub`, `legend` and `chart` are HTML already."""
    extra = f' <span class="sub">{sub}</span>' if sub else ""
    return f"<figure><figcaption>{caption}{extra}</figcaption>{legend}{chart}</figure>"


def legend(entries: Sequence[tuple[str, str]], extra: str = "") -> str:
    """Entries are (text, colour variable)."""
    items = "".join(f'<li><i style="background:var(--{colour})"></i>{h(text)}</li>' for text, colour in entries)
    return f'<ul class="legend">{items}{extra}</ul>'
