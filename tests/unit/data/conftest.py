import gzip
import json

import pytest

from shoestring.data.sources import bundled


@pytest.fixture(scope="session")
def shipped() -> dict[str, list[dict]]:
    """The rows of every problem file that ships, by family."""
    found = {}
    for path in sorted(bundled.folder().glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as f:
            found[path.name.removesuffix(".jsonl.gz")] = [json.loads(line) for line in f]
    return found
