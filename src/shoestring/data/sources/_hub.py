"""Rows of a data set on the Hugging Face hub, streamed: nothing is written but the library's own cache."""

from __future__ import annotations

import contextlib
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shoestring.data.sources._files import SUFFIXES, Row
from shoestring.records import UserError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_id(text: str) -> bool:
    """Whether `text` names a data set on the hub ("org/name"); a file that exists, or its suffix, says otherwise."""
    named = text.lower().removesuffix(".gz").endswith(SUFFIXES) or text.endswith(".gz")
    return bool(_ID.fullmatch(text)) and not named and not Path(text).exists() and not Path(text).parent.is_dir()


def _module(name: str) -> Any:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(f"data set {name!r}: reading from the hub needs datasets: pip install 'shoestring[hub]'") from None
    datasets.disable_progress_bars()
    return datasets


def _reached(address: str) -> bool:
    """Whether the address has a number here; behind a proxy, which knows more names than we do, it is taken for reached."""
    parts = urllib.parse.urlsplit(address)
    host = parts.hostname or ""
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
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


def _failed(name: str, error: Exception, away: str = "") -> UserError:
    """away: the hub's address, where there is no way to it."""
    said = " ".join(str(error).split())[:140]
    if away:
        return UserError(
            f"data set {name!r}: cannot be read from the hub ({type(error).__name__}: {said}); {away} cannot be reached from "
            "here, and the data set is not in the cache: check the network, or give a file that is on this machine"
        )
    return UserError(
        f"data set {name!r}: cannot be read from the hub ({type(error).__name__}: {said}); "
        "check the id, config and split, or give a file that is on this machine"
    )


def rows(name: str, split: str = "train", config: str = "") -> Iterator[Row]:
    """The rows of one split in the hub's order, with "org/name:N" as their place. Raises UserError (one line) where the
    library is missing, or the hub cannot be reached, or does not know the id, config or split."""
    module = _module(name)
    with _asking(module, name):
        stream = module.load_dataset(name, config or None, split=split, streaming=True)
    licence = str(getattr(getattr(stream, "info", None), "license", "") or "")
    return _rows(name, stream, licence)


def _rows(name: str, stream: Any, licence: str) -> Iterator[Row]:
    try:
        for number, data in enumerate(stream, 1):
            yield Row(f"{name}:{number}", {"source": name, "licence": licence} | dict(data))
    except Exception as error:
        raise _failed(name, error) from None


def count(name: str, split: str = "train", config: str = "") -> int | None:
    """How many rows the hub states for a split; None where it states none."""
    module = _module(name)
    with _asking(module, name):
        splits = module.load_dataset_builder(name, config or None).info.splits or {}
    return int(splits[split].num_examples) if split in splits and splits[split].num_examples else None
