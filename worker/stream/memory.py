"""Memory that is used again: a page that is new to the process costs more than filling it does.

Shapes: N bytes.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

# Freed memory that is kept; what a consumer held beyond it goes back to the system.
MAX_FREE = 4


class Memory:
    """Gives out memory of one size, and takes it back by itself when nothing refers to it any more."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        # Full, it drops the oldest: whatever thread lets go of an array, one append is all that happens.
        self._free: deque[mmap.mmap] = deque(maxlen=MAX_FREE)

    def take(self) -> NDArray[np.uint8]:
        """Return memory of `num_bytes`, [N]; it is lent for as long as the array, or a view of it, lives."""
        try:
            memory = self._free.pop()  # the last one used is the most likely to be in a cache
        except IndexError:
            memory = _map(self.num_bytes)
        lent = np.frombuffer(memory, np.uint8)
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return lent


def _map(num_bytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
