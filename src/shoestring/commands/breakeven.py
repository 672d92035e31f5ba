"""`shoestring breakeven`: when a small model of one's own pays against prompting a priced API, and when own hardware does."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.commands._options import hourly, price_arguments, write
from shoestring.cost.decimals import MICRO
from shoestring.records import UserError

if TYPE_CHECKING:
    from shoestring.cost.assumptions import Value
    from shoestring.cost.prices import PriceBook
    from shoestring.estimate.rates import Rates
    from shoestring.plan import Plan
    from shoestring.records import Problem

MILLION = Decimal(1_000_000)
TOGETHER = 32  # answers that the serving machine decodes at once


def add(sub: Any) -> argparse.ArgumentParser:
    said = "when training a small model pays against prompting an API, and owning a machine against renting"
    c = sub.add_parser("breakeven", help=said, description=f"{said[0].upper()}{said[1:]}.")
    c.add_argument("recipe", nargs="?", type=Path, metavar="RECIPE", help="the recipe that would train the small model")
    c.add_argument("--queries", metavar="N/month", help="questions a month, such as 100000/month (also /day, /year)")
    c.add_argument("--model-price", metavar="CATALOGUE/MODEL", help="a priced API of the book (default: the median model)")
    price_arguments(c)
    c.add_argument("--tokens-in", type=int, metavar="N", help="tokens of a question (default: from the recipe's problems)")
    c.add_argument("--tokens-out", type=int, metavar="N", help="tokens of an answer (default: from the recipe)")
    c.add_argument("--rag-tokens", type=int, metavar="N", help="tokens of retrieved passages a question (default: 667 to 1333)")
    c.add_argument("--assumptions", type=Path, metavar="FILE", help="what only you know (TOML); --template writes an empty one")
    c.add_argument("--months", type=int, default=24, metavar="N", help="the horizon (default: 24)")
    c.add_argument("--own", type=Path, metavar="FILE", help="rent or buy: the total cost of a machine of your own (TOML)")
    c.add_argument("--template", type=Path, metavar="FILE", help="write a commented file of assumptions to fill in")
    c.add_argument("--own-template", type=Path, metavar="FILE", help="write one for --own")
    c.add_argument("--json", action="store_true", help="everything, as one JSON object")
    c.add_argument("--csv", action="store_true", help="the cash flow by month")
    c.add_argument("--html", type=Path, metavar="FILE", help="write a page with pictures")
    return c


def run(args: argparse.Namespace) -> int:
    from shoestring.commands.recipes import console

    if args.template or args.own_template:
        return _templates(args)
    if args.own is not None:
        if args.recipe is not None or args.queries or args.assumptions:
            raise UserError("breakeven: --own asks about hardware alone; leave the recipe, --queries and --assumptions away")
        data, title = own(args.own, args.prices, args.rate), f"Rent or buy: {args.own.stem}"
    else:
        if args.recipe is None:
            raise UserError("breakeven: give a recipe (or --own FILE for hardware, or --template FILE)")
        data = model(args)
        title = f"Train {data['recipe']} or prompt {data['api']['model']}"
    if args.html is not None:
        from shoestring.report import breakeven as picture

        write(args.html, picture.render(data, title), True)
        print(f"wrote {args.html}", file=sys.stderr)
    if args.json:
        print(json.dumps(data, indent=1, ensure_ascii=False))
    elif args.csv:
        print(_csv(data["cash_flow"]), end="")
    else:
        from shoestring.report import breakeven_text as words

        (words.print_own if args.own else words.print_breakeven)(data, console())
    return 0


def _templates(args: argparse.Namespace) -> int:
    from shoestring.cost import breakeven
    from shoestring.cost import own as hardware
    from shoestring.cost.assumptions import template

    for path, module in ((args.template, breakeven), (args.own_template, hardware)):
        if path is not None:
            write(path, template(module.KEYS, module.HEAD), False)
            print(f"wrote {path}")
    return 0


def _csv(rows: list[dict[str, Any]]) -> str:
    flat = [
        {k if not isinstance(v, dict) else f"{k}_{inner}": x for k, v in row.items()
         for inner, x in (v.items() if isinstance(v, dict) else [("", v)])}
        for row in rows
    ]  # fmt: skip
    out = io.StringIO()
    writer = csv.DictWriter(out, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _read(path: Path, keys: Any) -> tuple[dict[str, Value], dict[str, str]]:
    from shoestring.cost.assumptions import read

    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {(e.strerror or str(e)).lower()}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None
    return read(text, str(path), keys)


def _book(prices: Path | None, rate: str | None) -> PriceBook:
    from shoestring.cost.prices import PriceBook

    return PriceBook.default(prices, hourly(rate or None))


# rent or buy


def own(path: Path, prices: Path | None = None, rate: str | None = None) -> dict[str, Any]:
    """The answer about hardware as JSON."""
    from shoestring.cost import own as hardware
    from shoestring.cost.assumptions import exactly
    from shoestring.recipe import MachineSpec

    values, texts = _read(path, hardware.KEYS)
    if "rent.usd_per_gpu_hour" not in values and "rent.provider" in texts and "rent.sku" in texts:
        market = texts.get("rent.market", "on-demand")
        if market not in ("on-demand", "spot"):
            raise UserError(f"{path}: rent.market must be on-demand or spot, not {market!r}")
        book = _book(prices, rate)
        kind = MachineSpec("cloud", texts["rent.provider"], texts["rent.sku"], 1, texts.get("rent.region", ""), market)
        sku = book.machine_sku(kind)
        price, gpus = book.price(sku), book.machine_facts(sku).gpus
        if not gpus:
            raise UserError(f"{path}: {texts['rent.provider']} {texts['rent.sku']} has no GPU; give rent.usd_per_gpu_hour")
        note = f"{sku.removesuffix('/machine-second')}, {gpus} GPUs; {price.ref.source}, {price.ref.date}"
        each = (price.amount * 3600 / gpus).quantize(MICRO)
        values["rent.usd_per_gpu_hour"] = exactly(each, "literature", note)
    missing = [k for k in hardware.NEEDED if k not in values]
    if missing:
        said = ", ".join(f'"{k}"' for k in missing)
        hint = " (or rent.provider and rent.sku)" if "rent.usd_per_gpu_hour" in missing else ""
        raise UserError(f"{path}: missing {said}{hint}; --own-template FILE writes every key with an example")
    try:
        return hardware.to_dict(hardware.compare(values))
    except ValueError as e:
        raise UserError(f"{path}: {e}") from None


# train or prompt


def model(args: argparse.Namespace) -> dict[str, Any]:
    """The answer about a small model as JSON: what is not given by the user comes from the plan and the price book."""
    from shoestring import plan, recipe, stages
    from shoestring.cost import breakeven
    from shoestring.cost.assumptions import exactly

    if not 1 <= args.months <= breakeven.BEYOND:
        raise UserError(f"--months {args.months} must be from 1 to {breakeven.BEYOND}")
    for name in ("tokens_in", "tokens_out", "rag_tokens"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)} must be above zero")
    given, texts = _read(args.assumptions, breakeven.KEYS) if args.assumptions else ({}, {})
    if args.queries is not None:
        given["queries"] = _queries(args.queries)
    if "queries" not in given:
        raise UserError("breakeven: give --queries, such as --queries 100000/month")
    made = recipe.load(args.recipe, stages.configs(), [f'rate="{args.rate}"'] if args.rate else [])
    book = _book(args.prices, None)
    planned = plan.make(made, book, book.machine_sku(made.machine, made.rate))
    name, priced = _api(book, args.model_price or texts.get("api.model"), given)
    for key, option in (("tokens_in", args.tokens_in), ("tokens_out", args.tokens_out), ("rag.tokens", args.rag_tokens)):
        if option is not None:
            given[key] = exactly(Decimal(option))
    lengths = {**_tokens(planned, given), **given}
    values = {**_own_side(planned, book, lengths), **priced, **lengths}
    if name == "":  # the middle of the book, which depends on the tokens
        name, priced = _median(book, values["tokens_in"].mid, values["tokens_out"].mid)
        values = {**priced, **values}
    data = breakeven.to_dict(breakeven.compare(values, args.months))
    named = args.model_price or "api.model" in texts or "api.usd_per_mtok_in" in given
    chosen = "by you" if named else "the median price of a query in the book"
    return {"recipe": made.name, "api": {"model": name, "chosen": chosen}, **data}


def _queries(text: str) -> Value:
    """"100000/month" as a month's number; a bare number is a month's."""
    from shoestring.cost.assumptions import exactly

    match = re.fullmatch(r"\s*([\d_,.]+)\s*([kKmM]?)\s*(?:/\s*(day|month|year))?\s*", text)
    try:
        if match is None:
            raise InvalidOperation
        count = Decimal(match[1].replace(",", "").replace("_", ""))
    except InvalidOperation:
        raise UserError(f"--queries {text!r} is not a number such as 100000/month (or /day, /year)") from None
    count *= {"": 1, "k": 1000, "m": 1_000_000}[match[2].lower()]
    made = count * {"day": Decimal(365) / 12, "year": Decimal(1) / 12}.get(match[3] or "", Decimal(1))
    if made <= 0:
        raise UserError(f"--queries {text!r} must be above zero")
    return exactly(made, note="" if match[3] in (None, "month") else f"{text} over 12 months")


def _own_side(planned: Plan, book: PriceBook, lengths: Mapping[str, Value]) -> dict[str, Value]:
    """Training, the serving machine's price and its rates, from the plan."""
    from shoestring.cost.assumptions import Value, exactly

    budget, total = planned.recipe.budget, planned.total_usd()
    low, mid, high = (min(Decimal(repr(x)), budget) for x in (total.low, total.mid, total.high))
    note = "the plan" if high < budget else f"the plan, held under the recipe's budget of {budget} USD"
    rates, sku = _server(planned, book)
    price = book.price(sku)
    hour = (price.amount * 3600).quantize(MICRO)
    made = {
        "own.training": Value(low, mid, high, total.basis, note),
        "own.usd_per_hour": exactly(hour, "literature", f"{price.ref.source}, {price.ref.date}; {price.ref.note}"),
    }
    read, written = (float(lengths[k].mid) for k in ("tokens_in", "tokens_out"))
    million, note = 1e6, f"the planner's rate of {rates.where}, {TOGETHER} answers together"
    asked = {"decode": rates.decode(million, TOGETHER, read + written), "prefill": rates.prefill(million, read)}
    for key, q in asked.items():
        low, mid, high = (Decimal(repr(round(million / x, 6))) for x in (q.high, q.mid, q.low))
        made[f"own.{key}_tokens_per_second"] = Value(low, mid, high, q.basis, note)
    return made


