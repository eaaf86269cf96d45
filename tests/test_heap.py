"""Free memory goes back to the machine."""

from __future__ import annotations

import ctypes
import sys

import numpy as np
import pytest

from graddiag.heap import give_back


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(
    sys.platform != "linux" or getattr(ctypes.CDLL(None), "malloc_trim", None) is None, reason="needs glibc"
)
def test_what_scattered_arrays_leave_free_goes_back_to_the_machine():
    size, n = 20_000, 10_000  # bytes, below what is mapped on its own; arrays: 200 MB in all
    arrays = [np.ones(size, dtype=np.uint8) for _ in range(n)]
    kept = arrays[::50]  # what stays between them holds the heap open
    full = resident()
    del arrays
    give_back()
    assert full - resident() > 0.8 * size * n
    assert all(a.all() for a in kept)
