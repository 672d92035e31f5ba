"""A hub that is not there: one line, at once, and the library left as it was. And the real library before a small hub of
our own, in a process of its own, since it reads its settings when it is imported."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import pytest
from hub_server import Repo

from shoestring.data.sources import _hub
from shoestring.records import UserError

datasets: Any = pytest.importorskip("datasets", reason="needs datasets: pip install 'shoestring[hub]'")
constants: Any = pytest.importorskip("huggingface_hub.constants", reason="needs datasets: pip install 'shoestring[hub]'")


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (constants, datasets.config):
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def no_address(*args: Any, **rest: Any) -> Any:
    raise socket.gaierror(-2, "Name or service not known")


def test_no_network_is_one_line_at_once(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    began = time.monotonic()
    for call in (lambda: next(_hub.rows("nobody/nothing-here")), lambda: _hub.count("nobody/nothing-here")):
        with pytest.raises(UserError, match="'nobody/nothing-here': .*https://huggingface.co cannot be reached from here"):
            call()
        assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE
    assert time.monotonic() - began < 10, "24 s each, where the library repeats its question"


def test_what_the_hub_says_stays(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an address, and behind a proxy, which may know one, the library is asked as it is."""
    seen: list[bool] = []

    def refused(*args: Any, **rest: Any) -> Any:
        seen.append(constants.HF_HUB_OFFLINE)
        raise ValueError("no config 'x'")

    monkeypatch.setattr(datasets, "load_dataset", refused)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [])
    with pytest.raises(UserError, match=r"cannot be read from the hub \(ValueError: no config 'x'\)"):
        next(_hub.rows("a/b"))
    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    with pytest.raises(UserError, match="cannot be read from the hub"):
        next(_hub.rows("a/b"))
    assert seen == [False, False]


# what it reads, each with the number of rows it takes; the library's waits between its repeats are left out
CLIENT = """
import itertools, json, sys, time
from dataclasses import asdict
from shoestring.data import sources
from shoestring.records import UserError
time.sleep = lambda seconds: None
for how, spec, most, *rest in json.load(sys.stdin):
    try:
        if how == "count":
            said = sources.count(spec, *rest)
        elif how == "rows":
            said = [[r.where, r.data] for r in itertools.islice(sources.rows(spec, *rest), most)]
        else:
            said = [asdict(p) for p in sources.load(spec, *rest)]
    except UserError as e:
        said = "UserError: " + str(e)
    print(json.dumps(said))
"""
CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - {split: train, path: data/train-*.parquet}
  - {split: test, path: data/test-*.parquet}
dataset_info:
- config_name: main
  splits: [{name: train, num_examples: 80, num_bytes: 1}]
