"""A hub that is not there: one line, at once, and the library left as it was."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

pytest.importorskip("datasets", reason="needs datasets: pip install 'shoestring[hub]'")
import datasets  # pyright: ignore[reportMissingImports]
from huggingface_hub import constants

from shoestring.data.sources import _hub
from shoestring.records import UserError


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (constants, datasets.config):
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def no_address(*args: Any, **rest: Any) -> Any:
    raise socket.gaierror(-2, "Name or service not known")


def test_no_network_is_one_line_at_once(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    began = time.monotonic()
    for call in (lambda: next(_hub.rows("nobody/nothing-here")), lambda: _hub.count("nobody/nothing-here")):
        with pytest.raises(UserError, match="'nobody/nothing-here': .*https://huggingface.co cannot be reached from here"):
            call()
        assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE
    assert time.monotonic() - began < 10, "24 s each, where the library repeats its question"


def test_what_the_hub_says_stays(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an address, and behind a proxy, which may know one, the library is asked as it is."""
    seen: list[bool] = []

    def refused(*args: Any, **rest: Any) -> Any:
        seen.append(constants.HF_HUB_OFFLINE)
        raise ValueError("no config 'x'")

    monkeypatch.setattr(datasets, "load_dataset", refused)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [])
    with pytest.raises(UserError, match=r"cannot be read from the hub \(ValueError: no config 'x'\)"):
        next(_hub.rows("a/b"))
    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    with pytest.raises(UserError, match="cannot be read from the hub"):
        next(_hub.rows("a/b"))
    assert seen == [False, False]
