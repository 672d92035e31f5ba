"""The user's own book: it goes first and says so, its mistakes are told with file and line, and it never crashes."""

from __future__ import annotations

import contextlib
import re
import tomllib
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoestring.cost import book as own
from shoestring.cost import writing
from shoestring.cost.funding import Credit, funding, parse
from shoestring.cost.price import UnknownPrice, per_hour
from shoestring.cost.prices import OWN_BOOK, PriceBook
from shoestring.cost.provisioned import egress_usages, storage_usage
from shoestring.cost.rows import MachineRow, TeacherRow
from shoestring.recipe import MachineSpec
from shoestring.records import UserError

WHOLE = """\
[book]
source = "contract 7"
date = "2026-11-01"

[this]
usd_per_hour = 0.25

[[machine]]
provider = "lambda"
instance = "gpu_8x_h100_sxm5"
region = "us-east-1"
gpu = "H100"
gpus = 8
gpu_memory_gib = 80
on_demand_usd_per_hour = 20.5
spot_usd_per_hour = "9"

[[machine]]
provider = "Office"
instance = "shelf"
on_demand_usd_per_hour = 0.05

[[teacher]]
catalogue = "litellm"
model = "o3"
in_usd_per_mtok = 1.5
out_batch_usd_per_mtok = 3

[[storage]]
provider = "aws"
kind = "ebs_gp3"
usd_per_gb_month = 0.06

[[egress]]
provider = "aws"
tiers = [{ up_to_gb = 100, usd_per_gb = 0.04 }, { usd_per_gb = 0.02 }]
date = "2026-10-01..2026-11-01"
"""


