"""What a watch knows, as a JSON document and back: an interrupted run goes on as if it had not been."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from graddiag.alarms._alarm import Alarm, Notice
from graddiag.alarms._cost import Cost
from graddiag.alarms._culprits import Share
from graddiag.alarms._gate import Gate
from graddiag.alarms._limits import Limits
from graddiag.alarms._losses import Drift
from graddiag.alarms._memory import Memory
from graddiag.errors import DataError

SCHEMA = 1
Json = Mapping[str, object]


@dataclass(frozen=True)
class State:
    """What a state holds."""

    limits: Limits
    memory: Memory
    alarms: tuple[Alarm, ...]
    notices: tuple[Notice, ...]


def read_state(state: Json) -> State:
    """The parts of a state. Raises DataError where it is not the state of a watch."""
    try:
        if state["schema"] != SCHEMA:
            raise DataError(f"The state of alarms has schema {state['schema']!r}; this version reads {SCHEMA}.")
        return State(
            limits=Limits(**_mapping(state["limits"])),  # type: ignore[arg-type]
            memory=_memory(_mapping(state["memory"])),
            alarms=tuple(alarm_of(_mapping(a)) for a in _list(state["alarms"])),
            notices=tuple(Notice(**_mapping(n)) for n in _list(state["notices"])),  # type: ignore[arg-type]
        )
    except (KeyError, TypeError) as error:
        raise DataError(
            f"This is no state of alarms ({type(error).__name__}: {error}). Start without it; alarms then begin anew."
        ) from error


def alarm_of(content: Json) -> Alarm:
    """An alarm from its JSON. Raises KeyError, TypeError where it is none."""
    return Alarm(**{**content, "ids": tuple(_list(content["ids"]))})  # type: ignore[arg-type]


def _memory(content: Json) -> Memory:
    share = dict(_mapping(content["share"]))
    share["worst"] = tuple(tuple(_list(w)) for w in _list(share["worst"]))
    parts = {
        "cost": Cost(**_mapping(content["cost"])),  # type: ignore[arg-type]
        "drift": Drift(**_mapping(content["drift"])),  # type: ignore[arg-type]
        "share": Share(**share),  # type: ignore[arg-type]
        "gates": {k: Gate(**_mapping(g)) for k, g in _mapping(content["gates"]).items()},  # type: ignore[arg-type]
        "first_losses": tuple(math.nan if v is None else v for v in _list(content["first_losses"])),
    }
    return Memory(**{**content, **parts})  # type: ignore[arg-type]


def _mapping(value: object) -> Json:
    if not isinstance(value, Mapping):
        raise TypeError(f"{value!r} is no JSON object")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{value!r} is no JSON list")
    return list(value)
