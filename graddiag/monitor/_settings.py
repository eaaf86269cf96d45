"""The settings of a monitor that adapters hand on as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from graddiag.alarms import Choice, Limits
from graddiag.probes import Probe


class Settings(TypedDict, total=False):
    """What `Monitor` takes by name, with its defaults, but for what an adapter knows itself."""

    blocks: Sequence[str] | None
    rank: int
    exact: bool
    target: str
    max_length: int | None
    projection: str | None
    dim: int
    seed: int
    folder: str | Path | None
    batch_tokens: int
    limits: Limits | None
    action: Choice
    on_probe: Callable[[Probe], None] | None
    strict: bool
