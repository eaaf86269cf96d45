"""Memory that the C library keeps for later, given back to the machine."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import lru_cache


def give_back() -> None:
    """Returns free memory to the system where the C library is glibc; does nothing elsewhere.

    glibc keeps what large tensors leave behind, and what it keeps it cannot always use again: over many batches a
    process grows to several times of what it holds.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def _trim() -> Callable[[int], int] | None:
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None) if _LINUX else None
    return found


_LINUX = sys.platform == "linux"
