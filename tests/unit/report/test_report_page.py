"""The report page: complete, partial and hostile run folders; self-contained; looked at in Chromium."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import report_fixture as fixture

from shoestring.report import page
from shoestring.report.load import FILES, load

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Reader(HTMLParser):
    """Checks that tags balance and collects the names, the attributes and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes {self.stack[-3:]}"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.words.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.stack == []
    return reader


def words(text: str) -> str:
    return re.sub(r"\s+", " ", " ".join(read(text).words))


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    return fixture.write(tmp_path / "quickstart")


def edit(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value), "utf-8")


def test_complete_page_in_order(complete: Path) -> None:
    path = page.write(complete)
    assert path == complete / "report.html"
    assert [p.name for p in complete.iterdir() if p.name.startswith(".")] == []
    text = path.read_text("utf-8")
    said = words(text)
    assert (
        "Macro accuracy 22.8% → 66.4% (+43.6 points, 95% interval 37.4 to 49.8) for $0.0131 of a $0.05 budget." in said
    )
    titles = [html.unescape(t) for t in re.findall(r"<h2>(.*?)</h2>", text)]
    assert titles == [
        "Accuracy against dollars",
        "The frontier: accuracy against what it costs",
        "Unseen problems, family by family",
        "The gain of each stage by itself",
        "What each stage added, and its price",
        "What it forgot",
        "Learning curves",
        "The funnel",
        "The domains",
        "Answers before and after",
        "The bill",
        "Plan against actual",
        "The run",
    ]
    head = text[: text.index("<section>")]
    assert "What the dollar figure leaves out" in head and "training the base model" in head
    for expected in (
        "always giving the commonest answer",
        "lenient extraction",
        "no difference shown",
        "✓ right",
        "✗ wrong",
    ):
        assert expected in said, expected
    for expected in (
        "groups (48%)",
        "5,874",
        "replayed",
        "AWS EC2 on-demand t3.large, us-east-1, 2026-11-20",
        "torch 2.13.0",
    ):
        assert expected in said, expected
    for word in ("measured", "simulated", "from literature"):
        assert f">{word}</span>" in text
    assert "Not in this folder" not in said
    assert "nan" not in said.lower().replace("finance", "")