def _server(planned: Plan, book: PriceBook) -> tuple[Rates, str]:
    """(rates, sku) of the machine that serves: this one, or, of a recipe that rents GPUs, the cheapest with that card whose
    memory holds the weights in bf16 and a quarter more; a cluster that trained a model is not what answers with it."""
    from shoestring.plan import rates_of
    from shoestring.recipe import MachineSpec

    facts = book.machine_facts(planned.machine)
    room = 1.25 * 2 * planned.shape.parameters() / 2**30
    fitting = [
        o for o in book.offers(gpu=facts.gpu, market="on-demand") if facts.gpu and o.facts.gpus * o.facts.gpu_memory_gib >= room
    ]
    if not fitting:
        return planned.rates, planned.machine
    best = min(fitting, key=lambda o: o.usd_per_hour)
    alone = replace(planned.recipe, machine=MachineSpec("cloud", best.facts.provider, best.facts.instance))
    return rates_of(alone, book, best.sku, planned.shape, planned.profile), best.sku


def _tokens(planned: Plan, given: Mapping[str, Value]) -> dict[str, Value]:
    """Lengths of question and answer where nobody gave them: from the recipe's own problems, and the passages of RAG."""
    from shoestring.cost.assumptions import Value

    out = {
        "rag.tokens": Value(Decimal(667), Decimal(1000), Decimal(1333), "literature",
                            "5 to 10 passages of 100 words (Lewis et al. 2020, section 2), 4/3 tokens a word"),
    }  # fmt: skip
    wanted = [k for k in ("tokens_in", "tokens_out") if k not in given]
    if not wanted:
        return out
    from shoestring.estimate import lengths

    config = next((t.config for t in reversed(planned.recipe.stages) if t.use == "evaluate"), None)
    if config is None:
        said = " and ".join(f"--{k.replace('_', '-')}" for k in wanted)
        raise UserError(f"breakeven: the recipe has no evaluate stage to measure questions by; give {said}")
    try:
        problems = _asked(config)
    except UserError as e:
        said = " and ".join(f"--{k.replace('_', '-')}" for k in wanted)
        raise UserError(f"{e}; or give {said}, and the problems are not read") from None
    asked = sorted(lengths.tokens(p.prompt) for p in problems)
    solved = sorted(lengths.tokens(p.solution) for p in problems if p.solution)
    note = f"{len(problems)} test problems of the recipe, counted without a tokenizer (within 10%)"
    if "tokens_in" in wanted:
        out["tokens_in"] = _spread(asked, note)
    if "tokens_out" in wanted and solved:
        out["tokens_out"] = _spread(solved, f"worked solutions of {note}")
    elif "tokens_out" in wanted:
        most = Decimal(config.max_new)
        said = f"the recipe lets an answer have {most}"
        out["tokens_out"] = Value(max(Decimal(1), most / 8), most / 2, most, "simulated", said)
    return out


