"""Which process began an attempt, and whether it still runs. A process id alone is used again by others."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def process_alive(begun: Mapping[str, Any]) -> bool:
    """Whether the process that began this attempt still runs on this machine: its id, its start and this boot agree.

    A process in another container counts as dead: two containers must not share one ledger file.
    """
    then = begun.get("process") or {}
    pid = then.get("pid")
    return isinstance(pid, int) and identify(pid) == then


def identify(pid: int) -> dict[str, Any] | None:
    """What identifies a process on this boot without naming the host; None where it does not run."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except OSError:
        return None
    made: dict[str, Any] = {"pid": pid}
    with contextlib.suppress(OSError, IndexError):  # no /proc: the id has to do
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if stat[0] in "ZX":
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        made |= {"started": int(stat[19]), "boot": hashlib.sha256(boot).hexdigest()[:8]}
    return made
