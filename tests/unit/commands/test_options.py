"""What commands ask for in the same words: one line for whatever is wrong, and nothing overwritten unasked."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from shoestring.commands._options import amount, hourly, write
from shoestring.records import UserError


def test_amounts_name_their_option() -> None:
    assert hourly("0.10 USD/hour") == Decimal("0.10") and hourly(None) is None
    assert amount("35 USD", "--amount") == 35
    for text in ("", "35", "35 EUR", "-1 USD"):
        with pytest.raises(UserError, match="^--amount"):
            amount(text, "--amount")
    with pytest.raises(UserError, match="^--rate"):
        hourly("0.10 USD")


def test_a_file_is_written_and_overwritten_only_when_told(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write(path, "ä", False)
    with pytest.raises(UserError, match="this file exists; choose another name"):
        write(path, "b", False)
    assert path.read_text(encoding="utf-8") == "ä"
    write(path, "b", True)
    assert path.read_text(encoding="utf-8") == "b"


def test_a_place_that_takes_no_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder: .*none$"):
        write(tmp_path / "none" / "a", "", True)
    with pytest.raises(UserError, match="cannot be written: is a directory$"):
        write(tmp_path, "", True)
