"""A table in the cache: read back as written, never half written, and never a reason to stop."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoestring.estimate import kept


def test_written_and_read_back_in_a_folder_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cache" / "runs.json"
    for table in ({"b": [1, 2.5], "a": {"x": None}}, {}):  # the second takes the first one's place
        assert kept.write(table, path) and kept.read(path) == table
    assert os.listdir(path.parent) == ["runs.json"], "no draft stays"


@pytest.mark.parametrize("text", ["", "[]", "{", "3", "\x00"])
def test_what_is_no_table_is_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "runs.json").write_text(text)
    assert kept.read(tmp_path / "runs.json") == {} == kept.read(tmp_path / "none.json") == kept.read(tmp_path)


def test_no_place_to_write_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not kept.write({"a": 1}, tmp_path / "file" / "runs.json")


def test_a_failure_leaves_the_old_table_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs.json"
    assert kept.write({"a": 1}, path)
    with pytest.raises(TypeError):
        kept.write({"a": object()}, path)  # a mistake of ours is not hidden
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    assert not kept.write({"a": 2}, path)
    assert kept.read(path) == {"a": 1} and os.listdir(tmp_path) == ["runs.json"]
