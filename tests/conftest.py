"""Fixtures that the torch tests share. torch is imported inside them, so that torch-free tests stay quick."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Tiny models gain nothing from a second thread and lose much beside a busy neighbour. Before torch is imported anywhere;
# the runs that tests start in subprocesses inherit it. Give OMP_NUM_THREADS=2 to time the slow tests on a quiet machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def no_earlier_runs(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A plan is mended by what earlier runs on this machine took: a test's is not, unless it names a cache of its own."""
    if "SHOESTRING_CACHE" not in os.environ:
        from shoestring.estimate import history

        nothing = tmp_path_factory.getbasetemp() / "no-runs.json"
        monkeypatch.setattr(history, "_path", lambda path: path or nothing)


@pytest.fixture(scope="session")
def tiny_decoder() -> Callable[..., Any]:
    """make(seed=0, **sizes) → a small random fp32 Decoder; weights large enough that attention is not flat."""
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    from shoestring.models.config import DecoderConfig
    from shoestring.models.decoder import Decoder

    def make(seed: int = 0, std: float = 0.3, **sizes: Any) -> Any:
        base: dict[str, Any] = dict(
            family="llama", layers=2, hidden=24, heads=6, kv_heads=2, head_dim=4, intermediate=40, vocab=61,
            norm_eps=1e-5, rope_theta=10000.0, tied=True, max_positions=1024,
        )  # fmt: skip
        model = Decoder(DecoderConfig(**(base | sizes))).randomise(seed, std)
        with torch.no_grad():  # norms away from one, so that a dropped scale is seen
            g = torch.Generator().manual_seed(seed + 1)
            for name, p in model.named_parameters():
                if name.endswith("norm"):
                    p.add_(torch.randn(p.shape, generator=g) * 0.2)
        return model

    return make


@pytest.fixture(scope="session")
def relative() -> Callable[..., float]:
    """The largest difference over the largest size of the reference."""

    def error(ours: Any, reference: Any) -> float:
        scale = float(reference.detach().abs().max())
        return float((ours.detach() - reference.detach()).abs().max()) / (scale or 1.0)

    return error


@pytest.fixture(scope="session")
def world() -> Any:
    """The tiny world: a model, problems and a recipe that run in seconds (tests/e2e/tiny_run.py)."""
    import tiny_run

    return tiny_run.make_world()


@pytest.fixture(scope="session")
def finished(world: Any) -> Path:
    """A finished run's folder. Not to be written to."""
    import tiny_run

    return tiny_run.reference()