def _asked(config: Any) -> list[Problem]:
    """What an evaluate stage asks: its unseen problems, and those of its benchmarks. UserError where they cannot be read."""
    from shoestring.stages import _evaluate_asks
    from shoestring.stages.workbench import load_problems

    found = load_problems(config.sources, "test") if config.sources else []
    return [*found, *(p for bench in _evaluate_asks.loaded(config) for p in bench.problems)]


def _spread(tokens: list[float], note: str) -> Value:
    """Mean, between the tenth and the ninetieth percentile, of sorted token counts."""
    from shoestring.cost.assumptions import Value

    low, high = (Decimal(max(1, round(tokens[int(q * (len(tokens) - 1))]))) for q in (0.1, 0.9))
    mid = Decimal(str(round(sum(tokens) / len(tokens), 1)))
    return Value(low, min(max(mid, low), high), high, "simulated", note)


def _api(book: PriceBook, wanted: str | None, given: Mapping[str, Value]) -> tuple[str, dict[str, Value]]:
    """(model, its prices); the name is empty where the book's median is to be taken."""
    keys = ("api.usd_per_mtok_in", "api.usd_per_mtok_out")
    own = [k for k in keys if k in given]
    if len(own) == 1:
        raise UserError(f"breakeven: {own[0]} is given alone; give both prices of the API, or --model-price")
    if len(own) == 2 and wanted is None:
        return "your API", {}
    if wanted is None:
        return "", {}
    name, mark, hours = wanted.removeprefix("teacher:").partition("@")
    if "/" not in name or f"teacher:{name}/in{mark}{hours}" not in book:
        found = sorted({s[8:-3] for s in book if s.startswith("teacher:") and s.endswith(f"/{name}/in")})
        if len(found) > 1:
            raise UserError(f"--model-price {wanted}: {', '.join(found)} are priced apart; name the catalogue too")
        name = found[0] if found else name
    return f"{name}{mark}{hours}", _model_price(book, name, mark + hours)