def book(tmp_path: Path, text: str, name: str = "mine.toml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_table_overrides_and_says_so(tmp_path: Path) -> None:
    made = PriceBook.default(book(tmp_path, WHOLE))
    (od,) = made.offers("H100", "on-demand", "lambda", "us-east-1")[-1:]
    cheap = next(
        o for o in made.offers(provider="lambda") if o.facts.instance == "gpu_8x_h100_sxm5" and o.facts.market == "on-demand"
    )
    assert cheap.usd_per_hour == Decimal("20.5") and od.ref.source
    assert cheap.ref.source == "own book mine.toml: contract 7" and cheap.ref.date == "2026-11-01"
    assert "in place of the shipped $31.92/h (skypilot-org/skypilot-catalog@" in cheap.ref.note
    sku = made.machine_sku(MachineSpec())
    assert sku == "this/machine-second" and per_hour(made.price(sku)) == Decimal("0.25")
    assert per_hour(made.price(made.machine_sku(MachineSpec(), Decimal("0.5")))) == Decimal(
        "0.5"
    )  # the recipe's rate goes first
    shelf = made.machine_facts(made.machine_sku(MachineSpec("cloud", "office", "shelf")))
    assert (shelf.gpu, shelf.gpus) == ("", 0) and made.offers()[-1].facts.instance == "shelf"
    assert made.price("teacher:litellm/o3/in").amount * 1_000_000 == Decimal("1.5")
    assert made.price("teacher:litellm/o3/out").amount * 1_000_000 == 8  # what the book leaves out still ships
    assert made.cost([storage_usage("aws", "ebs_gp3", 1, 730 * 3600, book=made)]) == Decimal("0.06")
    tiers = egress_usages("aws", 60_000, book=made)  # the shipped tiers are gone as a whole
    assert [u.sku for u in tiers] == ["egress:aws/0-100", "egress:aws/100-"]
    assert {c.what for c in made.conflicts() if c.kind == "own"} >= {cheap.sku, "storage:aws/ebs_gp3", "teacher:litellm/o3/in"}


def test_a_price_without_a_zone_holds_in_all_of_them(tmp_path: Path) -> None:
    text = """[[machine]]
provider = "aws"
instance = "p5.48xlarge"
region = "us-east-1"
gpu = "H100"
gpus = 8
spot_usd_per_hour = 12
source = "a contract"
date = "2026-11-01"
"""
    spec = MachineSpec("cloud", "aws", "p5.48xlarge", 1, "us-east-1", "spot")
    made = PriceBook.default(book(tmp_path, text))
    price = made.price(made.machine_sku(spec))
    assert per_hour(price) == 12 and re.search(r"in place of the shipped \$.*, \$.*, \$.* and \d more$", price.ref.note)
    assert len(made.offers("H100", "spot", "aws", "us-east-1")) == 1
    assert len(made.offers("H100", "spot", "aws", "us-west-2")) == len(
        PriceBook.default().offers("H100", "spot", "aws", "us-west-2")
    )
    everywhere = PriceBook.default(book(tmp_path, text.replace('region = "us-east-1"\n', "")))
    assert [o.usd_per_hour for o in everywhere.offers("H100", "spot", "aws") if o.facts.instance == "p5.48xlarge"] == [12]


def test_the_environment_names_it_and_the_argument_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWN_BOOK, str(book(tmp_path, WHOLE)))
    other = book(tmp_path, WHOLE.replace("0.25", "0.75"), "other.toml")
    for made, usd in ((PriceBook.default(), "0.25"), (PriceBook.default(other), "0.75")):
        assert per_hour(made.price(made.machine_sku(MachineSpec()))) == Decimal(usd)
    monkeypatch.setenv(OWN_BOOK, str(tmp_path / "none.toml"))
    with pytest.raises(UserError, match="none.toml: cannot be read: No such file"):
        PriceBook.default()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('gpu = "H100"', 'gpus_ = "H100"', r'mine.toml:12: unknown key "gpus_" in machine; did you mean "gpus"\?'),
        ("[[storage]]", "[[storge]]", r'mine.toml:29: unknown table "storge"; did you mean "storage"\?'),
        ("[[storage]]", "[storage]", r"mine.toml:29: storage must be written as \[\[storage\]\]"),
        ("= 20.5", "= 0", r"mine.toml:15: on_demand_usd_per_hour = 0 is not a price: leave an unknown one out"),
        ("= 20.5", "= nan", r"mine.toml:15: .* must be a number up to"),
        ("= 20.5", "= -1", r"mine.toml:15: .* must be a number up to"),
        ("= 20.5", "= 2e9", r"mine.toml:15: .* must be a number up to"),
        ("gpus = 8", "gpus = 0", r"mine.toml:8: give gpu and gpus together"),
        ("gpus = 8", "gpus = true", r"mine.toml:13: gpus must be a whole number"),
        ('date = "2026-11-01"', 'date = "2026-13-01"', r"mine.toml:3: date must be a day or an interval"),
        ('date = "2026-10-01..2026-11-01"', 'date = "2026-12-01..2026-11-01"', r"mine.toml:37: date must be"),
        ('source = "contract 7"', "", r"mine.toml:5: this has no source"),
        ('kind = "ebs_gp3"', "", r"mine.toml:29: storage needs kind"),
        ("{ up_to_gb = 100, ", "{ ", r"mine.toml:36: every tier but the last needs up_to_gb"),
        ("on_demand_usd_per_hour = 0.05", "", r"mine.toml:18: machine needs on_demand_usd_per_hour or spot_usd_per_hour"),
        ("usd_per_hour = 0.25", "usd_per_hour = ", r"mine.toml:6: this is not TOML"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_with_file_and_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in WHOLE
    with pytest.raises(UserError, match=said) as caught:
        PriceBook.default(book(tmp_path, WHOLE.replace(old, new, 1)))
    assert "\n" not in str(caught.value)


def test_two_prices_of_one_thing_in_a_book_are_refused(tmp_path: Path) -> None:
    twice = WHOLE + '\n[[machine]]\nprovider = "office"\ninstance = "shelf"\non_demand_usd_per_hour = 0.06\n'
    with pytest.raises(UserError, match=r'mine.toml:39: a second price for "office/shelf'):
        PriceBook.default(book(tmp_path, twice))
    twice = WHOLE + '\n[[teacher]]\ncatalogue = "litellm"\nmodel = "o3"\nin_usd_per_mtok = 2\n'
    with pytest.raises(UserError, match=r'mine.toml:39: a second price for the teacher "litellm/o3"'):
        PriceBook.default(book(tmp_path, twice))


def test_hours_of_a_teacher(tmp_path: Path) -> None:
    text = '[book]\nsource = "a"\ndate = "2026-01-01"\n' + "".join(
        f'[[teacher]]\nmodel = "m"\nin_usd_per_mtok = {usd}\n{hours}'
        for usd, hours in ((1, ""), (2, 'hours = "08:00Z-20:00Z"\n'))
    )
    made = PriceBook.default(book(tmp_path, text))
    assert made.price("teacher:own/m/in@20:00Z-08:00Z").amount * 1_000_000 == 1
    with pytest.raises(UnknownPrice, match="does not say which price"):
        made.price("teacher:own/m/in")


money = st.decimals(Decimal("0.000001"), 1000, allow_nan=False, places=6)
words = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="@"), min_size=1, max_size=12).filter(
    lambda s: s.strip() == s
)
machines = st.builds(
    MachineRow, provider=words.map(str.lower), instance=words, source=words, date=st.just("2026-01-01"), region=st.text("ab-1", max_size=5), zone=st.text("xyz", max_size=3),
    gpu=st.just("H100"), gpus=st.integers(1, 8), gpu_memory_gib=st.integers(1, 300).map(float), vcpus=st.integers(0, 200), memory_gib=st.integers(0, 2000).map(float),
    ondemand=money, spot=st.none() | money,
)  # fmt: skip
teachers = st.builds(
    TeacherRow, catalogue=words, model=words, source=words, date=st.just("2026-01-01"), usd=st.fixed_dictionaries({"in": money, "out": money, "cached": st.none() | money}), note=words
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(machines | teachers, min_size=1, max_size=6, unique_by=lambda r: (type(r), *((r.provider.lower(), r.instance, r.region, r.zone) if isinstance(r, MachineRow) else (r.catalogue, r.model)))))  # fmt: skip
def test_what_is_written_reads_back(tmp_path: Path, rows: list) -> None:
    """Slow twin: the rows' own prices, sku by sku. A name with "/" may meet another's; the book then says so."""
    want = [pair for row in rows for pair in row.prices()]
    path = tmp_path / "out.toml"
    path.unlink(missing_ok=True)
    writing.write(rows, path)
    tomllib.loads(path.read_text(encoding="utf-8"))
    try:
        got = own.read(path)
    except UserError as e:
        assert "a second price" in str(e) and len(dict(want)) < len(want)
        return
    assert {s: p.amount for s, p in got.items()} == {s: p.amount for s, p in want}
    assert all(got[s].machine == p.machine for s, p in want)
    only = [r for r in rows if isinstance(r, MachineRow)]
    if only:
        other = tmp_path / "out.csv"
        other.unlink(missing_ok=True)
        writing.write(only, other)
        assert {s: p.amount for s, p in own.read(other).items()} == {s: p.amount for r in only for s, p in r.prices()}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60), st.integers(0, len(WHOLE)), st.sampled_from([".toml", ".csv"]))
