"""Memory that glibc keeps instead of giving it back to the system: a training step takes the same hundreds of megabytes every time."""

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # mallopt's names for them, malloc.h


def keep_pages():
    """Let freed memory stay with this process; returns whether that could be asked for (glibc alone can).

    Every large tensor is otherwise mapped anew and given back after use, and each of its pages costs a fault: 30,000 to
    50,000 of them in a step of 16 windows, a tenth of its time (docs/experiments.md). What a process holds stays at
    its highest point instead of falling between steps.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    wanted = (MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 64 << 20)
    return all(mallopt(name, value) for name, value in wanted)
