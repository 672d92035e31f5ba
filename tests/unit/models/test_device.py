"""Where to compute: what is there, or what SHOESTRING_DEVICE says."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from shoestring.models import device  # noqa: E402
from shoestring.records import UserError  # noqa: E402


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two CUDA devices, as far as torch can tell."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: ((d.index or 0) + 5, 99))


def test_without_a_gpu_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv(device.VARIABLE, raising=False)
    assert device.choose() == torch.device("cpu") and device.free_bytes() is None


@pytest.mark.usefixtures("cards")
@pytest.mark.parametrize(("name", "free"), [("", 5), ("cuda", 5), ("cuda:1", 6), ("cpu", None), (" cpu ", None)])
def test_what_is_there_or_what_is_named(name: str, free: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device.VARIABLE, name)
    assert device.choose() == torch.device(name.strip() or "cuda") and device.free_bytes() == free


@pytest.mark.usefixtures("cards")
@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:2", "cuda:x"])
def test_a_device_that_is_not_there_is_one_clear_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device.VARIABLE, name)
    with pytest.raises(UserError, match="SHOESTRING_DEVICE"):
        device.choose()
