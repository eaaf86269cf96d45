"""How do the states of every set of a run change, tuned minus aligned: all alike, and beyond that, how variously?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graddiag.analyzers import Shift, shift
from graddiag.erosion_setting import ALIGNED, FIRST, TUNED, ErosionRun
from graddiag.sites import parse_site


@dataclass(frozen=True)
class Shifts:
    """The change of states of each set, with its own answers, at each layer that was read (mean over the first answer
    tokens); `of` is by set, then by layer, both in order."""

    of: Mapping[str, Mapping[int, Shift]]

    @property
    def deepest(self) -> int:
        """The last layer that was read."""
        return max(layer for by_layer in self.of.values() for layer in by_layer)

    def site_summary(self) -> dict[str, dict[str, float | None]]:
        """The flat keys of all sets, at each site."""
        out: dict[str, dict[str, float | None]] = {}
        for by_layer in self.of.values():
            for one in by_layer.values():
                out.setdefault(one.site, {}).update(one.summary())
        return out


def read_shifts(run: ErosionRun) -> Shifts:
    """The shifts of every set that was read with its own answers; components are counted also where a run compares a
    given number of them. Raises DataError where tables may not be compared."""
    return Shifts({name: _by_layer(run, name) for name in run.setting.own_sets})


def _by_layer(run: ErosionRun, name: str) -> dict[int, Shift]:
    change = run.compared(TUNED, ALIGNED, name)
    sites = sorted(s for s in map(parse_site, change.left.states) if s.position == FIRST)
    return {s.layer: shift(change, s.name, name=name, seed=run.setting.seed) for s in sites}
