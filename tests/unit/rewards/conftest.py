"""One pool of one worker a kind for the whole session: beside busy neighbours a second worker only costs its start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shoestring.rewards import _pool


@pytest.fixture(scope="session", autouse=True)
def one_worker_a_kind() -> Iterator[None]:
    before = dict(_pool._pools)
    own = {kind: _pool.Pool(kind, seconds=0.7, workers=1) for kind in ("math", "gym")}  # starts when first used
    _pool._pools.update(own)
    yield
    for pool in own.values():
        pool.close()
    _pool._pools.clear()
    _pool._pools.update(before)
