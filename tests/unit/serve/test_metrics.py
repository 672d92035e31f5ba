"""What /metrics says, against what was asked; and clients that vanish or stop reading leave nothing behind."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'shoestring[serve]'")
httpx2 = pytest.importorskip("httpx2", reason="needs httpx2: pip install 'shoestring[endpoint]'")

from shoestring.serve.app import Service, make  # noqa: E402
from shoestring.serve.metrics import Histogram, Metrics  # noqa: E402
from shoestring.serve.price import Rate, plain  # noqa: E402
from shoestring.serve.worker import Load, Worker  # noqa: E402

RATE = Rate(lambda seconds: Decimal("0.00003") * Decimal(repr(seconds)), "a test's rate", "measured")
TEXT = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 8, "seed": 4, "ignore_eos": True}
LINE = re.compile(r'[a-z_]+(\{[a-z]+="[^"]+"\})? -?[0-9.e+-]+')


@pytest.fixture
def priced(served: Any, running: Any) -> Iterator[Any]:
    """A server of its own over the same model, with a rate and clients that may stop reading for a moment only."""
    s = served.service
    limits = dataclasses.replace(s.limits, send_seconds=0.3, max_tokens=900)
    service = Service(Worker(s.worker._open), s.encoder, s.decoder, "tiny", limits, s.vocab, RATE)
    with running(service, make(service)) as r:
        yield r


def scrape(url: str) -> dict[str, float]:
    response = httpx2.get(url.removesuffix("/v1") + "/metrics", trust_env=False)
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = response.text.splitlines()
    assert response.text.endswith("\n") and all(x.startswith("# ") or LINE.fullmatch(x) for x in lines)
    names = [x.split()[2] for x in lines if x.startswith("# TYPE")]
    assert len(names) == len(set(names)) and all(n.startswith("shoestring_") for n in names)
    return {(p := x.rpartition(" "))[0].removeprefix("shoestring_"): float(p[2]) for x in lines if not x.startswith("#")}


def test_what_was_asked_is_counted(priced: Any) -> None:
    with httpx2.Client(base_url=priced.url, trust_env=False) as c:
        one = c.post("/completions", json=TEXT | {"n": 2}).json()["usage"]
        chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 30, "thinking_budget": 5, "temperature": 1}
        two = c.post("/chat/completions", json=chat).json()["usage"]
        c.post("/completions", json=TEXT | {"max_tokens": 0})
        c.get("/models", headers={"Host": "evil.example"})
    m = scrape(priced.url)
    assert (m['requests_total{outcome="ok"}'], m['requests_total{outcome="refused"}']) == (2, 1)
    assert m['requests_total{outcome="denied"}'] == 1
    assert m["prompt_tokens_total"] == one["prompt_tokens"] + two["prompt_tokens"]
    assert m["completion_tokens_total"] == one["completion_tokens"] + two["completion_tokens"]
    assert m["thinking_tokens_total"] == two["completion_tokens_details"]["reasoning_tokens"] == 5
    assert m["time_to_first_token_seconds_count"] == 3 == m['time_to_first_token_seconds_bucket{le="+Inf"}']
    assert m["inter_token_latency_seconds_count"] == m["completion_tokens_total"] - 3
    assert (m["answers_active"], m["answers_running"], m["answers_waiting"], m['cache_blocks{state="used"}']) == (0, 0, 0, 0)
    assert m['cache_blocks{state="free"}'] > 0
    assert m["answer_machine_seconds_total"] == pytest.approx(one["machine_seconds"] + two["machine_seconds"], abs=1e-5)
    assert (
        0
        < m["answer_cost_usd_total"]
        < m["machine_cost_usd_total"]
        == pytest.approx(0.00003 * m["uptime_seconds_total"], rel=1e-6)
    )
    assert float(one["cost"]["usd"]) == pytest.approx(0.00003 * one["machine_seconds"], rel=1e-3)
    assert (one["cost"]["basis"], one["cost"]["source"]) == ("measured", "a test's rate")


def test_seconds_are_shared_and_never_more_than_passed(priced: Any) -> None:
    begin = time.monotonic()
    used = httpx2.post(priced.url + "/completions", json=TEXT | {"n": 8, "max_tokens": 30}, trust_env=False).json()["usage"]
    assert 0 < used["machine_seconds"] <= time.monotonic() - begin


def test_without_a_rate_there_are_no_dollars(served: Any) -> None:
    used = httpx2.post(served.url + "/completions", json=TEXT, trust_env=False).json()["usage"]
    assert "cost" not in used and used["machine_seconds"] > 0
    assert not [k for k in scrape(served.url) if "usd" in k]
    assert httpx2.get(served.url + "/models", trust_env=False).json()["data"][0]["price"] is None


def test_a_prompt_in_the_cache_is_told(priced: Any, slow_steps: None) -> None:
    """Two answers hold a prompt's keys and values in the cache; whoever asks the same meanwhile finds them there."""
    body = {"model": "tiny", "prompt": list(range(5, 45)), "max_tokens": 150, "n": 2, "ignore_eos": True, "stream": True}
    with httpx2.Client(base_url=priced.url, trust_env=False) as c, c.stream("POST", "/completions", json=body) as response:
        lines = response.iter_lines()  # held: a forgotten iterator ends the request
        next(lines)
        used = c.post("/completions", json=body | {"n": 1, "stream": False, "max_tokens": 2}).json()["usage"]
    assert used["prompt_tokens"] == used["prompt_tokens_details"]["cached_tokens"] == 40


