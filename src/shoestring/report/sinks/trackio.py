"""trackio: its local database, at TRACKIO_DIR or under tracking/trackio."""

from __future__ import annotations

import os
from collections.abc import Mapping

from shoestring.report.sinks import Run, Sink

PACKAGE, EXTRA = "trackio", "trackio"


class _Trackio:
    def __init__(self, run: Run) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(run.folder / "trackio"))  # read when trackio is imported
        import trackio  # pyright: ignore[reportMissingImports]

        project = os.environ.get("TRACKIO_PROJECT", "shoestring")
        self.run = trackio.init(project=project, name=run.name, config=dict(run.config), resume="allow", embed=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


def begin(run: Run) -> Sink:
    return _Trackio(run)
