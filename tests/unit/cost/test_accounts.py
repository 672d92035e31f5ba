"""Double entry over the ledger: every line balances, a lease is all attributed or idle, corrections are reversals."""

from __future__ import annotations

import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.cost import bill
from shoestring.cost.accounts import ACCOUNTS, balances, journal, lease_of, unbalanced
from shoestring.cost.beside import Beside
from shoestring.cost.budget import Budget
from shoestring.cost.ledger import Ledger, LedgerError
from shoestring.cost.prices import Price, PriceBook, UnknownPrice
from shoestring.records import OUTCOMES, Intent, PriceRef, Usage
from shoestring.terms import Egress, Storage, Terms

SKU, TOKENS = "x/machine-second", "teacher:a/b/out"
REF = PriceRef("a test", "2026-01-01")
BOOK = PriceBook([
    (SKU, Price(Decimal("0.01"), "second", REF)), (TOKENS, Price(Decimal("0.001"), "token", REF)),
    ("storage:x/disk", Price(Decimal("0.1"), "gb-month", REF)),
    ("egress:x/1-100", Price(Decimal("0.09"), "gb", REF)), ("egress:x/100-", Price(Decimal("0.05"), "gb", REF)),
])  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def seconds(n: float, outcome: Any = "useful", start: float = 0.0, attempt: str = "a1") -> Usage:
    return Usage(SKU, n, "second", "sft", attempt, start, start + n, outcome)


def ended(path: Path, *usages: Usage, lease: float = 30.0) -> Ledger:
    ledger = Ledger.open(path)
    ledger.begin("a1", lease_start=1000.0)
    for u in usages:
        ledger.post(u)
    ledger.end("a1", "done", lease_end=1000.0 + lease)
    return ledger


def test_the_lease_account_closes_at_zero(tmp_path: Path) -> None:
    ledger = ended(tmp_path / "ledger.jsonl", seconds(20, "useful", 1000), seconds(10, "idle", 1020), Usage(TOKENS, 7, "token", "sft"))
    assert ledger.verify() == 5
    found = balances(journal(ledger.state))
    assert found == {
        ("useful", "second"): 20, ("idle", "second"): 10, ("lease", "second"): 0, ("provider", "second"): -30,
        ("useful", "token"): 7, ("teacher", "token"): -7,
    }  # fmt: skip
    assert lease_of(ledger.state, "a1") == (20, 10) and {a for a, _ in found} <= set(ACCOUNTS)


@pytest.mark.parametrize(
    ("usages", "says"),
    [
        ([seconds(20, "useful", 1000)], "20.000 s attributed + 0.000 s idle are not the 30.000 s"),
        ([seconds(20, "useful", 1000), seconds(11, "idle", 1020)], "11.000 s idle are not"),
        ([seconds(20, "useful", 1000), seconds(10, "idle", 1015)], "5.000 s of its lease are posted twice"),
    ],
)  # fmt: skip
def test_verify_names_what_is_lost_or_doubled(tmp_path: Path, usages: list[Usage], says: str) -> None:
    ledger = ended(tmp_path / "ledger.jsonl", *usages)
    with pytest.raises(LedgerError, match=re.escape(says)):
        ledger.verify()


