"""Which numbers stand behind the figures: plain tables, for CSV files and for the page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from graddiag.analyzers import AdamAlignment, Alignment, Conflict, CosineMatrix, LossGap, TokenView, Training
from graddiag.comparison import Comparison
from graddiag.layers import place
from graddiag.rules import ENDS, PROJECTION_SE, RANDOM_SD, WITHOUT_REPEATS, stem_of
from graddiag.signals import Signals
from graddiag.statistics import Estimate

Cell = str | float | int | bool | None


@dataclass(frozen=True)
class Table:
    """Named columns and rows; None is undefined."""

    name: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def to_csv(table: Table) -> str:
    """The table as CSV, exact to the last digit; an undefined cell is empty, text stays as it came with the data."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(table.header)
    writer.writerows([["" if _undefined(c) else c for c in row] for row in table.rows])
    return stream.getvalue()


def matrix_table(matrix: CosineMatrix) -> Table:
    """One line and one column per row of the matrix."""
    sets = [matrix.names[s] for s in matrix.sides]
    header = ("set", "cluster", "id", *(f"{s}:{i}" for s, i in zip(sets, matrix.ids, strict=True)))
    lines = zip(sets, matrix.clusters, matrix.ids, matrix.values.tolist(), strict=True)
    return Table("matrix", header, tuple((s, c, i, *values) for s, c, i, values in lines))


def layer_table(name: str, by_block: Mapping[str, Estimate]) -> Table:
    """One line per block, with its layer and kind."""
    header = ("block", "layer", "kind", "cosine", "low", "high", "p")
    lines = [(b, place(b).layer, place(b).kind, e.value, e.low, e.high, e.p) for b, e in by_block.items()]
    return Table(name, header, tuple(lines))


def position_table(result: LossGap) -> Table:
    """One line per position in the answer, counted from 1."""
    columns = (result.position_gap, result.position_low, result.position_high, result.position_n)
    lines = zip(range(1, len(result.position_n) + 1), *(c.tolist() for c in columns), strict=True)
    return Table("loss_gap", ("position", "gap", "low", "high", "n_pairs"), tuple(lines))


def token_table(result: TokenView) -> Table:
    """One line per token of the answers, the largest absolute contribution first.

    Tokens that occur too seldom have no rank by their mean gap.
    """
    header = ("token", "text", "count", "pairs", "mean_gap", "contribution", "rank_by_mean")
    rank = {t.token: k for k, t in enumerate(result.by_mean, start=1)}
    lines = [(t.token, t.text, t.count, t.pairs, t.mean_gap, t.contribution, rank.get(t.token)) for t in result.telling]
    return Table("tokens", header, tuple(lines))


def token_position_table(result: TokenView) -> Table:
    """One line per position in the answer, counted from 1, with its part of the mean gap and, where measured, the parts
    of the cosine with safety through the position that predicts it."""
    gap = result.gap
    header: tuple[str, ...] = ("position", "gap", "low", "high", "n_pairs", "share")
    columns = [gap.mean, gap.low, gap.high, gap.n, result.share]
    if result.through is not None:
        header = (*header, "through_left", "through_right")
        columns += [result.through.left.mean, result.through.right.mean]
    lines = zip(range(1, len(gap.n) + 1), *(c.tolist() for c in columns), strict=True)
    return Table("token_positions", header, tuple(lines))


def alignment_table(result: Alignment) -> Table:
    """One line per set: its rows and their mean cosine with the mean safety gradient; then left minus right."""
    estimates = {"left": result.overall.left, "right": result.overall.right}
    estimates |= {f"control:{name}": e for name, e in result.overall.controls.items()}
    lines: list[tuple[Cell, ...]] = [
        (role, result.names[role], int(np.isfinite(result.rows[role]).sum()), e.value, e.low, e.high, e.p)
        for role, e in estimates.items()
    ]
    gap = result.overall.difference
    pairs = int(np.isfinite(result.pair_difference).sum())
    lines.append(("difference", "left minus right, over pairs", pairs, gap.value, gap.low, gap.high, gap.p))
    return Table("alignment", ("role", "set", "n", "cosine", "low", "high", "p"), tuple(lines))


def pair_table(comparison: Comparison, gap: LossGap, conflict: Conflict, alignment: Alignment | None) -> Table:
    """One line per pair."""
    header: tuple[str, ...] = ("id", "cluster", "same_targets", "loss_left", "loss_right", "loss_gap", "paired_cosine")
    clusters = [gap.cluster_names[c] for c in gap.clusters]
    numbers = [comparison.identical, gap.left, gap.right, gap.gap, conflict.paired]
    if alignment is not None:
        header = (*header, "alignment_difference")
        numbers.append(alignment.pair_difference)
    lines = zip(gap.ids, clusters, *(c.tolist() for c in numbers), strict=True)
    return Table("pairs", header, tuple(lines))


