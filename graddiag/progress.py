"""How far a run is: what is done (tokens, unless told otherwise), rate and time left, on a terminal as one line that
renews itself, elsewhere as plain lines."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO

_TERMINAL_SECONDS = 0.2  # between two updates of the line
_LOG_SECONDS = 30.0  # between two plain lines


@dataclass
class Progress:
    """Prints to `stream` while `advance` is called; prints nothing where `quiet`."""

    label: str
    total: int
    quiet: bool = False
    unit: str = "tokens"
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    done: int = 0
    start: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)

    def advance(self, n: int) -> None:
        """Counts what is done, and prints if it is time."""
        self.done += n
        now = time.monotonic()
        terminal = self.stream.isatty()
        if self.quiet or self.done >= self.total or now - self.last < (_TERMINAL_SECONDS if terminal else _LOG_SECONDS):
            return
        self.last = now
        self.stream.write(f"\r\x1b[2K{self.line(now)}" if terminal else f"{self.line(now)}\n")
        self.stream.flush()

    def finish(self) -> None:
        """The last line: what was done, how long it took, and the rate."""
        if self.quiet or not self.done:
            return
        now = time.monotonic()
        begin = "\r\x1b[2K" if self.stream.isatty() else ""
        seconds = now - self.start
        rate = f", {self.done / seconds:,.0f} {self.unit}/s" if seconds > 0 else ""
        self.stream.write(f"{begin}{self.label}: {self.done:,} {self.unit} in {clock(seconds)}{rate}\n")
        self.stream.flush()

    def line(self, now: float) -> str:
        """How much is done and to do, how much a second, time left."""
        seconds = max(now - self.start, 1e-9)
        rate = self.done / seconds
        left = clock((self.total - self.done) / rate) if rate else "?"
        return f"{self.label}: {self.done:,} of {self.total:,} {self.unit}, {rate:,.0f} {self.unit}/s, {left} left"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
