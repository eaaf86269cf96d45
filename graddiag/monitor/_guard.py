"""Work inside someone else's forward and backward pass: timed, and its errors kept instead of raised there."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Guard:
    """Runs hooks until the first error, which it keeps in `failure`; `seconds` is the time spent in them."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.seconds = 0.0

    def __call__(self, hook: Callable[P, object]) -> Callable[P, None]:
        """The hook, which then returns None, so that it changes nothing, and raises nothing."""

        def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            if self.failure is not None:
                return
            start = time.perf_counter()
            try:
                hook(*args, **kwargs)
            except Exception as error:  # whatever it is, it must not reach the training loop from inside a hook
                self.failure = error
            finally:
                self.seconds += time.perf_counter() - start

        return guarded

    def check(self) -> None:
        """Raises the error that was kept, if there was one."""
        if self.failure is not None:
            raise self.failure
