"""What did fine-tuning do to the weights: how much, in how many directions, and towards or away from safety?"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from graddiag.errors import DataError, UsageError
from graddiag.weight_reading import Entry, Weights, entries_of, in_layer, plain_name, weight_entries
from graddiag.weight_table import Product, Spread, WeightChange, WeightChanges


def compare_weights(
    tuned: Weights,
    aligned: Weights,
    *,
    base: Weights | None = None,
    safety: Mapping[str, Tensor] | Mapping[str, Entry] | None = None,
    blocks: Sequence[str] | None = None,
) -> WeightChanges:
    """The update tuned minus aligned, block by block and as one vector; no data is needed.

    Each model is a loaded one (a PEFT adapter counts as merged) or a mapping from names to tensors, such as a state
    dict; one block at a time is held in double precision. `base` adds how the update lies to aligned minus base,
    `safety` (a mean gradient per block, of the aligned model) its cosine with minus that. `blocks` are patterns as
    everywhere; by default the matrices inside numbered layers, a stack of experts as one block. The sides of a matrix
    are those of storage, `[d_out, d_in]`; GPT-2's layers store the other way round, and `safe_lora` then compares row
    spaces.

    Raises UsageError for a pattern that matches nothing, DataError where a block is missing in another model, has
    another shape there, or has no safety gradient.
    """
    models = {"aligned": weight_entries(aligned, "aligned"), "tuned": weight_entries(tuned, "tuned")}
    if base is not None:
        models["base"] = weight_entries(base, "base")
    chosen = _choose(models["aligned"], blocks)
    for role in ("tuned", "base"):
        if role in models:
            _check_same(chosen, models["aligned"], models[role], role)
    gradients = None if safety is None else _gradients(safety, chosen, models["aligned"])
    changes, squares = {}, 0.0
    for name in chosen:
        weights = {role: entries[name].read().to(torch.float64) for role, entries in models.items()}
        gradient = None if gradients is None else gradients[name].read().to(weights["aligned"])
        changes[name] = _change(weights, gradient)
        squares += _square(weights["aligned"])
    others = [n for n in models["aligned"] if n not in changes and n in models["tuned"]]
    left_out = tuple(n for n in others if not _equal(models["aligned"][n], models["tuned"][n]))
    return WeightChanges(_overall(list(changes.values()), squares), changes, left_out)


def _choose(entries: Mapping[str, Entry], patterns: Sequence[str] | None) -> list[str]:
    """The names that a pattern matches, whole or without the last part, in the order of the model."""
    if patterns is None:
        chosen = [n for n, e in entries.items() if in_layer(n, e.shape)]
        if not chosen:
            raise UsageError("These weights have no matrices inside numbered layers. Name blocks.")
        return chosen
    wanted: set[str] = set()
    for pattern in patterns:
        found = {n for n in entries if fnmatchcase(n, pattern) or fnmatchcase(n.rpartition(".")[0], pattern)}
        if not found:
            close = difflib.get_close_matches(pattern.strip("*."), entries, n=4, cutoff=0.2) or list(entries)[:4]
            raise UsageError(f"No block matches {pattern!r}. Closest: {', '.join(close)}, ...")
        wanted |= found
    return [n for n in entries if n in wanted]


def _check_same(chosen: Sequence[str], aligned: Mapping[str, Entry], other: Mapping[str, Entry], role: str) -> None:
    missing = [n for n in chosen if n not in other]
    if missing:
        raise DataError(
            f"The {role} model has no {missing[0]!r} ({len(missing)} of {len(chosen)} blocks are missing). Compare "
            "models of one architecture, or name blocks that all have."
        )
    for name in chosen:
        if other[name].shape != aligned[name].shape:
            raise DataError(
                f"{name!r} is {list(aligned[name].shape)} in the aligned model and {list(other[name].shape)} in the "
                f"{role} one: they cannot be subtracted. Compare models of one architecture."
            )


def _gradients(
    safety: Mapping[str, Tensor] | Mapping[str, Entry], chosen: Sequence[str], aligned: Mapping[str, Entry]
) -> dict[str, Entry]:
    named = {plain_name(n): g for n, g in entries_of(safety).items()}
    for name in chosen:
        if name not in named:
            raise DataError(
                f"There is no safety gradient of {name!r}. Name the blocks that have one: "
                f"{', '.join(list(named)[:3])}, ..."
            )
        if tuple(named[name].shape) != aligned[name].shape:
            raise DataError(
                f"The safety gradient of {name!r} is {list(named[name].shape)}, the block {list(aligned[name].shape)}. "
                "Measure it on the aligned model, whole."
            )
    return named


def _change(weights: Mapping[str, Tensor], gradient: Tensor | None) -> WeightChange:
    """Of one block; experts in a stack are a matrix each, and then taken as one vector."""
    if weights["aligned"].ndim == 3:
        each = [
            _change({role: w[k] for role, w in weights.items()}, None if gradient is None else gradient[k])
            for k in range(len(weights["aligned"]))
        ]
        return _overall(each, _square(weights["aligned"]))
    update = weights["tuned"] - weights["aligned"]
    values = _singular_squares(update) if update.ndim == 2 else np.zeros(0)
    total, aligned = _square(update), _square(weights["aligned"])
    way = weights["aligned"] - weights["base"] if "base" in weights else None
    return WeightChange(
        norm=math.sqrt(total),
        relative=math.sqrt(total / aligned) if aligned > 0 else math.nan,
        safety=None if gradient is None else _with_fixed(update, -gradient),
        alignment=None if way is None else _with_fixed(update, way),
        safe_lora=None if way is None or way.ndim != 2 else _with_projection(update, way, values),
        shares=values / values.sum() if len(values) and values.sum() > 0 else np.zeros(0),
    )


def _square(t: Tensor) -> float:
    return float((t * t).sum())


def _singular_squares(matrix: Float[Tensor, "m n"]) -> Float[np.ndarray, " k"]:
    """The squared singular values, largest first."""
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return np.asarray(torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).cpu().numpy(), dtype=np.float64)


def _with_fixed(update: Tensor, other: Tensor) -> Product:
    """With one fixed direction. In random directions, left and right, `E <update, other>^2` is
    `||update||^2 ||other||^2 / size`."""
    squares = _square(update), _square(other)
    variance = squares[0] * squares[1] / update.numel()
    return Product(float((update * other).sum()), squares, 0.0, squares[1], Spread(inner=variance))


def _with_projection(
    update: Float[Tensor, "m n"], way: Float[Tensor, "m n"], values: Float[np.ndarray, " k"]
) -> Product:
    """With `C update`, `C = V V^T / ||V||`, as Safe LoRA does.

    For the chance: the left singular vectors of the update are a random orthonormal frame, of which
    `E q^T C q = tr C / m`, `cov(q^T C q, q^T C^2 q) = 2 (tr C^3 / m - tr C tr C^2 / m^2) / (m + 2)`, and so on.
    """
    length, m = math.sqrt(_square(way)), update.shape[0]
    if length == 0 or not values.any():
        return Product()
    moved = way @ (way.T @ update) / length
    spectrum = _singular_squares(way) / length
    power = [float((spectrum**n).sum()) / m for n in range(5)]  # power[n] is tr C^n / m for n > 0
    total, fourth = float(values.sum()), float((values**2).sum())
    free = fourth - (total**2 - fourth) / (m - 1) if m > 1 else 0.0  # the frame is orthogonal: a whole one leaves none
    spread = [2 * (power[i + j] - power[i] * power[j]) / (m + 2) * free for i, j in ((1, 1), (1, 2), (2, 2))]
    squares = total, _square(moved)
    return Product(float((update * moved).sum()), squares, power[1] * total, power[2] * total, Spread(*spread))


def _overall(changes: Sequence[WeightChange], aligned: float) -> WeightChange:
    total = sum(c.norm**2 for c in changes)
    return WeightChange(
        norm=math.sqrt(total),
        relative=math.sqrt(total / aligned) if aligned > 0 else math.nan,
        safety=_sum([c.safety for c in changes]),
        alignment=_sum([c.alignment for c in changes]),
        safe_lora=_sum([c.safe_lora for c in changes]),
    )


def _sum(products: Sequence[Product | None]) -> Product | None:
    known = [p for p in products if p is not None]
    return sum(known, Product()) if known else None


def _equal(a: Entry, b: Entry) -> bool:
    return a.shape == b.shape and bool(torch.equal(a.read(), b.read()))
