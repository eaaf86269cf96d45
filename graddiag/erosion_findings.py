"""Everything that three models show on the sets of a run, and under which flat keys it stands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from graddiag.analyzers import (
    AnswerChange,
    Behaviour,
    Direction,
    RefusalDirection,
    RefusalScore,
    SubspaceOverlap,
    behaviour,
    direction,
    refusal_direction,
    refusal_score,
    subspace_overlap,
)
from graddiag.answers import repeat_warning
from graddiag.comparison import Comparison
from graddiag.erosion_removal import Removal, removal, removal_notes
from graddiag.erosion_samples import Samples, samples
from graddiag.erosion_setting import (
    ALIGNED,
    BASE,
    FIRST,
    OPENINGS,
    PROMPT,
    TUNED,
    ErosionRun,
    ErosionSetting,
    opened_name,
)
from graddiag.erosion_shifts import Shifts, read_shifts
from graddiag.erosion_update import kept_weights, safe_answers
from graddiag.expected_tokens import AfterPrompt, expected_tokens
from graddiag.rules import ALPHA
from graddiag.statistics import Estimate, difference_of_means
from graddiag.weight_table import WeightChange, WeightChanges

Summary = dict[str, float | None]
_UNDEFINED = Estimate(math.nan)
_KINDS = {"behaviour": "loss", "weights": "weights", "intervention": "loss", "generated": "generated answers"}
_ENDS = ("", "/low", "/high", "/p")
ALWAYS = tuple(  # there also where an analysis had nothing to work on, and then undefined
    f"{stem}{end}"
    for stem in (
        "behaviour/interaction", "behaviour/harmful", "behaviour/benign", "behaviour/refusal",
        "behaviour/refusal_beyond", "direction/depth_trend",
    )
    for end in _ENDS
)  # fmt: skip


_NO_WEIGHTS = WeightChanges(WeightChange(math.nan, math.nan), {}, ()).summary()


@dataclass(frozen=True)
class Refusals:
    """The log-odds of refusing after harmful requests, after harmless ones, and what their change is beyond that.

    `beyond` is tuned minus aligned after harmful requests less the same after harmless ones, nats: below 0 the tuned
    model refuses less, and not just because it likes the one opening less after any request.
    """

    harmful: RefusalScore
    benign: RefusalScore | None
    beyond: Estimate

    @staticmethod
    def of(harmful: RefusalScore, benign: RefusalScore | None) -> Refusals:
        """The contrast of two scores, whose prompts are taken as independent samples."""
        if benign is None:
            return Refusals(harmful, None, _UNDEFINED)
        rows = [(s.tuned_rows - s.aligned_rows, s.clusters) for s in (harmful, benign)]
        return Refusals(harmful, benign, difference_of_means(*rows[0], *rows[1]))

    def summary(self) -> Summary:
        """The flat keys; None where undefined."""
        out: Summary = {**self.harmful.summary(), **self.beyond.keys("behaviour/refusal_beyond")}
        if self.benign is not None:
            own = self.benign.summary().items()
            out |= {k.replace("behaviour/refusal", "behaviour/refusal/benign", 1): v for k, v in own}
        return out


@dataclass(frozen=True)
class Erosion:
    """What was found; None where the models or sets that an analysis needs were not given. `beside` and
    `direction_beside` are behaviour and direction against each further control; `safe_answers` are those that a safety
    gradient was taken on."""

    setting: ErosionSetting
    behaviour: Behaviour | None
    beside: Mapping[str, Behaviour]
    refusals: Refusals | None
    direction: Direction | None
    direction_beside: Mapping[str, Direction]
    refusal_direction: RefusalDirection | None
    subspace: SubspaceOverlap | None
    shifts: Shifts
    weights: WeightChanges | None
    origins: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...]
    samples: Samples | None = None
    safe_answers: AnswerChange | None = None
    removal: Removal | None = None
    next_tokens: tuple[AfterPrompt, ...] = ()

    def summary(self) -> Summary:
        """The flat keys of all results; None where undefined."""
        out: Summary = dict.fromkeys((*ALWAYS, *self._overlap_keys(), *_NO_WEIGHTS))
        results = (self.behaviour, self.refusals, self.direction, self.refusal_direction, self.subspace, self.weights)
        for result in results:
            if result is not None:
                out |= result.summary()
        for more in (self.samples, self.removal):
            out |= {} if more is None else more.summary()
        if self.safe_answers is not None:
            out |= self.safe_answers.keys("behaviour/safe_answers")
        for name, one in self.beside.items():
            out |= one.interaction.keys(f"behaviour/interaction/control:{name}")
            out |= one.benign.change.keys(f"behaviour/control:{name}")
        for name, against in self.direction_beside.items():
            out |= _against(against, f"control:{name}")
        return out

    def blocks(self) -> dict[str, Summary]:
        """The same keys site by site, where an analysis has them, and those of the weights by parameter."""
        return self.sites() | (self.weights.block_summary() if self.weights else {})

    def sites(self) -> dict[str, Summary]:
        """The keys of the states, site by site (layer and position)."""
        out = self.shifts.site_summary()
        for site, keys in (self.subspace.site_summary() if self.subspace else {}).items():
            out[site] = keys | out.get(site, {})
        return out

    def kinds(self) -> dict[str, str]:
        """What each key was computed from."""
        return {k: _KINDS.get(k.partition("/")[0], "states") for k in self.summary()}

    def _overlap_keys(self) -> tuple[str, ...]:
        parts = self.setting.parts
        if not {"left", "right"} <= set(parts):
            return ()
        return tuple(f"subspace/overlap:{parts['left']}:{parts['right']}{end}" for end in _ENDS)


def analyse(run: ErosionRun) -> Erosion:
    """Every analysis that the tables of a run allow, one after the other; a table is in memory only while it is used.

    Raises DataError where tables are not whole, may not be compared, or have too few rows for what is asked.
    """
    main, kept = _behaviour(run), kept_weights(run)
    return Erosion(
        setting=run.setting,
        behaviour=main,
        beside={} if main is None else _beside(run),
        refusals=_refusals(run),
        direction=_direction(run),
        direction_beside=_direction_beside(run),
        refusal_direction=_refusal_direction(run),
        subspace=_subspace(run),
        shifts=read_shifts(run),
        weights=kept.changes if kept else None,
        origins=_origins(run),
        warnings=tuple(
            dict.fromkeys(
                (
                    *run.setting.notes,
                    *(kept.notes if kept else ()),
                    *_warnings(run),
                    *removal_notes(run.setting.removal),
                )
            )
        ),
        samples=samples(run),
        safe_answers=safe_answers(run),
        removal=removal(run),
        next_tokens=expected_tokens(run),
    )


def _has(run: ErosionRun, *parts: str, models: tuple[str, ...] = (TUNED, ALIGNED)) -> bool:
    return set(parts) <= run.setting.parts.keys() and set(models) <= run.setting.models.keys()


def _behaviour(run: ErosionRun) -> Behaviour | None:
    if not _has(run, "harmful", "benign"):
        return None
    return behaviour(run.change("harmful"), run.change("benign"), seed=run.setting.seed)


def _beside(run: ErosionRun) -> dict[str, Behaviour]:
    harmful = run.change("harmful")
    others = {name: run.compared(TUNED, ALIGNED, name) for name in run.setting.controls}
    return {name: behaviour(harmful, other, seed=run.setting.seed) for name, other in others.items()}


def _refusals(run: ErosionRun) -> Refusals | None:
    opened = run.setting.opened
    if "safety" not in opened:
        return None
    return Refusals.of(_score(run, "safety"), _score(run, "benign") if "benign" in opened else None)


def _score(run: ErosionRun, part: str) -> RefusalScore:
    setting = run.setting
    refusing, complying = (
        run.compared(TUNED, ALIGNED, opened_name(setting.parts[part], opening)) for opening in OPENINGS
    )
    return refusal_score(refusing, complying, ending=setting.ending or 0, seed=setting.seed)


def _direction(run: ErosionRun) -> Direction | None:
    if not _has(run, "harmful", models=(BASE, ALIGNED, TUNED)):
        return None
    return _directed(run, run.setting.parts["benign"] if _has(run, "benign") else None)


def _direction_beside(run: ErosionRun) -> dict[str, Direction]:
    if not _has(run, "harmful", models=(BASE, ALIGNED, TUNED)):
        return {}
    return {name: _directed(run, name) for name in run.setting.controls}


def _directed(run: ErosionRun, control: str | None) -> Direction:
    harmful, harmless = _shifts(run, run.setting.parts["harmful"]), control and _shifts(run, control)
    return direction(*harmful, position=FIRST, control=harmless or None, seed=run.setting.seed)


def _shifts(run: ErosionRun, name: str) -> tuple[Comparison, Comparison]:
    return run.compared(ALIGNED, BASE, name), run.compared(TUNED, ALIGNED, name)


def _against(found: Direction, end: str) -> Summary:
    """The keys of a further control: its retention, and what the harmful rows' is less than it."""
    out: Summary = {**found.depth_trend.keys(f"direction/depth_trend/{end}")}
    for at, less in zip(found.control.layers if found.control else (), found.contrast, strict=True):
        out |= at.retention.keys(f"direction/retention/{end}/{at.layer}", p=False)
        out |= less.keys(f"direction/contrast/{end}/{at.layer}")
    return out


