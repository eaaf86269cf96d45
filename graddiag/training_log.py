"""What a monitored run leaves on disk: a line per probe, alarm and notice, and what the run was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from graddiag.alarms import RULES, Alarm, Limits, Notice, alarm_of
from graddiag.errors import DataError
from graddiag.files import disk_named, read_json, write_json
from graddiag.line_files import append_lines, read_line, whole_lines, write_lines
from graddiag.probe_lines import from_content, to_line
from graddiag.probe_values import (
    cosine_with_safety,
    mean_and_error,
    opposed_share,
    overhead,
)
from graddiag.probes import Probe

SCHEMA = 1
RUN_FILE = "monitor.json"
PROBES, ALARMS, NOTICES = "probes.jsonl", "alarms.jsonl", "notices.jsonl"
Json = Mapping[str, object]
Record = TypeVar("Record")


@dataclass(frozen=True)
class TrainingRun:
    """What a monitored run left: its probes, alarms and notices in their order, what it was, and its limits."""

    probes: tuple[Probe, ...]
    alarms: tuple[Alarm, ...]
    notices: tuple[Notice, ...]
    facts: Mapping[str, str]
    limits: Limits


def begin_log(folder: Path, facts: Mapping[str, str], limits: Limits) -> None:
    """Makes the folder of a run and says what it is; lines that are there already are kept, for a run that goes on.

    `facts` are shown with the report: names of the model and the safety set, how often probes are made. Raises
    UsageError or ResourceError where the folder cannot be written.
    """
    with disk_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RUN_FILE, {"schema": SCHEMA, "facts": dict(facts), "limits": asdict(limits)})


def append_log(folder: Path, probe: Probe, alarms: Sequence[Alarm], notices: Sequence[Notice] = ()) -> None:
    """Appends a probe, and what is new with it; a line is there wholly, or is not read. Raises ResourceError."""
    with disk_named(folder):
        append_lines(folder / ALARMS, [_line(a) for a in alarms])
        append_lines(folder / NOTICES, [_line(n) for n in notices])
        append_lines(folder / PROBES, [to_line(probe)])


def rewind_log(folder: Path, step: int) -> None:
    """Removes what was written of `step` and later: a run that goes on from a checkpoint makes those steps again."""
    with disk_named(folder):
        for name in (PROBES, ALARMS, NOTICES):
            path = folder / name
            if path.is_file():
                write_lines(path, [line for line in whole_lines(path) if _step(path, line) < step])


def is_training_run(folder: Path) -> bool:
    """Whether a folder is that of a monitored run."""
    return (folder / RUN_FILE).is_file()


def read_log(folder: Path) -> TrainingRun:
    """What a monitored run left, a last line that was cut off by a crash left out.

    Raises DataError where the folder is not that of a monitored run, or a line cannot be read.
    """
    about = read_json(folder / RUN_FILE)
    if about.get("schema") != SCHEMA:
        raise DataError(f"{folder / RUN_FILE} has schema {about.get('schema')!r}; this version reads {SCHEMA}.")
    facts, limits = about["facts"], about["limits"]
    assert isinstance(facts, dict)
    assert isinstance(limits, dict)
    return TrainingRun(
        probes=_read(folder / PROBES, from_content),
        alarms=_read(folder / ALARMS, alarm_of),
        notices=_read(folder / NOTICES, lambda c: Notice(**c)),  # type: ignore[arg-type]
        facts=facts,
        limits=Limits(**limits),
    )


def log_keys(probe: Probe, alarms: Sequence[Alarm] = ()) -> dict[str, float]:
    """The flat keys of a probe for a trainer's log, finite numbers; what is undefined is left out, since loggers such
    as TensorBoard's take numbers only. Our own files say null there.

    `graddiag/alarm/RULE` is the value of an alarm in units of its limit, 0 where there is none at this probe.
    """
    loss, error = mean_and_error(probe.safety_losses)
    found = {
        "cosine": cosine_with_safety(probe.gradient, probe.safety_norms),
        "dot": sum(probe.gradient.dot.values()),
        "update_cosine": cosine_with_safety(probe.update, probe.safety_norms),
        "predicted_change": math.nan if probe.predicted_change is None else probe.predicted_change,
        "safety_loss": loss,
        "safety_loss/se": error,
        "opposed_share": opposed_share(probe),
        "nonfinite": probe.nonfinite + probe.safety_nonfinite,
        "overhead": overhead(probe),
        "alarms": len(alarms),
    }
    found |= {f"alarm/{r.name}": max((a.value / a.limit for a in alarms if a.rule == r.name), default=0) for r in RULES}
    return {f"graddiag/{key}": float(value) for key, value in found.items() if math.isfinite(value)}


def _line(record: Alarm | Notice) -> str:
    return json.dumps(asdict(record), allow_nan=False, separators=(",", ":"))


def _step(path: Path, line: str) -> int:
    step = read_line(path, line)["step"]
    assert isinstance(step, int)
    return step


def _read(path: Path, build: Callable[[Json], Record]) -> tuple[Record, ...]:
    out = []
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            out.append(build(read_line(path, line)))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"Line {number} of {path} is not one of ours ({error!r}). Remove that line.") from error
    return tuple(out)
