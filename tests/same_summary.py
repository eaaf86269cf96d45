"""Do two runs of one command have the same numbers? usage: python tests/same_summary.py RUN RUN

What `make lowest` asks: old versions may fail inside and still end with exit code 0.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

ROUNDING = 1e-5  # relative: the model computes in float32
FLOOR = 1e-9  # absolute: a number that is 0 but for rounding


def summary(run: str) -> dict[str, float | None]:
    """The flat keys of a run's report."""
    found: dict[str, float | None] = json.loads((Path(run) / "report.json").read_text(encoding="utf-8"))["summary"]
    return found


def differing(one: dict[str, float | None], other: dict[str, float | None]) -> list[str]:
    """What differs, a line per key; a key that one of them lacks differs, and so does one that is undefined in one."""
    absent = [f"{key}: in one run only" for key in sorted(one.keys() ^ other.keys())]
    return absent + [f"{k}: {one[k]} and {other[k]}" for k in one if k in other and not same(one[k], other[k])]


def same(a: float | None, b: float | None) -> bool:
    """Whether two numbers are one but for rounding; undefined is the same as undefined alone."""
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=ROUNDING, abs_tol=FLOOR)


if __name__ == "__main__":
    left, right = (summary(run) for run in sys.argv[1:3])
    found = differing(left, right)
    print("\n".join(found) or f"{len(left)} keys agree.")
    sys.exit(bool(found))