def row_table(
    tables: Mapping[str, Signals],
    training: Training,
    alignment: Alignment | None,
    alignment_adam: AdamAlignment | None = None,
) -> Table:
    """One line per row of every table, the ones that are not finite too."""
    adam = None if alignment_adam is None else alignment_adam.alignment
    header = ("role", "set", "id", "cluster", "loss", "n_tokens", "length", "n_cut", "finite", "gradient_norm")
    lines: list[tuple[Cell, ...]] = []
    for role, table in tables.items():
        norm = np.sqrt(sum((n.astype(np.float64) ** 2 for n in table.norms.values()), np.zeros(len(table))))
        cosines = [_cosines(role, table, form) for form in ((alignment,) if adam is None else (alignment, adam))]
        changes = _changes(role, table, training, adam=adam is not None)
        numbers = (table.loss, table.n_tokens, table.length, table.n_cut, table.finite, norm, *cosines, *changes)
        columns = zip(table.ids, table.clusters, *(c.tolist() for c in numbers), strict=True)
        lines += [(role, table.provenance.data, *line) for line in columns]
    forms = ("",) if adam is None else ("", "adam_")
    last = [f"{form}{what}" for what in ("cosine_with_safety", "predicted_change") for form in forms]
    return Table("rows", (*header, *last), tuple(lines))


def block_table(blocks: Mapping[str, Mapping[str, float | None]]) -> Table:
    """One line per block, one column per key that any block has."""
    keys = tuple(dict.fromkeys(k for values in blocks.values() for k in values))
    lines = [(b, *(values.get(k) for k in keys)) for b, values in blocks.items()]
    return Table("blocks", ("block", *keys), tuple(lines))


def summary_table(summary: Mapping[str, float | None], kinds: Mapping[str, str]) -> Table:
    """One line per number: its interval and p (own keys in report.json), its unit, and what it was computed from."""
    main = [key for key in summary if key.rpartition("/")[2] not in (*ENDS, PROJECTION_SE, RANDOM_SD)]
    lines = [
        (
            *(k, summary[k], *(summary.get(f"{stem_of(k)}/{e}") for e in ENDS)),
            *(*(summary.get(f"{k}/{e}") for e in (PROJECTION_SE, RANDOM_SD)), unit(k), kinds.get(k)),
        )
        for k in main
    ]
    header = (
        "key",
        "value",
        *ENDS,
        "standard error by the projection",
        "sd of random directions",
        "unit",
        "computed from",
    )
    return Table("summary", header, tuple(lines))


def unit(key: str) -> str:
    """The unit of a flat key."""
    own = key.removeprefix(WITHOUT_REPEATS)
    first, last = own.partition("/")[0], own.rpartition("/")[2]
    if last in _UNITS:
        return _UNITS[last]
    known = (unit for stem, unit in _STEMS.items() if own.startswith(stem))
    return next(known, _FAMILIES.get(first, "cosine"))


_FAMILIES = {"pairs": "count", "loss": "nats/token", "loss_gap": "nats/token", "tokens": "share of the mean gap"}
_STEMS = {  # the first that fits
    "generated/": "share, 0..1",
    "intervention/": "nats/token",
    "behaviour/refusal": "nats",
    "behaviour/": "nats/token",
    "direction/refusal/cosine": "cosine",
    "direction/refusal/": "lengths of the direction",
    "direction/fitted": "hidden state",
    "direction/control/fitted": "hidden state",
    "direction/": "ratio",
    "subspace/k": "count",
    "subspace/mean_cosine": "cosine",
    "subspace/smallest_angle": "degrees",
    "subspace/largest_angle": "degrees",
    "subspace/": "share, 0..1",
    "weights/norm": "weights",
    "weights/relative": "ratio",
    "weights/stable_rank": "directions",
    "weights/along_alignment": "ratio",
    "weights/blocks": "count",
    "weights/changed_outside": "count",
}
_UNITS = {
    "n": "count",
    "clusters": "count",
    "left_out": "count",
    "random_subspaces": "count",
    "least_p": "probability",
    "random_p": "probability",
    "states_p": "probability",
    "blocks_surviving": "count",
    "safety_clusters": "count",
    "safety_largest_cluster": "share, 0..1",
    "first_gap": "nats",
    "wilcoxon_p": "probability",
    "effect_size": "standard deviations",
    "negative_fraction": "share, 0..1",
    "consistency": "ratio",
    "label_distance": "ratio",
    "forced": "inner product",
    "change": "nats/token per unit of learning rate",
    "adam_change": "nats/token per unit of learning rate",
    "opposed_share": "share, 0..1",
    "noise_scale": "examples",
    "sign_stiffness": "mean sign",
}


def _changes(role: str, table: Signals, training: Training, *, adam: bool) -> list[Float[np.ndarray, " n"]]:
    """Predicted changes of the safety loss by a step on each row, with the Adam form where it is there."""
    steps = training.steps.get(role)
    if steps is None:
        return [np.full(len(table), np.nan)] * (1 + adam)
    return [steps.change, steps.adam_change] if adam else [steps.change]


def _cosines(role: str, table: Signals, alignment: Alignment | None) -> Float[np.ndarray, " n"]:
    if alignment is None or role not in alignment.rows:
        return np.full(len(table), np.nan)
    return alignment.rows[role]


def _undefined(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, float) and not math.isfinite(cell))
