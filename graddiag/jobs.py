"""Which rows are measured together, and what a part of them becomes: one table per set, and products of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graddiag.encoding import Encoded, EncodedSet
from graddiag.signals import PairProducts, Signals


@dataclass(frozen=True)
class Job:
    """Rows to be measured together: of one set, or of two whose pairs share a batch. `side[i]` is the set of row i."""

    sets: tuple[EncodedSet, ...]
    rows: tuple[Encoded, ...]
    side: tuple[int, ...]
    units: tuple[tuple[int, ...], ...]

    @staticmethod
    def single(one: EncodedSet) -> Job:
        """Every row for itself."""
        return Job((one,), one.rows, (0,) * len(one.rows), tuple((i,) for i in range(len(one.rows))))

    @staticmethod
    def paired(left: EncodedSet, right: EncodedSet) -> Job:
        """Rows of the same id are a unit (left, right); rows without a partner are units of their own."""
        partner = {r.id: len(left.rows) + k for k, r in enumerate(right.rows)}
        units = [(i, partner.pop(r.id)) if r.id in partner else (i,) for i, r in enumerate(left.rows)]
        units += [(j,) for j in partner.values()]
        side = (0,) * len(left.rows) + (1,) * len(right.rows)
        return Job((left, right), (*left.rows, *right.rows), side, tuple(units))

    @property
    def tokens(self) -> int:
        """All tokens of all rows."""
        return sum(len(r.tokens) for r in self.rows)

    def touching(self, sides: Sequence[int]) -> Job:
        """The units with a row of one of these sets."""
        return replace(self, units=tuple(u for u in self.units if any(self.side[i] in sides for i in u)))

    def without(self, ids: set[str]) -> Job:
        """The units that are not done yet."""
        return Job(self.sets, self.rows, self.side, tuple(u for u in self.units if self.rows[u[0]].id not in ids))


@dataclass(frozen=True)
class Chunk:
    """Some finished rows: one table per set of the job, and the exact products of the pairs among them."""

    tables: tuple[Signals, ...]
    pairs: PairProducts

    @staticmethod
    def concat(chunks: Sequence[Chunk]) -> Chunk:
        """The chunks one after the other."""
        tables = tuple(Signals.concat(t) for t in zip(*(c.tables for c in chunks), strict=True))
        return Chunk(tables, PairProducts.concat([c.pairs for c in chunks]))
