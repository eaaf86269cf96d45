"""The figure and the tables of what the removal of a shared space does."""

from __future__ import annotations

from graddiag.erosion_removal import GIVEN, KINDS, Effect, Removal
from graddiag.picture import Picture
from graddiag.plotting import plot
from graddiag.tables import Cell, Table

_READING = (
    "Change of the log-probability per token of given answers when the space between the two shifts' subspaces (their "
    "means subtracted) is taken out of the tuned model's states, at every token behind these layers; what is removed "
    "was fitted on one half of the clusters, and the answers are those of the other. Small dots: the same without "
    "random subspaces of the same sizes, uniform ones and such as are drawn like the tuned model's states, which is "
    "the harder comparison. What harmless answers lose too has nothing to do with harm; if the two sets and the "
    "harmful answers are of one subject (code, say), so may be what is removed: a control of that subject tells. "
    + GIVEN
)


def removal_picture(result: Removal) -> Picture:
    """Every change with its random draws."""
    effects = {f"harmful: {result.name}": result.harmful}
    effects |= {f"harmless: {name}": e for name, e in result.harmless.items()}
    effects |= {f"{result.name} beyond {name}": e for name, e in result.beyond.items()}
    chance = tuple(f"{kind}_{what}" for kind in KINDS for what in ("mean", "sd", "p"))
    table = Table(
        "intervention",
        ("answers", "change", "low", "high", "p", *chance),
        tuple((name, *_cells(e)) for name, e in effects.items()),
    )
    return Picture("intervention", "Without what the two shifts share", _READING, lambda: plot(result), table)


def _cells(e: Effect) -> tuple[Cell, ...]:
    return tuple(e.keys("x").values())


def fit_table(result: Removal) -> Table:
    """A line per half and layer: what was fitted there."""
    header = ("half", "layer", "rows of left", "rows of right", "components of left", "of right", "removed", "overlap")
    lines = [(f.half, f.layer, *f.n_rows, *f.k, f.size, f.overlap) for f in result.setting.fits]
    return Table("intervention_fits", header, tuple(lines))


def removal_rows(result: Removal) -> Table:
    """A line per answer: its change without what is shared."""
    return Table("intervention_rows", ("set", "id", "cluster", "change"), result.rows)