def test_a_lease_that_runs_or_says_no_end_is_not_judged(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.jsonl")
    ledger.begin("a1", lease_start=1000.0)
    ledger.post(seconds(5))
    assert ledger.verify() == 2
    ledger.end("a1", "done")  # as ledgers of older runs have it
    assert ledger.verify() == 3 and unbalanced(ledger.state) == []


def test_a_reversed_usage_no_longer_counts(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger.open(path)
    other = Ledger.open(path)
    budget = Budget(Decimal(10), BOOK, other)
    ledger.post(seconds(100, attempt=""))
    wrong = ledger.post(Usage(TOKENS, 2000, "token", "distill")).seq
    assert budget.accrued() == 3
    line = ledger.reverse(wrong, "the invoice says 200", [Usage(TOKENS, 200, "token", "distill")])
    assert line.kind == "reversal" and budget.accrued() == Decimal("1.2"), "another process on the ledger sees it too"
    assert bill.price(Ledger.read(path).usages, BOOK, Decimal(10)).marginal == "1.200000"
    assert balances(journal(ledger.state))[("teacher", "token")] == -200
    again = ledger.reverse(line.seq, "it was not even that")  # what stands in its place can be taken back in turn
    assert budget.accrued() == 1 and [u.sku for u in Ledger.open(path).usages()] == [SKU]
    whole = path.read_bytes()
    for seq, says in ((wrong, "taken back already"), (line.seq, "taken back already"), (99, "posted no usage"), (again.seq, "posted no usage")):
        with pytest.raises(LedgerError, match=says):
            ledger.reverse(seq, "once more")
    with pytest.raises(LedgerError, match="needs a reason"):
        ledger.reverse(1, " ")
    with pytest.raises(ValueError, match="takes back line 2"):
        ledger.append("reversal", {"seq": 2, "reason": "by hand", "usages": []})
    assert path.read_bytes() == whole and ledger.verify() == 4


def test_an_outcome_is_corrected_without_touching_the_lease(tmp_path: Path) -> None:
    ledger = ended(tmp_path / "ledger.jsonl", seconds(20, "useful", 1000), seconds(10, "idle", 1020))
    ledger.reverse(2, "the step was discarded", [seconds(20, "discarded", 1000)])
    assert ledger.verify() == 5
    ledger.reverse(3, "a mistake")
    with pytest.raises(LedgerError, match="are not the 30.000 s"):
        ledger.verify()


def test_a_release_is_reversed_whole(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.jsonl")
    held = ledger.reserve(Intent("sft", 1, (seconds(9),)), lambda s: True)
    assert held
    seq = ledger.release(held, [seconds(4), Usage(TOKENS, 3, "token", "sft")]).seq
    with pytest.raises(LedgerError, match="posted no usage"):
        ledger.reverse(1, "a reservation posts nothing")
    ledger.reverse(seq, "both")
    assert ledger.usages() == [] and not any(balances(journal(ledger.state)).values())


OPS = st.lists(
    st.tuples(
        st.sampled_from(["post", "release", "reverse", "replace", "reopen"]), st.integers(0, 10**9).map(lambda n: n / 1000), st.integers(0, 50),
        st.sampled_from(OUTCOMES),
    ),
    max_size=25,
)  # fmt: skip


@given(OPS)
@settings(max_examples=30, deadline=None)
def test_any_history_balances(tmp_path_factory: pytest.TempPathFactory, ops: list[tuple[str, float, int, Any]]) -> None:
    """Against a model that keeps what counts in a dictionary."""
    path = tmp_path_factory.mktemp("ops") / "ledger.jsonl"
    ledger = Ledger.open(path)
    budget = Budget(Decimal(10**12), BOOK, ledger)
    counts: dict[int, list[Usage]] = {}
    for op, amount, pick, outcome in ops:
        used = [seconds(amount, outcome, attempt=""), Usage(TOKENS, float(pick), "token", "sft", outcome=outcome)]
        if op == "post":
            counts[ledger.post(used[0]).seq] = used[:1]
        elif op == "release":
            held = ledger.reserve(Intent("sft", 1, tuple(used)), lambda s: True)
            assert held
            counts[ledger.release(held, used).seq] = used
        elif op in ("reverse", "replace") and counts:
            seq = sorted(counts)[pick % len(counts)]
            del counts[seq]
            new = used if op == "replace" else []
            line = ledger.reverse(seq, "because", new)
            if new:
                counts[line.seq] = new
        elif op == "reopen":
            ledger = Ledger.open(path)
            budget.ledger = ledger
        expected = [u for seq in sorted(counts) for u in counts[seq]]
        assert sorted(map(repr, ledger.usages())) == sorted(map(repr, expected))
        assert budget.accrued() == BOOK.cost(expected)
        postings = list(journal(ledger.state))
        by_line: dict[tuple[int, str], Decimal] = {}
        for p in postings:
            assert p.debit >= 0 and p.credit >= 0 and not (p.debit and p.credit)
            key = (p.seq, p.unit)
            by_line[key] = by_line.get(key, Decimal(0)) + p.debit - p.credit
        assert not any(by_line.values()), "every line's debits equal its credits"
        found = balances(postings)
        for name in OUTCOMES:
            mine = BOOK.cost([u for u in expected if u.outcome == name and u.sku == SKU])
            assert found.get((name, "second"), Decimal(0)) / 100 == mine
    ledger.verify()


def test_storage_runs_with_the_lease_and_egress_has_slices() -> None:
    beside = Beside.of(Terms(storage=Storage("X", "disk", 730.0), egress=Egress("x", 150.0)), BOOK)
    (disk,) = beside.during(Usage(SKU, 3600.0, "second", "sft", "a", 5.0, 3605.0, "idle"))
    assert (disk.sku, disk.unit, disk.quantity, disk.outcome, disk.start, disk.end) == ("storage:x/disk", "gb-month", 1.0, "idle", 5.0, 3605.0)
    out = {u.sku: u.quantity for u in beside.out("export", "a", 9.0)}
    assert out == {"egress:x/1-100": 100.0, "egress:x/100-": 50.0}, "the GB that a catalogue calls free is as dear as the next"
    assert Beside.of(Terms(), BOOK) == Beside() and Beside().during(seconds(5)) == []
    for terms in (Terms(storage=Storage("x", "tape", 1.0)), Terms(egress=Egress("y", 1.0))):
        with pytest.raises(UnknownPrice):
            Beside.of(terms, BOOK)


def test_others_need_their_reserve_too(tmp_path: Path) -> None:
    """What one attempt keeps for stopping is not there for another, between its reservations too, until it ends."""
    path = tmp_path / "ledger.jsonl"
    one, two = (Budget(Decimal(1), BOOK, Ledger.open(path)) for _ in range(2))
    held = one.reserve(Intent("sft", 1, (seconds(10),)), [seconds(40)], attempt="a")
    assert held
    one.ledger.release(held, [seconds(10)])
    assert two.spare([], "b") == Decimal("0.5") and one.spare([seconds(40)], "a") == Decimal("0.5")
    assert two.reserve(Intent("sft", 1, (seconds(60),)), attempt="b") is None
    assert two.reserve(Intent("sft", 1, (seconds(45),)), [seconds(5)], attempt="b")
    one.ledger.end("a", "budget")
    assert two.spare([], "b") == Decimal("0.9")
