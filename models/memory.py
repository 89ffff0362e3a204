"""How the C library keeps memory: what makes networks on a CPU fast."""

from __future__ import annotations

import ctypes
import sys

_MALLOC = {"M_MMAP_THRESHOLD": (-3, 1 << 28), "M_TRIM_THRESHOLD": (-1, 1 << 29), "M_ARENA_MAX": (-8, 1)}  # <malloc.h>


def keep_freed_memory() -> None:
    """Has glibc keep up to 512 MB of freed memory for the next layer of a network; other C libraries are left alone.

    By itself it gives every block above 32 MB back to the system, and every block of a thread with an arena of its own,
    which clears the pages anew for each layer. On a CPU that took two fifths of the segmenter's time. A thread keeps
    the arena that it began with: call this before the first import that starts threads.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in _MALLOC.values():
            mallopt(option, value)
