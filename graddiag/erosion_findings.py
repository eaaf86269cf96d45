"""What three models show on the sets of a run, and under which flat keys it stands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from graddiag.analyzers import AnswerChange, Behaviour, Direction, RefusalDirection, RefusalScore, SubspaceOverlap
from graddiag.erosion_removal import Removal
from graddiag.erosion_samples import Samples
from graddiag.erosion_setting import ErosionSetting
from graddiag.erosion_shifts import Shifts
from graddiag.expected_tokens import AfterPrompt
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


def _against(found: Direction, end: str) -> Summary:
    """The keys of a further control: its retention, and what the harmful rows' is less than it."""
    out: Summary = {**found.depth_trend.keys(f"direction/depth_trend/{end}")}
    for at, less in zip(found.control.layers if found.control else (), found.contrast, strict=True):
        out |= at.retention.keys(f"direction/retention/{end}/{at.layer}", p=False)
        out |= less.keys(f"direction/contrast/{end}/{at.layer}")
    return out
