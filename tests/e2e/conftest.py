"""The tiny world (see tiny_run.py) as fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_run


@pytest.fixture(scope="session")
def world() -> tiny_run.World:
    return tiny_run.make_world()


@pytest.fixture(scope="session")
def finished(world: tiny_run.World) -> Path:
    """A finished run's folder. Not to be written to."""
    return tiny_run.reference()