def test_nothing_is_loaded_from_anywhere(complete: Path) -> None:
    text = page.write(complete).read_text("utf-8")
    reader = read(text)
    assert {t for t, _ in reader.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"} == set()
    for tag, attrs in reader.tags:
        assert not [a for a in attrs if a in ("src", "href", "srcset", "data", "action") or a.startswith("on")], (
            tag,
            attrs,
        )
    assert "url(" not in text and "@import" not in text and "http://" not in text and "https://" not in text
    assert "default-src 'none'" in text


def test_charts_have_titles_and_unique_ids(complete: Path) -> None:
    reader = read(page.write(complete).read_text("utf-8"))
    ids = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(ids) == len(set(ids)) > 10
    for tag, attrs in reader.tags:
        if tag == "svg":
            assert attrs["role"] == "img"
            assert set(str(attrs["aria-labelledby"]).split()) <= set(ids)


@pytest.mark.parametrize("name", [*FILES, "metrics.jsonl", "recipe.toml"])
def test_a_missing_file_is_named_and_the_rest_is_shown(complete: Path, name: str) -> None:
    (complete / name).unlink()
    said = words(page.write(complete).read_text("utf-8"))
    assert ("Not in this folder:" in said and name in said) or name in ("traps.json", "domains.json")
    assert said.count("Not shown:") <= 4  # scores.json feeds four sections
    assert ("The bill" in said) and ("The funnel" in said)


def test_an_empty_folder(tmp_path: Path) -> None:
    said = words(page.write(tmp_path).read_text("utf-8"))
    assert "No scores yet for an amount that is not known: there is no bill." in said
    assert "scores.json is missing" in said


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        page.write(tmp_path / "none")


def test_a_stopped_run_says_so(complete: Path) -> None:
    edit(complete, "run.json", fixture.run() | {"status": "stopped", "reason": "the budget is reached"})
    edit(complete, "scores.json", [r for r in fixture.scores() if r["model"].startswith("base")])
    said = words(page.write(complete).read_text("utf-8"))
    assert (
        "Base model 22.8%; nothing trained was scored for $0.0131 of a $0.05 budget. "
        "The run stopped: the budget is reached." in said
    )


def test_no_gain_is_not_sold_as_one(complete: Path) -> None:
    scores = [r for r in fixture.scores() if r["model"] != "sft" and r.get("extraction") != "lenient"]
    for r in scores:
        if r["model"] == "grpo" and r["family"] == "macro" and r["benchmark"] == "unseen":
            r["accuracy"] = 0.236
    edit(complete, "scores.json", scores)
    gain = {
        "from": "base-few-shot",
        "to": "grpo",
        "benchmark": "unseen",
        "gain": 0.02,
        "ci95": [-0.01, 0.05],
        "p_value": 0.2,
    }
    edit(complete, "gains.json", [gain])
    said = words(page.write(complete).read_text("utf-8"))
    assert (
        "95% interval −1.0 to 5.0) for $0.0131 of a $0.05 budget. The interval includes zero: no gain is shown." in said
    )


def test_an_interval_of_another_difference_is_not_borrowed(complete: Path) -> None:
    edit(
        complete,
        "gains.json",
        [{"from": "base", "to": "grpo", "benchmark": "unseen", "gain": 0.492, "ci95": [0.4, 0.6]}],
    )
    said = words(page.write(complete).read_text("utf-8"))
    assert "(+43.6 points) for" in said


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;\x1b[31m\u202e\ud800"


def poison(value: Any, key: str = "") -> Any:
    """The same shapes with every text hostile, save the keys that name things to the page."""
    if isinstance(value, dict):
        return {k: poison(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [poison(v, key) for v in value]
    keep = ("benchmark", "extraction", "total", "budget", "low", "high", "amount", "unit_price", "quantity")
    return value if not isinstance(value, str) or key in keep else value + HOSTILE


def test_hostile_text_is_escaped(complete: Path) -> None:
    for name in FILES:
        edit(complete, name, poison(json.loads((complete / name).read_text("utf-8"))))
    lines = "".join(json.dumps(poison(line)) + "\n" for line in fixture.metrics())
    (complete / "metrics.jsonl").write_text(lines, "utf-8")
    (complete / "recipe.toml").write_bytes(b"</pre><script>alert(1)</script>\xff\xfe")
    text = page.write(complete).read_text("utf-8")
    reader = read(text)
    assert {t for t, _ in reader.tags} & {"script", "img"} == set()
    assert not [a for _, attrs in reader.tags for a in attrs if a.startswith("on")]
    assert "<script" not in text and "\x1b" not in text and "&lt;script&gt;" in text


def test_huge_text_and_many_lines_make_a_small_page(complete: Path) -> None:
    big = "x" * 20_000
    sample = {
        "family": big,
        "prompt": big,
        "answer": big,
        "answers": [{"model": big, "text": big, "correct": True}] * 50,
    }
    edit(complete, "samples.json", [sample] * 100)
    step = json.dumps(fixture.metrics()[-1])
    lines = [json.dumps({**json.loads(step), "step": i}) for i in range(30_000)]
    (complete / "metrics.jsonl").write_text("\n".join(lines) + '\n{"t": 17', "utf-8")
    path = page.write(complete)
    assert path.stat().st_size < 4_000_000
    said = words(path.read_text("utf-8"))
    assert "characters more" in said and "1 line cut short, left out" in said


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "abc", [], {}, True, 10**400, -1e308, 1e308])
def test_no_number_breaks_the_page(complete: Path, bad: Any) -> None:
    def swap(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: swap(v) for k, v in value.items()}
        if isinstance(value, list):
            return [swap(v) for v in value]
        return bad if isinstance(value, int | float) and not isinstance(value, bool) else value

    for name in FILES:
        edit(complete, name, swap(json.loads((complete / name).read_text("utf-8"))))
    (complete / "metrics.jsonl").write_text("".join(json.dumps(swap(m)) + "\n" for m in fixture.metrics()), "utf-8")
    text = page.write(complete).read_text("utf-8")
    read(text)
    assert not re.search(r'="[^"]*\b(nan|inf)\b', text.lower())


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", "3", '[1, "a", null, [], {}]', "[" * 100_000, "\x00"])
def test_no_content_breaks_the_page(complete: Path, content: str) -> None:
    for name in [*FILES, "metrics.jsonl"]:
        (complete / name).write_text(content, "utf-8")
    read(page.write(complete).read_text("utf-8"))


def test_replayed_steps_count_once(complete: Path) -> None:
    lines = fixture.metrics()
    (complete / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in lines + lines[:10]), "utf-8")
    assert len(load(complete).steps("sft")) == 120


CHROMIUM = next((c for n in ("chromium", "chromium-browser", "google-chrome") if (c := shutil.which(n))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser (chromium or google-chrome) to draw the page")


def chromium(tmp_path: Path, *args: str) -> str:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
    ]
    command += ["--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@needs_chromium
@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("width", [320, 390, 1100])
def test_the_page_never_scrolls_sideways(complete: Path, tmp_path: Path, width: int, hostile: bool) -> None:
    if hostile:
        run = fixture.run() | {"name": "n" * 300, "base": "b" * 300, "reason": "r" * 300}
        edit(complete, "run.json", run)
        edit(
            complete,
            "samples.json",
            [{"family": "f" * 90, "prompt": "p" * 900, "answer": "a" * 400, "answers": [{"text": "t" * 900}]}],
        )
        edit(complete, "domains.json", [{"domain": "d" * 300, "pool": 10, "chosen": 3, "selector": "s" * 300, "pass_rate": 0.5}])
        edit(complete, "funnel.json", [{"step": "s" * 200, "before": 10, "after": 3, "why": "w" * 300}])
    inside = page.write(complete).read_text("utf-8")
    # a browser's window has a least width, a frame has none
    measure = "const d=this.contentDocument,e=d.documentElement,n=d.querySelectorAll('section').length;"
    measure += "document.title=[e.scrollWidth,this.contentWindow.innerWidth,d.body.scrollWidth,n].join(' ')"
    frame = f'style="border:0;width:{width}px;height:700px" srcdoc="{html.escape(inside)}" onload="{measure}"'
    outer = f'<!doctype html><body style="margin:0"><iframe {frame}></iframe>'
    (tmp_path / "outer.html").write_text(outer, "utf-8")
    dom = chromium(
        tmp_path,
        "--virtual-time-budget=3000",
        "--window-size=1300,800",
        "--dump-dom",
        (tmp_path / "outer.html").as_uri(),
    )
    found = re.search(r"<title>(\d+) (\d+) (\d+) (\d+)</title>", dom)
    assert found, dom[:300]
    scroll, inner, body, sections = map(int, found.groups())
    assert inner == width and scroll <= inner and body <= inner and sections == 13


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_drawn(complete: Path, tmp_path: Path, dark: bool) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs pillow: pip install 'shoestring[test]'")
    shot = tmp_path / "shot.png"
    extra = ["--force-dark-mode"] if dark else []
    chromium(tmp_path, *extra, f"--screenshot={shot}", "--window-size=1100,1400", page.write(complete).as_uri())
    picture = image.open(shot).convert("RGB")
    colours = picture.getcolors(1 << 24)
    common = max(colours)[1]
    assert len(colours) > 200
    assert (sum(common) < 200) == dark
    teal = (88, 178, 207) if dark else (23, 107, 135)
    assert any(c == teal for _, c in colours)  # the chart's own colour, not only text