---
# Sums
"""
BIG = 48 << 20


def environment(hub: str, home: Path) -> dict[str, str]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    return plain | {"HF_ENDPOINT": hub, "HF_HOME": str(home), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def line(n: int, **more: Any) -> bytes:
    return json.dumps({"prompt": f"What is {n} + 1?", "answer": str(n + 1), **more}).encode() + b"\n"


def table(start: int, rows: int) -> bytes:
    pa = pytest.importorskip("pyarrow", reason="needs datasets: pip install 'shoestring[hub]'")
    pq, out = pytest.importorskip("pyarrow.parquet", reason="needs datasets: pip install 'shoestring[hub]'"), io.BytesIO()
    numbers = range(start, start + rows)
    pq.write_table(pa.table({"question": [f"{n} + 1?" for n in numbers], "answer": [str(n + 1) for n in numbers]}), out)
    return out.getvalue()


def repos() -> dict[str, Repo]:
    lines = {"train.jsonl": b"".join(map(line, range(3))), "test.jsonl": line(9)}
    long = line(7, pad="x" * 4000)
    large = long * (BIG // len(long))
    shards = {f"data/train-{i}-of-2.parquet": table(40 * i, 40) for i in range(2)}
    return {
        "org/lines": Repo({"README.md": b"---\nlicense: [mit, cc-by-4.0]\n---\n# Lines\n", **lines}),
        "org/sums": Repo({"README.md": CARD.encode(), "data/test-0-of-1.parquet": table(500, 2), **shards}),
        "org/big": Repo({"README.md": b"---\nlicense: other\nlicense_name: own-1\n---\n", "a.jsonl": large}),
        "org/bare": Repo({"train.jsonl": line(1, license="cc0-1.0", source="a book") + line(2, license=None, source="")}),
        "org/empty": Repo({"README.md": b"# Nothing\n"}),
        "org/broken": Repo({"train.jsonl": line(1) + b"{nope\n"}),
        "org/private": Repo(status=404, code="RepoNotFound"),
        "org/gated": Repo(status=401, code="GatedRepo"),
        "org/asked": Repo(status=403, code="GatedRepo"),
        "org/ailing": Repo(status=500),
        "org/busy": Repo(status=429),
        "org/breaks": Repo({"train.jsonl": large}, status=503, after=2),
    }


ASKED: dict[str, tuple[Any, ...]] = {
    "lines": ("rows", "org/lines", 9), "lines test": ("rows", "org/lines", 9, "test"), "sums": ("rows", "org/sums", 2),
    "big": ("rows", "org/big", 2), "bare": ("rows", "org/bare", 9), "query": ("rows", "org/sums?config=main&split=test", 9),
    "load": ("load", "org/sums?prompt=question&config=main&split=test", 9), "empty": ("rows", "org/empty", 9),
    "count": ("count", "org/sums", 0), "count test": ("count", "org/sums", 0, "test"), "count none": ("count", "org/lines", 0),
    "no split": ("rows", "org/lines", 9, "dev"), "no config": ("rows", "org/sums?config=other", 9),
    "count no config": ("count", "org/sums", 0, "train", "other"), "no key": ("rows", "org/sums?prompt=question", 9),
    "unknown": ("rows", "org/unknown", 9), "private": ("rows", "org/private", 9), "gated": ("rows", "org/gated", 9),
    "asked": ("rows", "org/asked", 9), "ailing": ("rows", "org/ailing", 9), "busy": ("rows", "org/busy", 9),
    "count busy": ("count", "org/busy", 0), "broken": ("rows", "org/broken", 9), "breaks": ("rows", "org/breaks", 10**6),
}  # fmt: skip


@pytest.fixture(scope="module")
def hub() -> Iterator[hub_server.Hub]:
    with hub_server.running(repos()) as running:
        yield running


@pytest.fixture(scope="module")
def said(hub: hub_server.Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process got of everything in ASKED."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT], input=json.dumps(list(ASKED.values())), capture_output=True, text=True, timeout=120,
        env=environment(hub.address, tmp_path_factory.mktemp("home")), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(ASKED, map(json.loads, done.stdout.splitlines()), strict=True))


class TestARealHub:
    def test_rows_with_place_source_and_licence(self, said: dict[str, Any]) -> None:
        stated = {"source": "org/lines", "licence": "mit, cc-by-4.0"}
        sums = [{"prompt": f"What is {n} + 1?", "answer": str(n + 1)} for n in (0, 1, 2, 9)]
        assert said["lines"] == [[f"org/lines:{n}", stated | sums[n - 1]] for n in (1, 2, 3)]
        assert said["lines test"] == [["org/lines:1", stated | sums[3]]]
        wanted = {"source": "org/sums", "licence": "mit", "question": "0 + 1?", "answer": "1"}
        assert said["sums"][0] == ["org/sums:1", wanted] and said["sums"][1][0] == "org/sums:2"

    def test_what_a_row_states_counts_and_what_it_leaves_empty_does_not(self, said: dict[str, Any]) -> None:
        (_, first), (_, second) = said["bare"]
        assert (first["source"], first["licence"]) == ("a book", "cc0-1.0")
        assert (second["source"], second["licence"]) == ("org/bare", ""), "no card, so nothing is known"

    def test_a_query_chooses_config_and_split(self, said: dict[str, Any]) -> None:
        assert _hub.is_id("org/sums?config=main&split=test") and not _hub.is_id("org/sums.jsonl?prompt=question")
        assert [(where, row["question"]) for where, row in said["query"]] == [
            ("org/sums:1", "500 + 1?"),
            ("org/sums:2", "501 + 1?"),
        ]
        found = [(p["prompt"], p["answer"], p["source"], p["licence"]) for p in said["load"]]
        assert found == [(f"{n} + 1?", str(n + 1), "org/sums", "mit") for n in (500, 501)]
        assert said["no key"].startswith("UserError: org/sums?prompt=question: only split and config may follow '?'")

    def test_the_first_rows_of_a_large_file_do_not_load_it(self, said: dict[str, Any], hub: hub_server.Hub) -> None:
        """The library reads JSON lines in ranges, the first one twice (its columns, then its rows), and parquet by the file."""
        assert len(said["big"]) == 2 and said["big"][0][1]["licence"] == "own-1"
        asked = hub.of("org/big", ".jsonl")
        ends = [int(a.range.rpartition("-")[2]) for a in asked]  # no range: an error here
        assert 0 < sum(a.sent for a in asked) < BIG * 3 // 4 and max(ends) < BIG // 3
        assert hub.of("org/sums", "train-0-of-2.parquet") and not hub.of("org/sums", "train-1-of-2.parquet")

    def test_the_licence_costs_no_request(self, said: dict[str, Any], hub: hub_server.Hub) -> None:
        """One look at the card for its commit, and one reading of it."""
        cards = [a.method for a in hub.of("org/big", "README.md")]
        assert cards == ["HEAD", "GET"]

    def test_count(self, said: dict[str, Any]) -> None:
        assert (said["count"], said["count test"], said["count none"]) == (80, None, None)

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("no split", "Bad split: dev. Available splits: ['train', 'test']"),
            ("no config", "BuilderConfig 'other' not found. Available: ['main']"),
            ("count no config", "check the id, config and split"),
            ("empty", "doesn't contain any data files"),
            ("unknown", "(HTTP 401): there is no such data set, or it is private or gated"),
            ("private", "doesn't exist on the Hub or cannot be accessed.): there is no such data set, or it is private"),
            ("gated", "ask for access on its page and put your token into HF_TOKEN"),
            ("asked", "https://huggingface.co/datasets/org/asked to ask for access"),
            ("ailing", "(HTTP 500: Internal Server Error): it is not your data set's fault; try again later"),
            ("busy", "(HTTP 429: too many requests): try again later"),
            ("count busy", "(HTTP 429: too many requests): try again later"),
            ("broken", "a file of it is broken"),
        ],
    )
    def test_a_refusal_is_one_line(self, said: dict[str, Any], name: str, words: str) -> None:
        spec = ASKED[name][1].partition("?")[0]
        assert said[name].startswith(f"UserError: data set '{spec}': cannot be read from the hub ")
        assert words in said[name] and "\n" not in said[name] and len(said[name]) < 480, said[name]
        assert "any data file at" not in said[name], "a folder of this machine is no matter here"

    def test_a_hub_that_fails_midway_says_after_which_row(self, said: dict[str, Any], hub: hub_server.Hub) -> None:
        assert "cannot be read from the hub after row " in said["breaks"] and "(HTTP 503" in said["breaks"], said["breaks"]
        assert {a.status for a in hub.of("org/breaks", ".jsonl")} == {206, 503}


def shoestring(hub: str, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from shoestring.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=120, cwd=folder,
        env=environment(hub, folder / "home"), check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_users_commands(hub: hub_server.Hub, tmp_path: Path) -> None:
    seen = shoestring(hub.address, tmp_path, "data", "validate", "org/lines", "--json")
    assert json.loads(seen.stdout)["sources"] == [{"source": "org/lines", "licence": "mit, cc-by-4.0", "rows": 3}], seen.stderr
    pool, evaluation = "org/sums?prompt=question&config=main", "org/sums?prompt=question&config=main&split=test"
    chosen = shoestring(
        hub.address, tmp_path, "curate", pool, "--against", evaluation, "--language", "any", "--count", "5", "--out", "x.jsonl"
    )
    assert chosen.returncode == 0, chosen.stderr
    rows = [json.loads(text) for text in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and {(r["source"], r["licence"]) for r in rows} == {("org/sums", "mit")}
    lost = shoestring(hub.address, tmp_path, "curate", "org/unknown", "--out", "y.jsonl")
    assert lost.returncode == 2 and lost.stderr.startswith("shoestring: data set 'org/unknown': ") and lost.stdout == ""
    assert len(lost.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_hub_that_is_down(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody answers
        taken.bind(("127.0.0.1", 0))
        done = subprocess.run(
            [sys.executable, "-c", CLIENT], input=json.dumps([("rows", "org/lines", 1)]), capture_output=True, text=True,
            env=environment(f"http://127.0.0.1:{taken.getsockname()[1]}", tmp_path), timeout=120, check=False,
        )  # fmt: skip
    said = json.loads(done.stdout)
    assert "Couldn't reach 'org/lines' on the Hub" in said and "it was not reached: check the network" in said, said
