"""The C library's allocator, told to keep the memory that a training step frees.

A step allocates and frees a gibibyte of activations. By default glibc hands freed memory back to the system and gets it
again, zeroed, page by page. Measured on SFT of SmolLM2-135M, one thread: 500,000 page faults and 1.6 s of system time in a
step of 11.6 s; kept, 5,000 to 70,000 and 0.1 s. The gaps between kept pieces cost 0.3 GiB, and up to 1.2 where pieces of
50 to 110 MB (logits, the gradient of the embedding) must find a gap as well: these keep mappings of their own.

oneDNN, which torch multiplies with on a CPU, keeps the kernels that it has compiled for a shape, and torch's bridge to it
keeps them once more: by default a thousand each, half a MB a shape. Packs of documents rarely have the same shape twice:
SFT grew by 48 MB a step, in small pieces between the large ones. A pass over one pack uses about a hundred; 256 are kept.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
KEEP = (1 << 31) - 1  # bytes freed at the heap's end before any are handed back: mallopt takes an int
WHOLE = 1 << 25  # bytes; an allocation from this size on has a mapping of its own, as before. glibc takes no more
KERNELS = 256  # compiled kernels that stay
CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")  # oneDNN's own, and that of torch's bridge to it (ideep)


def keep_freed_memory() -> bool:
    """For this process, from now on, and before its first matrix product: the caches' sizes are read once.

    False where the C library has no such setting (not glibc): freed memory is handed back as before. A capacity that the
    environment states is left alone.
    """
    for name in CACHES:
        os.environ.setdefault(name, str(KERNELS))
    name = ctypes.util.find_library("c")
    try:
        libc = ctypes.CDLL(name)
        libc.gnu_get_libc_version  # noqa: B018  (musl has mallopt too, and ignores it)
        return bool(libc.mallopt(TRIM_THRESHOLD, KEEP)) and bool(libc.mallopt(MMAP_THRESHOLD, WHOLE))
    except (OSError, AttributeError, TypeError):
        return False
