"""Learning-rate schedules: a factor of the peak rate for every step. Standard library only.

Every schedule begins with a linear warm-up, is 1 at its peak and never falls below `floor` after the warm-up.
"""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant", "wsd"]
SCHEDULES: tuple[Schedule, ...] = ("cosine", "linear", "constant", "wsd")


def rate(
    schedule: Schedule, step: int, total: int, warmup: int = 0, decay: float = 0.1, floor: float = 0.0
) -> float:  # fmt: skip
    """The factor of step `step` (from 0) of `total`, after `warmup` steps of rising from 1 / warmup.

    cosine (Loshchilov & Hutter 2017, without restarts) and linear fall to `floor` over all that is left; constant stays;
    wsd (warm-up, stable, decay; Hu et al. 2024, MiniCPM, section 4) stays at 1 and falls to `floor` in a straight line
    over the last `decay` share of `total`.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "wsd":
        begin = max(float(warmup), total * (1 - decay))
        done = (step - begin) / max(1e-9, total - begin)
    else:
        done = (step - warmup) / max(1, total - warmup)
    done = min(1.0, max(0.0, done))
    left = 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1 - done
    return floor + (1 - floor) * left
