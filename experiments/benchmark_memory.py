"""How much memory a step takes at its peak: the kernel's own account of this process (Linux)."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path


def growth_of_peak(step: Callable[[], None]) -> float:
    """Runs the step once: the growth of the peak of resident memory, MiB."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's mark of the peak starts again from here
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    """A line of that account, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024
