"""How did a monitored run go: over steps, over layers, and example by example?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from graddiag.alarms import RULES, Alarm
from graddiag.layers import place
from graddiag.probe_values import (
    cosine_by_block,
    cosine_with_safety,
    mean_and_error,
    opposed_share,
    overhead,
)
from graddiag.probes import Against, Probe
from graddiag.statistics import mean, optional
from graddiag.training_log import TrainingRun

PREFIX = "monitor"
OUTSIDE = "not in a layer"


@dataclass(frozen=True)
class Course:
    """Numbers of each probe, in the order of steps; NaN where undefined.

    Cosines with the safety gradient; the mean safety loss; its paired change since the first probe, and the standard
    errors of both, nats/token; `predicted` is the sum of the predicted changes up to the probe, each standing for the
    steps from its probe to the next. `overhead` is in training steps.
    """

    steps: Int[np.ndarray, " n"]
    cosine: Float[np.ndarray, " n"]
    update_cosine: Float[np.ndarray, " n"]
    loss: Float[np.ndarray, " n"]
    loss_error: Float[np.ndarray, " n"]
    change: Float[np.ndarray, " n"]
    change_error: Float[np.ndarray, " n"]
    predicted: Float[np.ndarray, " n"]
    opposed: Float[np.ndarray, " n"]
    overhead: Float[np.ndarray, " n"]
    nonfinite: Int[np.ndarray, " n"]
    alarms: tuple[Alarm, ...]


@dataclass(frozen=True)
class LayerCourse:
    """The cosine of the batch's gradient with the safety gradient in each layer at each probe, [layers, probes]: all
    blocks of a layer as one vector; those outside layers come last."""

    steps: Int[np.ndarray, " n"]
    layers: tuple[str, ...]
    cosine: Float[np.ndarray, "l n"]
    alarms: tuple[Alarm, ...]


@dataclass(frozen=True)
class Suspect:
    """An example over all probes that saw it: how often, how often it opposed safety, the sum of its products with the
    safety gradient and the lowest, the step of that, and how many alarms named it."""

    id: str
    seen: int
    opposed: int
    total: float
    lowest: float
    step: int
    named: int


@dataclass(frozen=True)
class TrainingView:
    """A monitored run as it is shown; `suspects` are all examples that opposed, the lowest sum of products first."""

    run: TrainingRun
    course: Course
    layers: LayerCourse
    suspects: tuple[Suspect, ...]

    def summary(self) -> dict[str, float | None]:
        """The flat keys; None where undefined."""
        course, run = self.course, self.run
        counts = {f"alarms/{r.name}": sum(a.rule == r.name for a in run.alarms) for r in RULES}
        found: dict[str, float] = {
            "probes": len(run.probes),
            "first_step": _at(course.steps, 0),
            "last_step": _at(course.steps, -1),
            "alarms": len(run.alarms),
            "first_alarm": min((a.step for a in run.alarms), default=math.nan),
            **counts,
            "notices": len(run.notices),
            "nonfinite": int(course.nonfinite.sum()),
            "cosine": mean(course.cosine),
            "update_cosine": mean(course.update_cosine),
            "opposed_share": _share_of_all(run.probes),
            "safety_loss/first": _at(course.loss, 0),
            "safety_loss/last": _at(course.loss, -1),
            "safety_loss/change": _at(course.change, -1),
            "safety_loss/change/se": _at(course.change_error, -1),
            "predicted_change": _at(course.predicted, -1),
            "overhead": mean(course.overhead),
        }
        return {f"{PREFIX}/{key}": optional(float(value)) for key, value in found.items()}

    def block_summary(self) -> dict[str, dict[str, float | None]]:
        """The mean cosines over probes of each block."""
        out: dict[str, dict[str, float | None]] = {}
        for name, directions in (("cosine", "gradient"), ("update_cosine", "update")):
            of = [cosine_by_block(getattr(p, directions), p.safety_norms) for p in self.run.probes]
            for block in self.run.probes[0].safety_norms if self.run.probes else ():
                value = mean(np.array([cosines.get(block, math.nan) for cosines in of]))
                out.setdefault(block, {})[f"{PREFIX}/{name}"] = optional(value)
        return out


def training_view(run: TrainingRun) -> TrainingView:
    """What the page of a monitored run shows."""
    return TrainingView(run, _course(run), _layers(run), _suspects(run))


def _course(run: TrainingRun) -> Course:
    probes = run.probes
    losses = [mean_and_error(p.safety_losses) for p in probes]
    changes = [mean_and_error(p.safety_losses - probes[0].safety_losses) for p in probes]
    return Course(
        steps=np.array([p.step for p in probes], dtype=np.int64),
        cosine=_array([cosine_with_safety(p.gradient, p.safety_norms) for p in probes]),
        update_cosine=_array([cosine_with_safety(p.update, p.safety_norms) for p in probes]),
        loss=_array([m for m, _ in losses]),
        loss_error=_array([e for _, e in losses]),
        change=_array([m for m, _ in changes]),
        change_error=_array([e for _, e in changes]),
        predicted=_predicted(probes),
        opposed=_array([opposed_share(p) for p in probes]),
        overhead=_array([overhead(p) for p in probes]),
        nonfinite=np.array([p.nonfinite + p.safety_nonfinite for p in probes], dtype=np.int64),
        alarms=run.alarms,
    )


def _predicted(probes: Sequence[Probe]) -> Float[np.ndarray, " n"]:
    """The predicted change up to each probe; NaN all along where no update was watched. A prediction that is not finite
    adds nothing."""
    each = _array([math.nan if p.predicted_change is None else p.predicted_change for p in probes])
    if not np.isfinite(each).any():
        return each
    gaps = np.diff([p.step for p in probes])
    return np.concatenate([[0.0], np.cumsum(np.nan_to_num(each[:-1], nan=0.0, posinf=0.0, neginf=0.0) * gaps)])


def _layers(run: TrainingRun) -> LayerCourse:
    groups: dict[tuple[bool, str, int], list[str]] = {}
    for block in run.probes[0].safety_norms if run.probes else ():
        at = place(block)
        key = (True, "", 0) if at.layer is None else (False, at.stem, at.layer)
        groups.setdefault(key, []).append(block)
    stems = {stem for outside, stem, _ in groups if not outside}
    ordered = sorted(groups)
    names = [OUTSIDE if out else (f"{stem} {k}" if len(stems) > 1 else str(k)) for out, stem, k in ordered]
    values = [[_of_blocks(p, groups[key]) for p in run.probes] for key in ordered]
    steps = np.array([p.step for p in run.probes], dtype=np.int64)
    return LayerCourse(steps, tuple(names), _array(values).reshape(len(names), len(steps)), run.alarms)


def _of_blocks(probe: Probe, blocks: Sequence[str]) -> float:
    part = Against({b: probe.gradient.dot[b] for b in blocks}, {b: probe.gradient.norm[b] for b in blocks})
    return cosine_with_safety(part, {b: probe.safety_norms[b] for b in blocks})


def _suspects(run: TrainingRun) -> tuple[Suspect, ...]:
    dots: dict[str, list[tuple[float, int]]] = {}
    for p in run.probes:
        for name, dot in zip(p.ids, p.dots.tolist(), strict=True):
            if math.isfinite(dot):
                dots.setdefault(name, []).append((dot, p.step))
    named: dict[str, int] = {}
    for alarm in run.alarms:
        for name in set(alarm.ids):
            named[name] = named.get(name, 0) + 1
    found = [_suspect(name, seen, named) for name, seen in dots.items() if min(seen)[0] < 0]
    return tuple(sorted(found, key=lambda s: (s.total, s.id)))


def _suspect(name: str, seen: Sequence[tuple[float, int]], named: Mapping[str, int]) -> Suspect:
    lowest, step = min(seen)
    opposed = sum(d < 0 for d, _ in seen)
    return Suspect(name, len(seen), opposed, sum(d for d, _ in seen), lowest, step, named.get(name, 0))


def _share_of_all(probes: Sequence[Probe]) -> float:
    dots = np.concatenate([p.dots for p in probes]) if probes else np.zeros(0)
    known = dots[np.isfinite(dots)]
    return float((known < 0).mean()) if len(known) else math.nan


def _at(values: Float[np.ndarray, " n"] | Int[np.ndarray, " n"], index: int) -> float:
    return float(values[index]) if len(values) else math.nan


def _array(values: object) -> Float[np.ndarray, "*s"]:
    return np.array(values, dtype=np.float64)
