"""TensorBoard: event files under tracking/tensorboard, written by tensorboard's own writer (torch is not needed)."""

from __future__ import annotations

import time
from collections.abc import Mapping

from shoestring.report.sinks import Run, Sink

PACKAGE, EXTRA = "tensorboard", "tensorboard"


class _Events:
    def __init__(self, run: Run) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # pyright: ignore[reportMissingImports]

        folder = run.folder / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self.writer = EventFileWriter(str(folder))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore

        parts = [Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        self.writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=parts)))

    def close(self) -> None:
        self.writer.close()


def begin(run: Run) -> Sink:
    return _Events(run)
