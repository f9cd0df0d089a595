"""Memory that glibc keeps instead of giving it back to the system: a training step takes the same hundreds of megabytes every time."""

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, ARENA_MAX = -1, -2, -3, -8  # mallopt's names for them, malloc.h


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
