"""In which of many blocks is there a difference, once the number of blocks is paid for?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from graddiag.permutations import Null, false_discovery_q, familywise_p
from graddiag.statistics import optional

FAMILYWISE, DISCOVERY, SURVIVING = "p_fwe", "q", "blocks_surviving"  # how the keys end
LEVEL = 0.05  # below it a family-wise p is said to survive


@dataclass(frozen=True)
class BlockTests:
    """Per block, the p of its own permutations adjusted for all blocks; NaN where undefined.

    `familywise` holds the chance that any block at all comes out in 5 %, by the largest standardised statistic of the
    same permutations; `discovery` is the share of false ones among those that are called (Benjamini and Hochberg).
    """

    familywise: Mapping[str, float]
    discovery: Mapping[str, float]

    @staticmethod
    def of(nulls: Mapping[str, Null]) -> BlockTests:
        """Those of blocks whose nulls come from the same permutations."""
        q = false_discovery_q(np.array([n.p for n in nulls.values()], dtype=np.float64))
        familywise = familywise_p(list(nulls.values()))
        return BlockTests(dict(zip(nulls, familywise.tolist(), strict=True)), dict(zip(nulls, q.tolist(), strict=True)))

    @property
    def survivors(self) -> tuple[str, ...]:
        """Blocks whose family-wise p is below 0.05, in model order."""
        return tuple(b for b, p in self.familywise.items() if p < LEVEL)

    @property
    def surviving(self) -> int | None:
        """How many survive; None where no block has a p."""
        return len(self.survivors) if any(math.isfinite(p) for p in self.familywise.values()) else None

    def keys(self, prefix: str, block: str) -> dict[str, float | None]:
        """The flat keys of one block."""
        return {
            f"{prefix}/{DISCOVERY}": optional(self.discovery[block]),
            f"{prefix}/{FAMILYWISE}": optional(self.familywise[block]),
        }
