"""A probe as one line of strict JSON, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import cast

import numpy as np
from jaxtyping import Float

from graddiag.files import strict
from graddiag.probes import Against, Probe

ARRAYS = ("safety_losses", "dots", "norms", "losses")
Json = Mapping[str, object]


def to_line(probe: Probe) -> str:
    """The probe as JSON without a line break; a number that is not finite is null."""
    content = {f.name: _plain(getattr(probe, f.name)) for f in fields(probe)}
    return json.dumps(strict(content), allow_nan=False, separators=(",", ":"))


def from_content(content: Json) -> Probe:
    """The probe of a line's content, equal to what was written but that infinity is NaN, as all that was not finite.

    Raises KeyError or TypeError where it is no probe.
    """
    read: dict[str, object] = {**content}
    read |= {name: _array(content[name]) for name in ARRAYS}
    read |= {name: _against(content[name]) for name in ("gradient", "update")}
    read |= {"safety_norms": _numbers(content["safety_norms"])}
    read |= {name: tuple(cast("list[str]", content[name])) for name in ("ids", "notes")}
    read |= {name: _number(content[name]) for name in ("captured", "seconds", "step_seconds")}
    return Probe(**read)  # type: ignore[arg-type]


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return asdict(value) if isinstance(value, Against) else value


def _number(value: object) -> float:
    return math.nan if value is None else float(cast("float", value))


def _numbers(value: object) -> dict[str, float]:
    return {k: _number(v) for k, v in cast("Json", value).items()}


def _array(value: object) -> Float[np.ndarray, " n"]:
    return np.array([_number(v) for v in cast("list[object]", value)], dtype=np.float64)


def _against(value: object) -> Against | None:
    if value is None:
        return None
    parts = cast("Json", value)
    return Against(_numbers(parts["dot"]), _numbers(parts["norm"]))
