"""`shoestring serve` under load: time to the first token, between tokens, tokens a second, dollars a thousand answers.

    python -m benchmarks.serving                      the bundled SmolLM2-135M at 1, 4 and 16 clients, stored
    python -m benchmarks.serving --requests 2 --out /tmp/try.json      to see that it works
    python -m benchmarks.serving --write-docs         the table of docs/export.md from what is stored

A closed loop: so many clients, each of which asks again as soon as it has its answer, over HTTP on this machine, with
streaming. Answers all have the same length (the end of the turn is ignored), prompts are all different, and the clients'
own work (reading lines) goes on beside the server's. Only the standard library is needed besides what serves.
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmarks.protocol import say

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "benchmarks" / "results" / "serving.json"
DOCS = ROOT / "docs" / "export.md"
BEGIN, END = "<!-- table: made by `python -m benchmarks.serving --write-docs` -->", "<!-- end of the table -->"
MODEL = "smollm2-135m-instruct"
LEVELS = (1, 4, 16)
READY = 300.0  # seconds that a server may take to load


@dataclass(frozen=True)
class Answered:
    """One answer as its client saw it: seconds from the request to the first token, between tokens, and to the end."""

    first: float
    gaps: tuple[float, ...]
    seconds: float
    tokens: int


def main() -> int:
    args = arguments()
    if args.write_docs:
        write_docs(json.loads(STORED.read_text()))
        return 0
    from benchmarks.run import machine

    rate = machine_rate(args.rate)
    here = machine()
    with served(args.model) as port:
        ask(port, prompt(0), 8)  # the first answer pays for what is prepared once
        levels = [level(port, clients, max(args.requests, clients), args.tokens, rate) for clients in args.clients]
    result = {
        "date": datetime.date.today().isoformat(), "model": args.model, "basis": "measured", "machine": here,
        "loop": "closed", "tokens_per_answer": args.tokens, "rate": rate.about() if rate else None, "levels": levels,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(table(result)))
    return 1 if any(row["failed"] for row in levels) else 0


def arguments() -> argparse.Namespace:
    c = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.splitlines()[0] if __doc__ else "")
    c.add_argument("--model", default=MODEL)
    c.add_argument("--clients", type=int, nargs="+", default=list(LEVELS), metavar="N")
    c.add_argument("--requests", type=int, default=32, metavar="N", help="answers at each level, one a client at least")
    c.add_argument("--tokens", type=int, default=128, metavar="N", help="of each answer")
    c.add_argument("--rate", metavar="'0.10 USD/hour'", help="what an hour of this machine costs")
    c.add_argument("--out", type=Path, default=STORED)
    c.add_argument("--write-docs", action="store_true", help="only the table of docs/export.md, from what is stored")
    return c.parse_args()


def machine_rate(text: str | None) -> Any:
    from shoestring.commands._options import hourly
    from shoestring.commands.serve import machine_rate as of
    from shoestring.cost.prices import PriceBook

    return of(PriceBook.default(rate=hourly(text)))


@contextmanager
def served(model: str) -> Iterator[int]:
    """The port of a server of `model` in a process of its own."""
    command = [sys.executable, "-m", "shoestring.cli", "serve", model, "--port", "0"]
    with tempfile.TemporaryFile("w+") as errors:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if "http://" not in line:
                errors.seek(0)
                raise SystemExit(f"the server did not start: {errors.read()[-500:]}")
            port = int(line.rsplit(":", 1)[1].partition("/")[0])
            wait(port)
            yield port
        finally:
            server.terminate()
            server.wait(timeout=60)


def wait(port: int) -> None:
    ends = time.monotonic() + READY
    while time.monotonic() < ends:
        try:
            talk = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            talk.request("GET", "/v1/models")
            if talk.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"the server was not ready after {READY:.0f} s")


def prompt(i: int) -> str:
    """A story with a question, another for every request, so that no prompt is found in the cache."""
    from benchmarks.workload import story

    return story(random.Random(f"serving/{i}"), 3)[0]


def ask(port: int, text: str, tokens: int) -> Answered:
    """One streamed answer. Raises OSError or ValueError where the server gives none."""
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0, "stream": True,
            "ignore_eos": True, "return_token_ids": True}  # fmt: skip
    talk = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    began = time.perf_counter()
    talk.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    reply = talk.getresponse()
    if reply.status != 200:
        raise ValueError(f"HTTP {reply.status}: {reply.read()[:200]!r}")
    at: list[float] = []
    for raw in reply:
        now = time.perf_counter()
        line = raw.decode().strip()
        if line.startswith("data: {"):
            event = json.loads(line[6:])
            if "error" in event:
                raise ValueError(str(event["error"])[:200])
            at += [now] * sum(len(c.get("token_ids") or ()) for c in event["choices"])
        elif line == "data: [DONE]":
            break
    talk.close()
    if len(at) != tokens:
        raise ValueError(f"{len(at)} tokens of {tokens}")
    gaps = tuple(b - a for a, b in zip(at, at[1:], strict=False))
    return Answered(at[0] - began, gaps, time.perf_counter() - began, len(at))


def level(port: int, clients: int, requests: int, tokens: int, rate: Any) -> dict[str, Any]:
    """One number of clients. failed: answers that did not come whole; they are in no other figure."""
    done: list[Answered] = []
    faults: list[str] = []
    numbers = iter(range(clients * 1000, clients * 1000 + requests))
    lock = threading.Lock()

    def client() -> None:
        while True:
            with lock:
                i = next(numbers, None)
            if i is None:
                return
            try:
                answered = ask(port, prompt(i), tokens)
            except (OSError, ValueError, http.client.HTTPException) as e:
                with lock:
                    faults.append(str(e))
                continue
            with lock:
                done.append(answered)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    began = time.perf_counter()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    row = figures(done, time.perf_counter() - began, clients)
    row |= {"failed": len(faults), "fault": faults[0] if faults else None}
    row["usd_per_1000_answers"] = dollars(row["seconds"], len(done), rate)
    say(f"{clients} clients: {json.dumps(row)}")
    return row


def figures(done: Sequence[Answered], seconds: float, clients: int) -> dict[str, Any]:
    """Percentiles over all answers, and over all gaps of all answers. None where nothing was measured."""
    firsts, gaps = [a.first for a in done], [g for a in done for g in a.gaps]
    tokens = sum(a.tokens for a in done)
    return {
        "clients": clients, "answers": len(done), "seconds": round(seconds, 3),
        "first_token_p50": percentile(firsts, 50), "first_token_p95": percentile(firsts, 95),
        "between_tokens_p50": percentile(gaps, 50), "between_tokens_p95": percentile(gaps, 95),
        "tokens_per_second": round(tokens / seconds, 2) if tokens else None,
    }  # fmt: skip


def percentile(values: Sequence[float], share: int) -> float | None:
    """Linear between the neighbours (as numpy's default), in seconds."""
    if len(values) < 2:
        return round(values[0], 5) if values else None
    return round(statistics.quantiles(values, n=100, method="inclusive")[share - 1], 5)


def dollars(seconds: float, answers: int, rate: Any) -> str | None:
    """The machine for that time, shared by the answers, times a thousand."""
    if rate is None or not answers:
        return None
    return f"{Decimal(f'{rate.usd(seconds) * 1000 / answers:.4g}'):f}"


def table(result: Mapping[str, Any]) -> list[str]:
    """Milliseconds and dollars, one row a level, and what was measured where."""
    rate, here = result["rate"], result["machine"]
    lines = [
        "| clients | answers | first token, p50 | p95 | between tokens, p50 | p95 | tokens/s | USD a thousand answers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in result["levels"]:
        cells = [f"{r[k] * 1000:.0f} ms" if r[k] is not None else "–" for k in
                 ("first_token_p50", "first_token_p95", "between_tokens_p50", "between_tokens_p95")]  # fmt: skip
        speed = f"{r['tokens_per_second']:.0f}" if r["tokens_per_second"] else "–"
        ends = [speed, r["usd_per_1000_answers"] or "unknown"]
        lines.append(f"| {' | '.join([str(r['clients']), str(r['answers']), *cells, *ends])} |")
    priced = f"{rate['usd_per_hour']} USD an hour ({rate['basis']}, {rate['source']})" if rate else "no price for this machine"
    told = ", ".join(f"{k} {v}" for k, v in here.items())
    return [
        *lines, "",
        f"Measured {result['date']}: {result['model']}, answers of {result['tokens_per_answer']} tokens, a closed loop of "
        f"streaming clients on the server's own machine ({told}); {priced}.",
    ]  # fmt: skip


def write_docs(result: Mapping[str, Any], page: Path = DOCS) -> None:
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{page}: the marks of the table are missing")
    page.write_text(before + "\n".join([BEGIN, "", *table(result), "", END]) + after)


if __name__ == "__main__":
    raise SystemExit(main())
