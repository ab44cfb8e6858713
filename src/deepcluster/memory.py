"""Memory that the C library keeps between the steps of a fit."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Of glibc's mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
NEVER, FEW, MANY = -1, 0, 65_536  # MANY: the default
LARGE = 2**25  # the highest MMAP_THRESHOLD there can be, which a program comes to by itself


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed blocks for the next step instead of giving them back to the system.

    glibc gets each block above 32 MiB from the system and gives it back as soon as it is freed.
    A step with photographs has dozens of those, and having their pages zeroed again each time is a
    third of a step with 96 pixels and an eighth with 64. Afterwards the memory is given back. Does
    nothing where the C library is another one. Can be used as a decorator.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(MMAP_MAX, FEW)
    mallopt(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        mallopt(MMAP_MAX, MANY)
        mallopt(MMAP_THRESHOLD, LARGE)
        mallopt(TRIM_THRESHOLD, 2 * LARGE)
        ctypes.CDLL(None).malloc_trim(0)
