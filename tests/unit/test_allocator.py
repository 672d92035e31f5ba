"""Freed memory is kept: page faults of a step that allocates what the last one freed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from shoestring.allocator import CACHES

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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux: the settings are those of glibc")
def test_a_step_finds_the_memory_that_the_last_one_freed() -> None:
    kept, few = faults("kept")
    if kept == "False":
        pytest.skip("needs glibc: this C library has no such setting, and nothing is set with it")
    _, many = faults("plain")
    assert few < many / 10, (few, many)


SHAPES = """
import ctypes, sys
if sys.argv[1] == "kept":
    from shoestring.allocator import keep_freed_memory
    keep_freed_memory()
import torch
class Info(ctypes.Structure):
    _fields_ = [(n, ctypes.c_size_t) for n in "arena ordblks smblks hblks hblkhd usmblks fsmblks used free keepcost".split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
torch.set_num_threads(1)
weight = torch.randn(256, 256).bfloat16()
def until(last):
    for rows in range(16, last):
        torch.randn(rows, 256).bfloat16() @ weight
    return libc.mallinfo2().used
print(until(400), until(900))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux: reads glibc's own count of used bytes")
def test_kernels_for_shapes_that_do_not_come_back_are_dropped() -> None:
    """900 shapes: more than are kept, fewer than oneDNN would keep by itself."""

    def grown(how: str) -> int:
        environment = {k: v for k, v in os.environ.items() if k not in CACHES}  # an earlier test may have set them
        done = subprocess.run([sys.executable, "-c", SHAPES, how], capture_output=True, text=True, env=environment)
        if "mallinfo2" in done.stderr:
            pytest.skip("needs glibc 2.33 or newer: this C library does not count its bytes")
        first, last = map(int, done.stdout.split())
        return last - first

    kept, plain = grown("kept"), grown("plain")
    if plain < 1 << 20:
        pytest.skip("needs a torch whose bf16 products go through oneDNN: this one keeps no kernel a shape")
    assert kept < plain / 4, (kept, plain)
