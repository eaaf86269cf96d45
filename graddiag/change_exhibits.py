"""The pictures of what changed inside the models: the states of every set, and the weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from graddiag.analyzers import Shift
from graddiag.erosion_shifts import Shifts
from graddiag.layers import place
from graddiag.picture import Picture
from graddiag.plotting import plot
from graddiag.tables import Cell, Table
from graddiag.weight_table import Product, WeightChange, WeightChanges

_SHIFT = ("set", "layer", "rows", "clusters", "size", "mean_share", "mean_share_null", "mean_share_p", "k")
_SPECTRUM = ("first_share", "first_edge", "effective_rank", "mean_norm", "mean_norm_low", "mean_norm_high")
_WEIGHT = ("block", "layer", "relative", "stable_rank", "directions_for_half", "along_alignment", "alignment")
_MORE = ("alignment_chance_sd", "safe_lora", "safe_lora_chance", "safe_lora_chance_sd", "norm", "first_share")
_SAFETY = ("safety", "safety_chance_sd", "safety_change")  # as with alignment, 0 on average by chance


def shifts_picture(result: Shifts) -> Picture:
    """How many directions the states of each set change along."""
    reading = (
        "How the states of each set change (tuned minus aligned, mean over the first 10 answer tokens) at the deepest "
        "layer that was read; the table has all layers. One vector added to all rows alike is the mean shift, told "
        "apart from the components: how the rows differ in their change. Any fine-tune, on harmless rows too, moves "
        "the mean and has components: only what the sets do not share says something about one of them."
    )
    lines = tuple(tuple(_line(layer, one)) for by_layer in result.of.values() for layer, one in by_layer.items())
    return Picture(
        "shifts", "Changes of states", reading, lambda: plot(result), Table("shifts", _SHIFT + _SPECTRUM, lines)
    )


def _line(layer: int, one: Shift) -> Iterator[Cell]:
    yield from (one.name, layer, one.n_rows, one.n_clusters, one.size)
    yield from (one.mean_share, one.mean_share_null, one.mean_p, one.k)
    yield from (float(v[0]) if len(v) else None for v in (one.shares, one.edges))
    yield from (one.effective_rank, one.mean_norm.value, one.mean_norm.low, one.mean_norm.high)


def weights_picture(result: WeightChanges) -> Picture:
    """Size, spectrum and way of the update of the weights."""
    reading = (
        "The update of the weights, tuned minus aligned, block by block: its norm over that of the aligned weights; "
        "the spectrum (stable rank: all squares over those of the first direction; in the table also how many hold "
        "half of them); and its cosine with aligned minus base, below 0 back towards the base. Chance is an update "
        "with the same singular values in random directions, which real updates are not: those of two fine-tunes on "
        "anything can lie alike, so the control is another fine-tune of the same model. Column spaces (safe_lora) are "
        "similar by chance already: compare with that. "
    ) + _of_safety(result.overall)
    lines = tuple(_block(b, c) for b, c in {"all as one": result.overall, **result.blocks}.items())
    table = Table("weights", _WEIGHT + _MORE + _SAFETY, lines)
    return Picture("weights", "Update of the weights", reading, lambda: plot(result), table)


def _of_safety(whole: WeightChange) -> str:
    """What the cosine with minus the safety gradient says, and what it does not."""
    if whole.safety is None:
        return "Its cosine with minus the safety gradient is not measured without --safety-gradient."
    return (
        "Its cosine with minus the mean safety gradient of the aligned model: below 0, a small step this way would "
        "raise the loss on safe answers. That is first order only: the update was no small step, so that the predicted "
        "change of the loss stands beside the one that was measured, and other parameters changed it too."
    )


def _block(name: str, change: WeightChange) -> tuple[Cell, ...]:
    shares, undefined = change.shares, Product()
    half = int(np.searchsorted(np.cumsum(shares), 0.5)) + 1 if len(shares) else None
    way, lora, safety = (p or undefined for p in (change.alignment, change.safe_lora, change.safety))
    own = (name, place(name).layer, change.relative, change.stable_rank, half, change.back, way.cosine, way.chance_sd)
    rest = (
        change.norm,
        float(shares[0]) if len(shares) else None,
        safety.cosine,
        safety.chance_sd,
        change.safety_change,
    )
    return (*own, lora.cosine, lora.chance, lora.chance_sd, *rest)
