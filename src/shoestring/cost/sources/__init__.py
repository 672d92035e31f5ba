"""One module a price source. Each has `load() -> Iterable[tuple[sku, Price]]`; a new file is picked up by itself."""

from pathlib import Path

DATA = Path(__file__).parent.parent / "data"
