"""The two READMEs say the same: as many headings of each level in the same order, and the same commands and links."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENGLISH, CHINESE = (ROOT / n for n in ("README.md", "README.zh-CN.md"))


def code(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def headings(text: str) -> list[int]:
    prose = [line for line in text.splitlines() if not line.startswith("    ")]
    return [len(m[1]) for line in prose if (m := re.match(r"(#+) ", line))]


def test_same_headings_and_commands() -> None:
    english, chinese = ENGLISH.read_text(encoding="utf-8"), CHINESE.read_text(encoding="utf-8")
    assert headings(english) == headings(chinese)
    assert code(english) == code(chinese)
    links = re.compile(r"\]\((?!README)([^)]+)\)")
    assert links.findall(english) == links.findall(chinese)


def test_every_linked_file_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", ENGLISH.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


def test_no_placeholder_is_left() -> None:
    for path in (ENGLISH, CHINESE):
        assert "@@" not in path.read_text(encoding="utf-8")


def test_the_commands_are_commands_of_the_parser() -> None:
    from shoestring.cli import parser

    known = set(next(a for a in parser()._actions if a.dest == "command").choices or {})
    used = {line.split()[1] for line in code(ENGLISH.read_text(encoding="utf-8")) if line.startswith("shoestring ")}
    assert used <= known and used
