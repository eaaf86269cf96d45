"""Stopping at a good moment: a first Ctrl-C or SIGTERM waits for the batch in hand, a second one does not."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The run was stopped by signal `number`; what was finished is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@dataclass
class StopRequest:
    """Whether a signal has asked for a stop, and which."""

    number: int = 0


@contextmanager
def deferred_stop() -> Iterator[StopRequest]:
    """Inside, the first SIGINT or SIGTERM only sets `number`; the next raises Interrupted at once.

    Signals can be handled in the main thread only; in another one nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, _: FrameType | None) -> None:
        if request.number:
            raise Interrupted(number)
        request.number = number

    before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
