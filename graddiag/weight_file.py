"""What fine-tuning did to the weights, on disk: one file, exact to the last bit, read without torch."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from graddiag.errors import DataError
from graddiag.files import write_atomically
from graddiag.weight_table import Product, Spread, WeightChange, WeightChanges

WEIGHTS_FILE = "weights.npz"
_PRODUCTS = ("safety", "alignment", "safe_lora")
_PARTS = 8  # numbers of a product
_COLUMNS = 2 + len(_PRODUCTS) * _PARTS


@dataclass(frozen=True)
class KeptWeights:
    """What the file holds: the changes, digests of the models that were compared, what must be said of it, and the
    digest of the rows of the safety gradient, empty where there was none."""

    changes: WeightChanges
    models: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    safety: str = ""


def save_weights(path: Path, kept: KeptWeights) -> None:
    """Writes the file atomically."""
    changes = kept.changes
    lines = [changes.overall, *changes.blocks.values()]
    arrays = {
        "numbers": np.array([list(_numbers(c)) for c in lines], dtype=np.float64),  # all blocks as one first
        "blocks": np.array(list(changes.blocks), dtype=np.str_),
        "left_out": np.array(changes.left_out, dtype=np.str_),
        "lengths": np.array([len(c.shares) for c in lines], dtype=np.int64),
        "shares": np.concatenate([c.shares for c in lines]),
        "models": np.array(kept.models, dtype=np.str_),
        "notes": np.array(kept.notes, dtype=np.str_),
        "safety": np.array(kept.safety, dtype=np.str_),
    }

    def write(at: Path) -> None:
        with at.open("wb") as file:  # given a name, numpy would add an ending to it
            np.savez(file, allow_pickle=False, **arrays)

    write_atomically(path, write)


def read_weights(path: Path) -> KeptWeights:
    """What was written. Raises DataError where the file cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as held:
            numbers, blocks, left_out = held["numbers"], held["blocks"].tolist(), held["left_out"].tolist()
            shares = np.split(held["shares"], np.cumsum(held["lengths"])[:-1])
            models, notes = (tuple(held[name].tolist()) for name in ("models", "notes"))
            safety = str(held["safety"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read ({error}). Delete it and give the erosion command again.") from error
    if numbers.shape != (1 + len(blocks), _COLUMNS):
        raise DataError(f"{path} is not that of this version. Delete it and give the erosion command again.")
    overall, *each = (_change(n, s) for n, s in zip(numbers, shares, strict=True))
    changes = WeightChanges(overall, dict(zip(blocks, each, strict=True)), tuple(left_out))
    return KeptWeights(changes, models, notes, safety)


def _numbers(change: WeightChange) -> Iterator[float]:
    yield from (change.norm, change.relative)
    for name in _PRODUCTS:
        p: Product | None = getattr(change, name)
        yield from (math.nan,) * _PARTS if p is None else (
            p.inner, *p.squares, p.chance_inner, p.chance_square, p.spread.inner, p.spread.both, p.spread.square
        )  # fmt: skip


def _change(line: Float[np.ndarray, " c"], shares: Float[np.ndarray, " m"]) -> WeightChange:
    norm, relative, *parts = line.tolist()
    products = {n: _product(parts[k * _PARTS : (k + 1) * _PARTS]) for k, n in enumerate(_PRODUCTS)}
    return WeightChange(norm, relative, **products, shares=shares)


def _product(parts: Sequence[float]) -> Product | None:
    if math.isnan(parts[1]):  # a squared norm: NaN only where there is no product
        return None
    inner, a, b, chance_inner, chance_square, *spread = parts
    return Product(inner, (a, b), chance_inner, chance_square, Spread(*spread))
