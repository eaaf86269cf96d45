"""Everything that was found in a run, and under which flat keys it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graddiag.analyzers import (
    AdamAlignment,
    Alignment,
    Audit,
    Conflict,
    CosineMatrix,
    EditChange,
    Framing,
    LossGap,
    Repeats,
    TokenView,
    Training,
)
from graddiag.comparison import Comparison
from graddiag.edits import Edit
from graddiag.rules import PROJECTION_SE, RANDOM_SD
from graddiag.signals import Signals

_ENDS = ("", "/low", "/high")
_FORMS = ("alignment", "alignment_adam")
ALIGNMENT_KEYS = (  # there also where no safety set, or no optimizer, is given, and then undefined
    *(f"{form}/{side}{end}" for form in _FORMS for side in ("left", "right", "difference") for end in _ENDS),
    *(f"{form}/difference/p" for form in _FORMS),
    *(f"{form}/blocks_surviving" for form in _FORMS),
    *(f"alignment/safety_split_half{end}" for end in _ENDS),
    "alignment/safety_clusters",
    "alignment/safety_largest_cluster",
    *(f"alignment/{side}/{RANDOM_SD}" for side in ("left", "right")),
    "alignment_adam/momentum",
    *(f"alignment/{side}/{PROJECTION_SE}" for side in ("left", "right", "difference")),
)


@dataclass(frozen=True)
class Edited:
    """What was found in the same comparison with edited prompts, and what the edits changed."""

    edits: tuple[Edit, ...]
    findings: Findings
    change: EditChange

    def summary(self) -> dict[str, float | None]:
        """The keys of the comparison and of the change, under "edited/"."""
        return {f"edited/{k}": v for k, v in (self.findings.summary() | self.change.summary()).items()}

    def kinds(self) -> dict[str, str]:
        """For each of these keys what it was computed from."""
        return {f"edited/{k}": v for k, v in (self.findings.kinds() | self.change.kinds()).items()}

    def tables(self) -> dict[str, Signals]:
        """The tables of the edited sides, by their role."""
        sides = self.findings.tables()
        return {e.role: sides[e.side] for e in self.edits}


@dataclass(frozen=True)
class Findings:
    """Everything that was found in one comparison, and what a reader must know before believing it."""

    comparison: Comparison
    safety: Signals | None
    controls: Mapping[str, Signals]
    loss_gap: LossGap
    tokens: TokenView
    conflict: Conflict
    framing: Framing
    alignment: Alignment | None
    training: Training
    audit: Audit
    repeats: Repeats
    matrix: CosineMatrix
    command: str
    warnings: tuple[str, ...]
    alignment_adam: AdamAlignment | None = None
    edited: Edited | None = None

    @property
    def _results(
        self,
    ) -> tuple[LossGap | TokenView | Conflict | Framing | Alignment | AdamAlignment | Training | Audit | Repeats, ...]:
        sides = (self.loss_gap, self.tokens, self.conflict, self.framing)
        known = (*sides, self.alignment, self.alignment_adam, self.training, self.audit, self.repeats)
        return tuple(r for r in known if r is not None)

    def summary(self) -> dict[str, float | None]:
        """The flat keys of all results; undefined is None."""
        return self.own_summary() | (self.edited.summary() if self.edited else {})

    def own_summary(self) -> dict[str, float | None]:
        """The keys of this comparison alone, without those of the edited one."""
        found = {k: v for result in self._results for k, v in result.summary().items()}
        return found | {k: None for k in self._alignment_keys if k not in found}

    def kinds(self) -> dict[str, str]:
        """For each key, whether it is "exact", "projected" or of the "loss"."""
        found = {k: v for result in self._results for k, v in result.kinds().items()}
        found |= {k: "exact" for k in self._alignment_keys if k not in found}
        return found | (self.edited.kinds() if self.edited else {})

    @property
    def _alignment_keys(self) -> tuple[str, ...]:
        """All that a run with a safety set, these controls and an optimizer has."""
        controls = [f"{form}/control:{name}{end}" for form in _FORMS for name in self.controls for end in _ENDS]
        errors = [f"alignment/control:{name}/{end}" for name in self.controls for end in (PROJECTION_SE, RANDOM_SD)]
        return (*ALIGNMENT_KEYS, *controls, *errors)

    def block_summary(self) -> dict[str, dict[str, float | None]]:
        """The same keys per block, in model order, where they make sense."""
        parts = [result.block_summary() for result in self._results]
        if self.edited:
            with_edit = self.edited.findings.block_summary()
            parts.append({b: {f"edited/{k}": v for k, v in keys.items()} for b, keys in with_edit.items()})
        return {b: {k: v for p in parts for k, v in p.get(b, {}).items()} for b in self.comparison.left.blocks}

    def tables(self) -> dict[str, Signals]:
        """All tables by their role: left, right, safety, control:NAME, and left-edited, right-edited."""
        sides = {"left": self.comparison.left, "right": self.comparison.right}
        safety = {} if self.safety is None else {"safety": self.safety}
        controls = {f"control:{name}": t for name, t in self.controls.items()}
        return sides | safety | controls | (self.edited.tables() if self.edited else {})