def test_any_text_is_a_book_or_a_user_error(tmp_path: Path, text: str, at: int, suffix: str) -> None:
    path = tmp_path / f"any{suffix}"
    for body in (text, WHOLE[:at] + text + WHOLE[at:]):
        path.write_bytes(body.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(UserError):
            assert all(p.amount > 0 for p in own.read(path).values())


def test_credits_pay_and_never_lower_the_cost() -> None:
    rows = funding(Decimal("3.2"), parse(["1 USD a grant", "5 USD"]))
    assert [(r.source, r.amount, r.left) for r in rows] == [
        ("a grant", 1, 0),
        ("credits", Decimal("2.2"), Decimal("2.8")),
        ("cash", 0, None),
    ]
    assert [r.amount for r in funding(Decimal(7), [])] == [7]
    for bad in ("0 USD", "-1 USD", "1", "ten USD", "1 USD cash"):
        with pytest.raises(UserError):
            parse(bad)
    with pytest.raises(UserError):
        funding(Decimal("-1"), [])


@given(st.decimals(0, 10**6, places=6), st.lists(st.decimals(Decimal("0.01"), 10**5, places=2), max_size=4))
def test_funding_sums_to_the_total(total: Decimal, amounts: list[Decimal]) -> None:
    rows = funding(total, [Credit(f"c{n}", a) for n, a in enumerate(amounts)])
    assert sum(r.amount for r in rows) == total and all(r.amount >= 0 for r in rows)
    assert rows[-1].amount == max(Decimal(0), total - sum(amounts))
