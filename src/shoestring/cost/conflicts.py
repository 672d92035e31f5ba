"""The same thing at two prices. Nothing is picked here: every price stands with its source and date."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shoestring.cost.price import Conflict, Price
from shoestring.records import LEASE

# one company under two catalogues' names
_COMPANIES = {"gemini": "google", "moonshot": "moonshotai", "zai": "zhipuai", "bedrock_converse": "aws", "azure_ai": "azure"}


def find(
    prices: Mapping[str, Price], clashes: Mapping[str, tuple[Price, ...]], replaced: Mapping[str, tuple[Price, ...]]
) -> list[Conflict]:
    """`clashes`: skus that sources gave different prices; `replaced`: what the user's book took the place of."""
    found = [Conflict("sources", sku, tuple((sku, p) for p in several)) for sku, several in clashes.items()]
    found += [
        Conflict("own", sku, ((sku, prices[sku]), *((sku, p) for p in old)))
        for sku, old in replaced.items()
        if any(p.amount != prices[sku].amount for p in old)
    ]
    found += _teachers(prices)
    found += _dates(prices)
    return sorted(found, key=lambda c: (c.kind, c.what))


def _teachers(prices: Mapping[str, Price]) -> Iterable[Conflict]:
    """By the hour and by date within a catalogue; between catalogues the same model of the same provider."""
    same: dict[tuple[str, str], list[tuple[str, Price]]] = {}
    models: dict[tuple[str, str, str], list[tuple[str, Price]]] = {}
    for sku, price in prices.items():
        if not sku.startswith("teacher:"):
            continue
        bare, _, when = sku.partition("@")
        kind = "date" if when.startswith("before-") else "hours" if when else ""
        same.setdefault((bare, "" if kind == "date" else "now"), []).append((sku, price))
        if kind == "date":
            continue
        head, _, token = bare.rpartition("/")
        model = head.rpartition("/")[2].lower()
        models.setdefault((_company(price), model, token), []).append((sku, price))
    for (bare, when), several in same.items():
        if when and _differ(several):
            yield Conflict("hours", bare, tuple(several))
        elif not when and _differ([*same.get((bare, "now"), ()), *several]):
            yield Conflict("date", bare, (*same.get((bare, "now"), ()), *several))
    for (company, model, token), several in models.items():
        if len({sku.partition("/")[0] for sku, _ in several}) > 1 and _differ(several):
            yield Conflict("sources", f"{company} {model} {token}", tuple(several))


def _company(price: Price) -> str:
    name = price.ref.note.partition(";")[0].removeprefix("provider ").lower()
    return _COMPANIES.get(name, name)


def _dates(prices: Mapping[str, Price]) -> Iterable[Conflict]:
    """A machine's price of another date beside today's of the same provider, GPU and count, where they differ."""
    today: dict[tuple[str, str, int], list[tuple[str, Price]]] = {}
    for sku, price in prices.items():
        if (facts := price.machine) and sku.endswith(LEASE) and facts.market == "on-demand" and "@" not in facts.provider:
            today.setdefault((facts.provider, facts.gpu, facts.gpus), []).append((sku, price))
    for sku, price in prices.items():
        facts = price.machine
        if facts is None or "@" not in facts.provider:
            continue
        now = today.get((facts.provider.partition("@")[0], facts.gpu, facts.gpus), [])
        same = [pair for pair in now if facts.instance in (_machine(pair)) and facts.region in ("", _region(pair))]
        shown = same or now
        if shown and _differ([(sku, price), *shown]):
            distinct = {p.amount: (s, p) for s, p in reversed(shown)}
            yield Conflict("date", sku.rpartition("/")[0], ((sku, price), *distinct.values()))


def _machine(pair: tuple[str, Price]) -> str:
    return pair[1].machine.instance if pair[1].machine else ""


def _region(pair: tuple[str, Price]) -> str:
    return pair[1].machine.region if pair[1].machine else ""


def _differ(several: Iterable[tuple[str, Price]]) -> bool:
    return len({p.amount for _, p in several}) > 1
