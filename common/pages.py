"""Memory that is kept for the next time: by glibc, for a step takes the same hundreds of megabytes every time, and by oneDNN."""

import ctypes
import os
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, ARENA_MAX = -1, -2, -3, -8  # mallopt's names for them, malloc.h
KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "32"}  # oneDNN's own, and torch's above it


def keep_few_kernels():
    """Let oneDNN keep the products it has compiled for a shape only while shapes like it come; to be called before torch is used.

    Windows padded to their batch have another shape at nearly every step, and a step's kernels take 10 to 20 MB; 1,024 are
    kept by default, which comes to a gigabyte. A pass uses some twenty, layer after layer (docs/experiments.md). What the
    environment says already stands.
    """
    for name, most in KERNELS.items():
        os.environ.setdefault(name, most)


def give_pages_back():
    """Let the system have what lies free here, between what is in use too; returns whether there was any (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    return bool(trim and trim(0))


def keep_pages(one_heap=False):
    """Let freed memory stay with this process; returns whether that could be asked for (glibc alone can).

    A tensor is otherwise mapped anew and given back after use, and each of its pages costs a fault: 30,000 to 50,000 of
    them in a step of 16 windows (docs/experiments.md). Tensors over 32 MB, the most that glibc allows here, still come and
    go: kept too, they would leave holes between them that a long run pays for with gigabytes.

    one_heap: threads that begin from now on share one, in which what is free lies together; otherwise each has heaps of 64
    MB, of which a few tensors leave much unused.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    wanted = (MMAP_THRESHOLD, 32 << 20), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 64 << 20)
    if one_heap:
        wanted += ((ARENA_MAX, 1),)
    return all(mallopt(name, value) for name, value in wanted)
