"""benchmarks/serving.py without a model: a scripted server, the figures by hand, the table."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from benchmarks import serving

from shoestring.serve.price import Rate

RATE = Rate(lambda s: Decimal(repr(s)) * Decimal("0.001"), "a test", "measured")


class Scripted(http.server.BaseHTTPRequestHandler):
    """Three tokens, 20 ms apart, the first after 50 ms; a prompt numbered 1001 is refused."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["messages"][0]["content"] == serving.prompt(1001):
            self.send_error(500)
            return
        self.send_response(200)
        self.end_headers()
        time.sleep(0.03)
        self.say({"choices": [{"delta": {"role": "assistant"}, "token_ids": []}]})
        for i in range(asked["max_tokens"]):
            time.sleep(0.02)
            self.say({"choices": [{"delta": {"content": "x"}, "token_ids": [i]}]})
        self.wfile.write(b"data: [DONE]\n\n")

    def say(self, event: Any) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_an_answer_is_timed_by_its_tokens(port: int) -> None:
    a = serving.ask(port, "hello", 3)
    assert a.tokens == 3 and len(a.gaps) == 2 and 0.045 <= a.first <= a.seconds - 0.035 and all(g >= 0.01 for g in a.gaps)


def test_a_level_counts_failures_apart(port: int) -> None:
    row = serving.level(port, 1, 3, 3, RATE)
    assert row["answers"] == 2 and row["failed"] == 1 and "HTTP 500" in row["fault"]
    assert Decimal(row["usd_per_1000_answers"]) == pytest.approx(Decimal(repr(row["seconds"])) / 2, rel=Decimal("0.001"))


def test_the_figures_by_hand(tmp_path: Path) -> None:
    done = [serving.Answered(0.1, (0.01, 0.03), 0.2, 3), serving.Answered(0.3, (0.02, 0.02), 0.4, 3)]
    row = serving.figures(done, 2.0, 4)
    assert (row["first_token_p50"], row["first_token_p95"], row["between_tokens_p50"]) == (0.2, 0.29, 0.02)
    assert row["tokens_per_second"] == 3.0
    assert serving.percentile([], 50) is None and serving.percentile([0.5], 95) == 0.5
    assert serving.dollars(10.0, 4, RATE) == "2.500" and serving.dollars(1.0, 0, RATE) is None
    level = row | {"failed": 0, "fault": None, "usd_per_1000_answers": "0.5"}
    none = serving.figures([], 1.0, 16) | {"failed": 1, "fault": "x", "usd_per_1000_answers": None}
    result = {"date": "2026-01-01", "model": "m", "machine": {"cpu": "c"}, "tokens_per_answer": 3, "rate": RATE.about(),
              "levels": [level, none]}  # fmt: skip
    lines = serving.table(result)
    assert lines[2] == "| 4 | 2 | 200 ms | 290 ms | 20 ms | 28 ms | 3 | 0.5 |" and lines[3].endswith("| – | unknown |")
    page = tmp_path / "p.md"
    page.write_text(f"a\n{serving.BEGIN}\nold\n{serving.END}\nb\n")
    serving.write_docs(result, page)
    assert "old" not in page.read_text() and page.read_text().startswith("a\n") and page.read_text().endswith("\nb\n")
    assert lines[2] in page.read_text() and serving.BEGIN in serving.DOCS.read_text() and serving.END in serving.DOCS.read_text()