def _refusal_direction(run: ErosionRun) -> RefusalDirection | None:
    if not _has(run, "safety", "benign"):
        return None
    return refusal_direction(run.change("safety"), run.change("benign"), position=PROMPT)


def _subspace(run: ErosionRun) -> SubspaceOverlap | None:
    if not _has(run, "left", "right"):
        return None
    parts, setting = run.setting.parts, run.setting
    sides = (parts["left"], parts["right"])
    others = (*([parts["benign"]] if "benign" in parts else []), *setting.controls)
    controls = {n: run.compared(TUNED, ALIGNED, n) for n in dict.fromkeys(others) if n not in sides}
    return subspace_overlap(
        run.change("left"), run.change("right"), controls, position=FIRST, k=setting.k, names=sides,
        n_null=setting.n_null, seed=setting.seed,
    )  # fmt: skip


def _origins(run: ErosionRun) -> tuple[tuple[str, ...], ...]:
    """A line per saved table: model role, set, rows, finite rows, digest of the rows, model, digest of its weights."""
    out = []
    for role in run.setting.models:
        for name in run.setting.sets:
            table = run.table(role, name)
            of, finite = table.provenance, str(int(table.finite.sum()))
            out.append((role, name, str(len(table)), finite, table.rows, of.model, of.revision, of.weights))
    return tuple(out)


def _warnings(run: ErosionRun) -> list[str]:
    """What must be known of the models and of every set that was read with its own answers."""
    out = []
    if _same_weights(run):
        out.append("The tuned and the aligned model have the same weights: nothing can differ between them.")
    least = 1 / (1 + run.setting.n_null)
    if least >= ALPHA and _has(run, "left", "right"):
        out.append(f"With {run.setting.n_null} draws of a null no p of an overlap is below {least:.2g}.")
    for name in run.setting.own_sets:
        change = run.compared(TUNED, ALIGNED, name)
        out += [*change.pairing_warnings, *repeat_warning(change.left)]
        if BASE in run.setting.models:
            out += run.compared(ALIGNED, BASE, name).pairing_warnings
    return out


def _same_weights(run: ErosionRun) -> bool:
    name = run.setting.sets[0]
    return len({run.table(role, name).provenance.weights for role in (TUNED, ALIGNED)}) == 1
