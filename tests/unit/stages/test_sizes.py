"""Families of a source are counted without reading its rows as JSON; the twin reads every one."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from shoestring.data.sources import bundled
from shoestring.stages import sizes


def twin(lines: list[str], split: str) -> dict[str, int]:
    rows = [json.loads(line) for line in lines if line.strip()]
    mine = [r.get("domain") for r in rows if isinstance(r, dict) and r.get("split") in (None, "", split)]
    return dict(Counter(d if isinstance(d, str) else "" for d in mine))


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_ships_is_counted_as_its_rows_say(split: str) -> None:
    for name, path in bundled.pools().items():
        with gzip.open(path, "rt", encoding="utf-8") as f:
            assert sizes.domains(f"bundled:{name}", split) == twin(f.readlines(), split), name


def test_rows_that_look_otherwise(tmp_path: Path) -> None:
    lines = [
        json.dumps({"prompt": 'say "domain": "x", please', "domain": "a", "split": "train"}),
        json.dumps({"domain": "a", "inner": {"domain": "b"}, "split": "train"}),
        json.dumps({"split": "train", "domain": "c"}),
        json.dumps({"domain": "é \"d\"", "split": "train"}),
        json.dumps({"domain": "e", "split": "trainer"}),
        json.dumps({"domain": "f"}),
        json.dumps({"domain": None, "split": ""}),
        json.dumps({"domain": "g", "split": "test"}),
        json.dumps({"domain": "h", "split": "train"}, separators=(",", ":")),
        "",
        "[1]",
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    for split in ("train", "test"):
        assert sizes.domains(str(path), split) == twin(lines, split)
