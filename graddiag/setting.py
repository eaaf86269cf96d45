"""What must the rules know of a run beside its numbers?"""

from __future__ import annotations

from graddiag.edits import SUFFIX
from graddiag.findings import Findings
from graddiag.rules import Setting
from graddiag.signals import Provenance


def setting_of(findings: Findings) -> Setting:
    """What the rules must know beside the numbers."""
    comparison, tables = findings.comparison, findings.tables()
    left, right = comparison.left.provenance, comparison.right.provenance
    same = left.data == right.data
    safety = findings.safety.provenance if findings.safety is not None else None
    others = (
        role
        for role, t in tables.items()
        if safety is not None and t.provenance.weights != safety.weights and not role.endswith(SUFFIX)
    )
    return Setting(
        left=_side(left, "left", left.model != right.model) if same else left.data,
        right=_side(right, "right", left.model != right.model) if same else right.data,
        safety=None if safety is None else safety.data,
        controls=tuple(findings.controls),
        differs=comparison.differs,
        other_model=tuple(others),
        centered=findings.conflict.centered,
        kinds=findings.kinds(),
        adam=findings.alignment_adam is not None,
    )


def _side(one: Provenance, side: str, by_model: bool) -> str:
    """What a set is called that has the name of the other side's: by its model if that differs, else by its side."""
    return f"{one.data} ({one.model if by_model else side})"
