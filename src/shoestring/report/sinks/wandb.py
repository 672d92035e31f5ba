"""Weights & Biases, under tracking/wandb. Offline where WANDB_MODE says so or no key is known: it never asks for one."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping

from shoestring.report.sinks import Run, Sink

PACKAGE, EXTRA = "wandb", "wandb"


class _Wandb:
    def __init__(self, run: Run) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        run.folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "shoestring"), name=run.name, dir=str(run.folder), config=dict(run.config),
            mode=None if os.environ.get("WANDB_MODE") or _has_key() else "offline",
            settings=wandb.Settings(silent=True, console="off", init_timeout=20),
        )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


def _has_key() -> bool:
    """Whether `wandb login` left a key, or the environment has one. Asking the library itself may prompt."""
    try:
        return bool(os.environ.get("WANDB_API_KEY") or netrc.netrc().authenticators("api.wandb.ai"))
    except (OSError, netrc.NetrcParseError):
        return False


def begin(run: Run) -> Sink:
    return _Wandb(run)
