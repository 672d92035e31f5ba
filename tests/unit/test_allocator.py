"""Freed memory is kept: page faults of a step that allocates what the last one freed."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT = """
import ctypes, resource, sys
from shoestring.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "kept" else None
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def step():
    pieces = [libc.malloc(20 << 20) for _ in range(16)]
    for p in pieces:
        ctypes.memset(p, 1, 20 << 20)
    for p in pieces:
        libc.free(p)
for _ in range(2):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> tuple[str, int]:
    done = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_a_step_finds_the_memory_that_the_last_one_freed() -> None:
    kept, few = faults("kept")
    if kept == "False":
        pytest.skip("this C library has no such setting")
    _, many = faults("plain")
    assert few < many / 10, (few, many)
