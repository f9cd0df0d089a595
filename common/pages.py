"""Memory that glibc keeps instead of giving it back to the system: a training step takes the same hundreds of megabytes every time."""

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # mallopt's names for them, malloc.h


def keep_pages():
    """Let freed memory stay with this process; returns whether that could be asked for (glibc alone can).

    A tensor is otherwise mapped anew and given back after use, and each of its pages costs a fault: 30,000 to 50,000 of
    them in a step of 16 windows (docs/experiments.md). Tensors over 32 MB, the most that glibc allows here, still come and
    go: kept too, they would leave holes between them that a long run pays for with gigabytes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    wanted = (MMAP_THRESHOLD, 32 << 20), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 64 << 20)
    return all(mallopt(name, value) for name, value in wanted)