@pytest.mark.parametrize("reads", [True, False], ids=["leaves", "stops reading"])
def test_a_client_that_goes_frees_its_blocks(priced: Any, reads: bool, slow_steps: None) -> None:
    host, port = priced.url.removeprefix("http://").removesuffix("/v1").split(":")
    body = TEXT | {"n": 16, "max_tokens": 900, "stream": True, "logprobs": 0, "return_token_ids": True}
    raw = json.dumps(body | {"stream_options": {"continuous_usage_stats": True}}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect((host, int(port)))
        s.sendall(head.encode() + raw)
        priced.wait_until(lambda: scrape(priced.url)['cache_blocks{state="used"}'] > 0)
        worker = priced.service.worker
        priced.wait_until(lambda: (worker.load.running, worker.load.waiting) == (8, 8))  # the engine has eight slots
        if reads:
            assert s.recv(100).startswith(b"HTTP/1.1 200")
            s.close()
        priced.wait_until(lambda: priced.service.active == 0)
        priced.wait_until(lambda: scrape(priced.url)['cache_blocks{state="used"}'] == 0)
    m = scrape(priced.url)
    assert m['requests_total{outcome="gone"}'] == 1 and m['requests_total{outcome="ok"}'] == 0
    assert m["completion_tokens_total"] < 16 * 900


def test_a_histogram() -> None:
    h = Histogram((0.1, 1.0))
    for x in (0.05, 0.1, 0.5, 7.0):
        h.observe(x)
    assert list(h.lines("x")) == [
        'x_bucket{le="0.1"} 2',
        'x_bucket{le="1.0"} 3',
        'x_bucket{le="+Inf"} 4',
        "x_sum 7.65",
        "x_count 4",
    ]


def test_names_and_kinds_are_prometheus_own() -> None:
    """https://prometheus.io/docs/practices/naming: counters end in _total, units are base units and stand in the name."""
    lines = Metrics().render(Load(1, 2, 3, 10), 4, RATE).splitlines()
    kinds = dict(x.split()[2:] for x in lines if x.startswith("# TYPE "))
    helps = {x.split()[2]: x.split(maxsplit=3)[3] for x in lines if x.startswith("# HELP ")}
    assert kinds.keys() == helps.keys() and all(h.endswith((".", ").")) for h in helps.values())
    for name, kind in kinds.items():
        assert name.startswith("shoestring_") and (kind == "counter") == name.endswith("_total"), name
        assert (kind == "histogram") <= name.endswith("_seconds") and not name.endswith(("_ms", "_count", "_sum"))
        samples = [x for x in lines if x.startswith((name + " ", name + "{", name + "_bucket{"))]
        assert samples and lines.index(f"# TYPE {name} {kind}") == lines.index(samples[0]) - 1
        if kind == "histogram":
            bounds = [float(x.split('"')[1]) for x in samples]
            assert bounds == sorted(bounds) and bounds[-1] == float("inf") and f"{name}_sum 0.0" in lines


def test_a_large_counter_has_all_its_digits() -> None:
    m = Metrics()
    m.completion_tokens, m.answer_seconds = 12_345_678_901, 123_456_789.125
    text = m.render(Load(), 0, None)
    assert "shoestring_completion_tokens_total 12345678901\n" in text
    assert "shoestring_answer_machine_seconds_total 123456789.125\n" in text


def test_an_idle_server_and_small_money() -> None:
    text = Metrics().render(Load(1, 2, 3, 10), 4, None)
    assert 'shoestring_cache_blocks{state="free"} 7\n' in text and "shoestring_answers_active 4\n" in text
    assert plain(Decimal("0.000000123456789")) == "0.000000123457" and plain(Decimal(0)) == "0"
