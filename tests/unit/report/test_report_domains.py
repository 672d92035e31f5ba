"""The domain picture: every domain is there, hostile names are text, and odd files do not break the page."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from shoestring.report import domains, page
from shoestring.report.load import RunFolder, load

ROOT = Path(__file__).resolve().parents[3]


def row(name: str, pool: int, chosen: int, rate: float | None = 0.25) -> dict[str, Any]:
    return {"domain": name, "pool": pool, "chosen": chosen, "selector": "s1", "pass_rate": rate}


def drawn(rows: list[dict[str, Any]]) -> str:
    return domains.domains(RunFolder(Path("x"), domains=rows))


def test_picture_and_table() -> None:
    said = drawn([row("lcm", 900, 12), row("gcd", 100, 12, None), row("never", 40, 0)])
    assert "24 problems were chosen by s1 from 2 of 3 domains" in said and "86.5%" in said and "measured" in said
    wide, narrow = re.findall(r"<svg.*?</svg>", said)
    for picture in (wide, narrow):
        tree = ET.fromstring(picture)
        assert len(tree.findall(".//circle")) == 6, "a ring and a dot a domain"
        for c in tree.findall(".//circle"):
            assert 0 <= float(c.attrib["cx"]) <= float(tree.attrib["viewBox"].split()[2])
    cells = re.findall(r"<td[^>]*>(.*?)</td>", said)
    assert cells[:5] == ["lcm", "900", "12", "50.0%", "25.0%"] and cells[9] == "–"


def test_many_domains_and_hostile_names() -> None:
    rows = [row(f"<script>{i}</script>" + "w" * 80, 10 + i, i % 7) for i in range(86)]
    said = drawn(rows)
    assert "<script>" not in said and "30 of 86 domains" in said and said.count("<tr>") == 87 and "all 86 domains" in said


@pytest.mark.parametrize("rows", [[], [{}], [{"domain": "x", "pool": 0, "chosen": 0}], [{"domain": "x", "pool": "many", "chosen": 1}]])
def test_nothing_to_show(rows: list[dict[str, Any]]) -> None:
    assert drawn(rows) == ""
    assert drawn([*rows, row("lcm", 5, 0)]) != ""


def test_in_the_page(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install 'shoestring[test]'")
    rows = [row("lcm", 5, 1), row("", 7, 2)]
    jsonschema.validate(rows, json.loads((ROOT / "docs/schemas/domains.schema.json").read_text()))
    (tmp_path / "domains.json").write_text(json.dumps(rows))
    assert "The domains" in page.render(load(tmp_path))
    (tmp_path / "domains.json").write_text("[{")
    assert "domains.json could not be read" in page.render(load(tmp_path))
    (tmp_path / "domains.json").unlink()
    assert "The domains" not in page.render(load(tmp_path))
