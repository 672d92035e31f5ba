"""Rows of a data set on the Hugging Face hub, streamed: nothing is written but the library's own cache."""

from __future__ import annotations

import contextlib
import http
import re
import socket
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shoestring.data.sources._files import SUFFIXES, Row
from shoestring.records import UserError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SAID = 200  # letters of what the library says: its list of configs and splits fits, the page of help after it does not


def is_id(text: str) -> bool:
    """Whether `text` names a data set on the hub ("org/name", "org/name?config=main&split=test"); a file that exists, or its
    suffix, says otherwise."""
    name = text.partition("?")[0]
    named = name.lower().removesuffix(".gz").endswith(SUFFIXES) or name.endswith(".gz")
    local = not _ID.fullmatch(name) or named or Path(text).exists() or Path(name).exists()
    return not local and not Path(name).parent.is_dir()


def _module(name: str) -> Any:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(f"data set {name!r}: reading from the hub needs datasets: pip install 'shoestring[hub]'") from None
    datasets.disable_progress_bars()
    return datasets


def _reached(address: str) -> bool:
    """Whether the address has a number here; behind a proxy, which knows more names than we do, it is taken for reached."""
    from urllib.request import getproxies, proxy_bypass  # some 40 ms, and `plan` never asks a hub

    parts = urllib.parse.urlsplit(address)
    host = parts.hostname or ""
    if parts.scheme in getproxies() and not proxy_bypass(host):
        return True
    try:
        socket.getaddrinfo(host, parts.port or 443)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _asking(module: Any, name: str) -> Iterator[None]:
    """Where the hub has no address its library would ask for it six times, 24 s in all (measured): it is told to look into
    its cache alone. What it raises leaves as a UserError of one line."""
    from huggingface_hub import constants

    places: tuple[Any, ...] = (constants, module.config) if hasattr(module, "config") else (constants,)
    before = [p.HF_HUB_OFFLINE for p in places]
    away = not constants.HF_HUB_OFFLINE and not _reached(constants.ENDPOINT)
    try:
        if away:
            for p in places:
                p.HF_HUB_OFFLINE = True
        yield
    except Exception as error:  # the library raises many kinds; each means that there are no rows
        raise _failed(name, error, constants.ENDPOINT if away else "") from None
    finally:
        for p, value in zip(places, before, strict=True):
            p.HF_HUB_OFFLINE = value


def _failed(name: str, error: Exception, away: str = "", read: int | None = None) -> UserError:
    """away: the hub's address, where there is no way to it. read: rows that came before the error; None before the first."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:SAID]}"
    local = "give a file that is on this machine"
    begun = f"data set {name!r}: cannot be read from the hub{f' after row {read}' if read else ''}"
    if away:
        return UserError(
            f"{begun} ({said}); {away} cannot be reached from here, and the data set is not in the cache: "
            f"check the network, or {local}"
        )
    status, silent = _answered(error)
    if status in (401, 403) or type(error).__name__ == "DatasetNotFoundError":
        return UserError(
            f"{begun} ({f'HTTP {status}' if status else said}): there is no such data set, or it is private or gated: check "
            f"the id, or ask for access on its page and put your token into HF_TOKEN, or {local}"
        )
    if status == 429:
        return UserError(f"{begun} (HTTP 429: too many requests): try again later, with a token in HF_TOKEN, or {local}")
    if status >= 500:
        why = http.HTTPStatus(status).phrase if status in set(http.HTTPStatus) else "a fault of the hub's"
        return UserError(f"{begun} (HTTP {status}: {why}): it is not your data set's fault; try again later, or {local}")
    if silent:
        asked = "check the network (and HF_HUB_OFFLINE), try again later"
        return UserError(f"{begun} ({silent}): it was not reached: {asked}, or {local}")
    if read is not None:
        return UserError(f"{begun} ({said}): a file of it is broken, or its rows differ; {local}")
    return UserError(f"{begun} ({said}); check the id, config and split, or {local}")


def _answered(error: BaseException) -> tuple[int, str]:
    """The HTTP status of the refusal that an error stems from (0: none), and what the connection says where nothing was
    answered. The library raises other errors in their place ("couldn't find any data file at ..."): the causes are asked."""
    silent = ""
    left, met = [error], set[int]()
    while left:
        e = left.pop(0)
        if id(e) in met:
            continue
        met.add(id(e))
        status = getattr(getattr(e, "response", None), "status_code", 0)
        if status in (401, 403, 429) or status >= 500:
            return status, ""
        if isinstance(e, ConnectionError) or type(e).__module__.partition(".")[0] in ("httpx", "httpx2"):
            silent = silent or f"{type(e).__name__}: {' '.join(str(e).split())[:SAID]}"
        left += [c for c in (e.__cause__, e.__context__) if c is not None]
    return 0, silent


def _licence(name: str, stream: Any) -> str:
    """The licence that the data set's card states, "" where it states none. The library does not hand it on, but has just
    put the card into its cache: the hub is not asked again."""
    from huggingface_hub import metadata_load, try_to_load_from_cache

    card: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # a card that cannot be read states no licence; the rows are what was asked for
        path = try_to_load_from_cache(name, "README.md", repo_type="dataset")
        card = (metadata_load(path) if isinstance(path, str) else None) or {}
    stated = card.get("license") or getattr(getattr(stream, "info", None), "license", "") or ""
    if stated == "other":  # the card then says what it is called
        stated = card.get("license_name") or stated
    return ", ".join(map(str, stated)) if isinstance(stated, list) else str(stated)


def _asked(spec: str, split: str, config: str) -> tuple[str, str, str]:
    """The id, split and config of "org/name?config=main&split=test"; what the query says counts."""
    name, _, query = spec.partition("?")
    given = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    split, config = given.pop("split", split), given.pop("config", config)
    if given:
        raise UserError(f"{spec}: only split and config may follow '?' here, not {next(iter(given))!r}")
    return name, split, config


def rows(name: str, split: str = "train", config: str = "") -> Iterator[Row]:
    """The rows of one split in the hub's order, with "org/name:N" as their place. What a row states of its own source and
    licence (or "license") counts; else they are the data set's id and its card's. Raises UserError (one line) where the
    library is missing, or the hub cannot be reached, or does not know the id, config or split."""
    name, split, config = _asked(name, split, config)
    module = _module(name)
    with _asking(module, name):
        stream = module.load_dataset(name, config or None, split=split, streaming=True)
    return _rows(name, stream, _licence(name, stream))


def _rows(name: str, stream: Any, licence: str) -> Iterator[Row]:
    number = 0
    try:
        for number, data in enumerate(stream, 1):
            own = data.get("license")
            facts = {"source": name, "licence": own if own and isinstance(own, str) else licence}
            yield Row(f"{name}:{number}", facts | {k: v for k, v in data.items() if k not in facts or v not in (None, "")})
    except Exception as error:
        raise _failed(name, error, read=number) from None


def count(name: str, split: str = "train", config: str = "") -> int | None:
    """How many rows the hub states for a split; None where it states none."""
    name, split, config = _asked(name, split, config)
    module = _module(name)
    with _asking(module, name):
        splits = module.load_dataset_builder(name, config or None).info.splits or {}
    return int(splits[split].num_examples) if split in splits and splits[split].num_examples else None
