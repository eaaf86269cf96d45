"""How a gradient becomes a short row: kept whole, or multiplied with random matrices from one side or from both."""

from graddiag.projection._dense import GaussianRows
from graddiag.projection._exact import Exact
from graddiag.projection._from_formed import RowsOfFormed, rows_of_formed
from graddiag.projection._logra import LoGra
from graddiag.projection._lowrank import Bases, LowRank, sides_basis
from graddiag.projection._projector import KINDS, Projector, make_projector, probe_digest
from graddiag.projection._sjlt import Sjlt
from graddiag.projection._toward import Toward
from graddiag.projection._two_sided import Factors, shorten

__all__ = [
    "KINDS",
    "Bases",
    "Exact",
    "Factors",
    "GaussianRows",
    "LoGra",
    "LowRank",
    "Projector",
    "RowsOfFormed",
    "Sjlt",
    "Toward",
    "make_projector",
    "probe_digest",
    "rows_of_formed",
    "shorten",
    "sides_basis",
]
