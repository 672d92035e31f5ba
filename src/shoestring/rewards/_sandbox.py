"""The safe side of `_jail`: starts it, feeds it, never waits longer than agreed, and says what held.

What stands between a program and the machine: Linux namespaces, Landlock and seccomp, limits of processor time, memory
and output. Where the kernel refuses namespaces or Landlock, programs are not run at all, unless the user (never the
data) sets SHOESTRING_UNSANDBOXED=1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from shoestring.records import UserError

NEEDED = ("namespaces", "landlock")
PERMISSION = "SHOESTRING_UNSANDBOXED"


@dataclass(frozen=True)
class Ran:
    """How one case ended (see `_jail`) and what it printed, or the literal that a call gave."""

    end: str
    output: str


@dataclass(frozen=True)
class Outcome:
    """`layers`: what held the program; empty means unsandboxed."""

    layers: tuple[str, ...]
    cases: tuple[Ran, ...]


def _readable() -> list[str]:
    """What an interpreter needs to import its libraries, and no more."""
    paths = sysconfig.get_paths()
    folders = {paths[k] for k in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {str(Path(f).resolve()) for f in folders} | {"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"}
    return sorted(folders) + ["/dev/null", "/dev/urandom", "/etc/ld.so.cache", "/etc/localtime"]


def run(source: str, cases: Sequence[Mapping[str, str]], seconds: float, memory_mib: int, confine: bool = True) -> Outcome:
    """Run `source` once a case. Cases that were not reached (the whole ran out of time) end in "timeout".

    seconds: processor time a case; the clock allows twice that and a second more.
    """
    job = {"source": source, "cases": list(cases), "seconds": seconds, "memory_mib": memory_mib, "confine": confine}
    line = json.dumps(job | {"readable": _readable()}) + "\n"
    allowed = (2 * seconds + 2) * max(1, len(cases)) + 10
    with tempfile.TemporaryDirectory(prefix="shoestring-") as empty:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("_jail.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=empty,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}, start_new_session=True,
        )  # fmt: skip
        try:
            raw, _ = child.communicate(line.encode(), timeout=allowed)
        except subprocess.TimeoutExpired:
            child.kill()  # its children have asked the kernel to die with it
            raw, _ = child.communicate()
    rows = [json.loads(r) for r in raw.decode(errors="replace").split("\n") if r.endswith("}")]
    layers = tuple(rows[0]["layers"]) if rows else ()
    ran = [Ran(r["end"], r["output"]) for r in rows[1:]]
    return Outcome(layers, tuple(ran + [Ran("timeout", "")] * (len(cases) - len(ran))))


@lru_cache(1)
def layers() -> tuple[str, ...]:
    """Which layers this machine's kernel gives us, tried once."""
    if not sys.platform.startswith("linux"):
        return ()
    return run("print(1)", [{"input": ""}], 5, 512).layers


def confined() -> bool:
    """True if programs will be held, False if the user allowed them to run unheld. Raises UserError otherwise."""
    missing = [n for n in NEEDED if n not in layers()]
    if not missing:
        return True
    if os.environ.get(PERMISSION) == "1":
        return False
    raise UserError(
        f"the grader 'code' is unsandboxed here: this kernel refuses {' and '.join(missing)}; use a machine (or container "
        f"setting) that allows them, or set {PERMISSION}=1 to run a model's programs with your own rights"
    )
