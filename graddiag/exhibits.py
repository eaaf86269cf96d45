"""Which figures a report has, how each is read, and which numbers it shows."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from graddiag.analyzers import (
    MIN_COUNT,
    Alignment,
    Audit,
    BlockTests,
    Conflict,
    CosineMatrix,
    Framing,
    LossGap,
    TokenView,
)
from graddiag.side_by_side import SideBySide
from graddiag.tables import Table, alignment_table, layer_table, matrix_table, position_table, token_table
from graddiag.text import visible

SHOWN = 8  # names of blocks in one sentence; all are in the table of blocks
NAMES = ("loss_gap", "tokens", "matrix", "conflict", "framing", "alignment")

Drawable = LossGap | TokenView | CosineMatrix | Conflict | Framing | Alignment | SideBySide


@dataclass(frozen=True)
class Exhibit:
    """A result to be drawn, under the name of its files, with one sentence on how to read it and its numbers."""

    name: str
    title: str
    reading: str
    result: Drawable
    table: Table


def exhibits(
    *,
    loss_gap: LossGap,
    tokens: TokenView,
    matrix: CosineMatrix,
    conflict: Conflict,
    framing: Framing,
    alignment: Alignment | None,
    audit: Audit,
) -> tuple[Exhibit, ...]:
    """The figures that these results allow; framing and alignment need a safety set."""
    sides = (visible(loss_gap.left_name), visible(loss_gap.right_name))
    out = [_loss_gap(loss_gap, *sides), _tokens(tokens), _matrix(matrix, audit), _conflict(conflict)]
    if framing.safety_name is not None:
        out.append(_framing(framing, *sides))
    if alignment is not None:
        out.append(_alignment(alignment))
    return tuple(out)


def _loss_gap(result: LossGap, left: str, right: str) -> Exhibit:
    reading = (
        f"Each dot is a pair: to the right of 0, the same answer is less likely after the request of {left} than after "
        f"that of {right}; on the right, the mean gap at each token of the answer, and how many pairs reach it."
    )
    return Exhibit("loss_gap", "Loss gap of pairs", reading, result, position_table(result))


def _tokens(result: TokenView) -> Exhibit:
    reading = (
        "The band holds the whole curve at once with 95 % confidence: where it leaves 0, the gap is there. Bars are "
        "the tokens of the vocabulary that contribute most to the mean gap, with how often they occur; tokens are "
        f"ranked by their mean gap in the table only from {MIN_COUNT} occurrences."
    )
    if result.through is not None:
        reading += (
            " Alignment is split by the position through which the gradient enters; a position also carries what later "
            "tokens send back to it, so it is not what its own token caused."
        )
    return Exhibit("tokens", "Loss gap by answer token", reading, result, token_table(result))


def _matrix(result: CosineMatrix, audit: Audit) -> Exhibit:
    reading = (
        "Each cell is the cosine of two rows' gradients, from red (-1, opposite) to blue (+1, the same direction); "
        "black lines part the sets, white lines the clusters in them. Never centred."
    )
    if audit.error > 0:
        reading += f" Projected: a cell is off by about {audit.error:.3f}."
    return Exhibit("matrix", "Conflict matrix", reading, result, matrix_table(result))


def _conflict(result: Conflict) -> Exhibit:
    reading = (
        "Each dot is the mean over pairs of the cosine of their two gradients in one block, with its 95 % interval: "
        "below 0 the two framings pull the block in opposite directions. With so many blocks about one interval in 20 "
        "misses its true value by chance. conflict/q and conflict/p_fwe of a block ask another "
        "question: whether partners differ from other pairs of their cluster."
    )
    reading += _survivors(result.tests, "of permuted partners")
    if result.centered:
        reading += " The grand mean was subtracted, which by itself pushes these cosines below 0."
    by_block = {block: scope.paired for block, scope in result.blocks.items()}
    return Exhibit("conflict", "Gradient conflict by layer", reading, result, layer_table("conflict", by_block))


def _framing(result: Framing, left: str, right: str) -> Exhibit:
    reading = (
        f"The framing gradient is what {left} adds to the gradient of the same answer under {right}; below 0 it points "
        "against the mean safety gradient. Intervals are given this safety set, and the noise of both means pulls the "
        "cosines towards 0: framing/safety_cosine_corrected is without it, where it is measurable."
    )
    reading += _survivors(result.tests, "of the mean framing gradient (is there any?)")
    errors = [e for s in result.blocks.values() if (e := s.projection_se.get("safety_cosine", 0.0)) > 0]
    if errors:
        reading += (
            f" Projected: by its projection alone, a cosine in one block has a standard error of {median(errors):.2f} "
            "(median over blocks), which the intervals do not hold; single blocks prove nothing."
        )
    by_block = {block: scope.safety_cosine for block, scope in result.blocks.items()}
    return Exhibit("framing", "Framing gradient and safety by layer", reading, result, layer_table("framing", by_block))


def _alignment(result: Alignment) -> Exhibit:
    reading = (
        "Each dot is a row: below 0, one step on it raises the loss on safe answers, to first order. Diamonds and bars "
        "are means with 95 % intervals. What the controls do too is not special to the sides."
    )
    reading += _survivors(result.tests, "of left minus right")
    return Exhibit("alignment", "Alignment with safety", reading, result, alignment_table(result))


def _survivors(tests: BlockTests, what: str) -> str:
    """Which blocks' permutations still give a p below 0.05 once all blocks are paid for."""
    count = tests.surviving
    if count is None:
        return ""
    said = f" Tests {what}: with the family-wise error over all {len(tests.familywise)} blocks at 5 %, {count} survive"
    shown = ", ".join(visible(b) for b in tests.survivors[:SHOWN])
    rest = f" and {count - SHOWN} more, see Every block" if count > SHOWN else ""
    return f"{said}: {shown}{rest}." if count else f"{said}."
