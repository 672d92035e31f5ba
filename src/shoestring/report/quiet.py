"""The look of our tables on a terminal: no frame, one rule below the headings, a bold title at the left."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def table(title: str = "") -> Table:
    """A table without columns yet; which of them wrap or fold is the caller's to say."""
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold", header_style="dim",
                 padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)  # fmt: skip