def _model_price(book: PriceBook, name: str, hours: str = "") -> dict[str, Value]:
    from shoestring.cost.assumptions import exactly

    made = {}
    for kind in ("in", "out"):
        price = book.price(f"teacher:{name}/{kind}{hours}")
        note = "; ".join(x for x in (f"{name}, {price.ref.source}, {price.ref.date}", price.ref.note) if x)
        made[f"api.usd_per_mtok_{kind}"] = exactly((price.amount * MILLION).quantize(MICRO), "literature", note)
    return made


def _median(book: PriceBook, read: Decimal, written: Decimal) -> tuple[str, dict[str, Value]]:
    """The model whose query costs the median of all that are priced; the note names the cheapest and the dearest."""
    from shoestring.cost.prices import UnknownPrice

    found: list[tuple[Decimal, str]] = []
    for sku in book:
        if sku.startswith("teacher:") and sku.endswith("/in"):
            try:
                each = [book.price(f"{sku[:-3]}/{kind}").amount for kind in ("in", "out")]
            except UnknownPrice:  # a class without a price, or with two
                continue
            found.append((read * each[0] + written * each[1], sku[8:-3]))
    if not found:
        raise UserError("breakeven: the price book has no API with both prices; give --model-price or your own --prices")
    found.sort()
    name = found[(len(found) - 1) // 2][1]
    made = _model_price(book, name)
    said = f"; the median of {len(found)} models, from {found[0][1]} to {found[-1][1]}; choose with --model-price"
    return name, {k: replace(v, note=v.note + said) for k, v in made.items()}
