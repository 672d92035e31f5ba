"""The ledger among processes: killed at any instant, shared by two, forked, orphaned. Nothing is lost and nothing doubles."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shoestring.cost.ledger import Ledger
from shoestring.records import Usage

SKU = "x/machine-second"


def seconds(n: float) -> Usage:
    return Usage(SKU, n, "second", "sft")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # the disk is not what is tested here


WRITER = """
import sys, time
from shoestring.cost.ledger import Ledger
from shoestring.records import Intent, Usage
ledger = Ledger.open(sys.argv[1])
ledger.begin(sys.argv[2])
n = 0
while True:
    u = Usage("x/machine-second", 1.0, "second", "sft", attempt=sys.argv[2])
    held = ledger.reserve(Intent("sft", n, (u,)), lambda s: True, sys.argv[2])
    ledger.release(held, [u, Usage("note", float(n), "second", "sft")])
    n += 1
    print(n, flush=True)
"""


def test_kill_9_at_random_instants(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    rng = random.Random(7)
    told = 0
    for attempt in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), f"a{attempt}"], stdout=subprocess.PIPE)
        assert writer.stdout and writer.stdout.readline() == b"1\n"
        time.sleep(rng.uniform(0, 0.12))
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split(b"\n")
        writer.wait()
        count = max([1, *(int(x) for x in rest[:-1] if x)])
        told += count
        with Ledger.open(path) as ledger:
            open_before = len(ledger.open_reservations())
            assert open_before <= 1
            assert len(ledger.recover()) == open_before
            mine = [u for u in ledger.usages() if u.attempt == f"a{attempt}" and u.outcome == "useful"]
            assert count <= len(mine) <= count + 1  # all that was acknowledged, at most one that was not yet
            assert ledger.open_reservations() == []
            ledger.verify()
    assert told >= 5


def _append(path: Path, who: str, n: int) -> None:
    ledger = Ledger.open(path)
    for i in range(n):
        ledger.post(Usage(SKU, float(i), "second", who))


def test_two_processes_do_not_interleave(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    mine = Ledger.open(path)
    workers = [multiprocessing.get_context("fork").Process(target=_append, args=(path, w, 60)) for w in ("a", "b")]
    for w in workers:
        w.start()
    for i in range(30):
        mine.post(seconds(i))
    for w in workers:
        w.join(60)
        assert w.exitcode == 0
    assert mine.verify() == 150
    for who, n in (("a", 60), ("b", 60), ("sft", 30)):
        assert [u.quantity for u in mine.usages() if u.stage == who] == list(range(n))


def _forked(ledger: Ledger, n: int) -> None:
    for _ in range(n):
        ledger.post(seconds(1))


def test_a_forked_child_gets_a_lock_of_its_own(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.jsonl")
    child = multiprocessing.get_context("fork").Process(target=_forked, args=(ledger, 80))
    child.start()
    _forked(ledger, 80)
    child.join(60)
    assert child.exitcode == 0 and ledger.verify() == 160


ORPHAN = """
import os, sys, time
from shoestring.cost.ledger import Ledger
ledger = Ledger.open(sys.argv[1])
with ledger._locked():
    if not os.fork():
        os.close(1)
        time.sleep(20)
        os._exit(0)
    print("locked", flush=True)
    time.sleep(20)
"""


def test_a_child_that_outlives_its_killed_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN, str(path)], stdout=subprocess.PIPE, start_new_session=True)
    done = multiprocessing.get_context("fork").Process(target=_append, args=(path, "a", 1))
    try:
        assert parent.stdout and parent.stdout.readline() == b"locked\n"
        time.sleep(0.2)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        done.start()
        done.join(5)
        assert done.exitcode == 0, "the lock is still held"
    finally:
        os.killpg(parent.pid, signal.SIGKILL)  # the group of this test's own two processes
        if done.is_alive():
            done.kill()
