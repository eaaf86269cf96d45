"""Does Adam's next step on these rows move the model towards safe answers or away from them?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from graddiag.analyzers._alignment import Alignment, aligned
from graddiag.analyzers._cosines import Products, RowCosines, check_safety, knows_safety, row_cosines, with_reference
from graddiag.answers import clustered
from graddiag.comparison import Comparison
from graddiag.signals import Signals
from graddiag.statistics import optional

PREFIX = "alignment_adam"


@dataclass(frozen=True)
class AdamAlignment:
    """Cosines of `D_i = Gamma(g_i) - Gamma(0)` with the mean safety gradient, exact.

    Gamma(g) is Adam's next step on the gradient g, per unit of learning rate. A step on an example is mostly momentum,
    the same for every example (`momentum` is its cosine); D_i is what the example itself adds, so that, to first order,
    the safety loss after a step on it is `-eta <D_i, gbar_S>` above that after a step on nothing. The example is taken
    as the whole batch, without gradient clipping; decoupled weight decay is the same for all and in neither.
    """

    alignment: Alignment
    momentum: float
    momentum_blocks: Mapping[str, float]

    def summary(self) -> dict[str, float | None]:
        """The flat keys of this result; None where undefined."""
        return self.alignment.summary() | {f"{PREFIX}/momentum": optional(self.momentum)}

    def block_summary(self) -> dict[str, dict[str, float | None]]:
        """The same keys per block, and the false discovery rate of the p over blocks."""
        momentum = {b: {f"{PREFIX}/momentum": optional(v)} for b, v in self.momentum_blocks.items()}
        return {b: keys | momentum[b] for b, keys in self.alignment.block_summary().items()}

    def kinds(self) -> dict[str, str]:
        """Every key was computed from exact gradients."""
        return dict.fromkeys(self.summary(), "exact")


def alignment_adam(
    comparison: Comparison, safety: Signals, controls: Mapping[str, Signals] | None = None, *, seed: int = 0
) -> AdamAlignment | None:
    """The Adam form of `alignment`; None unless every table was measured towards the mean of these safety rows under
    one and the same state of an optimizer.

    Raises DataError where a set was measured in another space, or no safety row is finite.
    """
    controls = {name: clustered(t)[0] for name, t in (controls or {}).items()}
    check_safety(comparison, safety, controls)
    tables = {"left": comparison.left, "right": comparison.right} | {f"control:{n}": t for n, t in controls.items()}
    states = {t.adam.state if t.adam else None for t in tables.values()}
    if len(states) > 1 or None in states or not all(knows_safety(t, safety) for t in tables.values()):
        return None
    left = comparison.left
    cosines = {name: adam_cosines(t) for name, t in tables.items()}
    resting = row_cosines(_resting(left, b) for b in left.blocks)
    return AdamAlignment(
        aligned(comparison, safety, tables, cosines, prefix=PREFIX, exact=True, seed=seed),
        float(resting.whole[0]),
        {b: float(v[0]) for b, v in resting.blocks.items()},
    )


def adam_cosines(table: Signals) -> RowCosines:
    """Exact cosine of what each row adds to the step with the mean gradient that the table knows, [n]."""
    return with_reference(table, table.adam_dot, table.adam_norm)


def _resting(table: Signals, block: str) -> Products:
    """The step without any example, as a row of its own."""
    reference, adam = table.reference, table.adam
    assert reference is not None
    assert adam is not None
    squares = (adam.norms[block] ** 2, reference.norms[block] ** 2)
    return Products(block, *(np.array([v]) for v in (adam.dot[block], *squares)))
