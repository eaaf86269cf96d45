"""One shard of a saved table: columns of numbers and texts to two files and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from graddiag.files import check_sums
from graddiag.signals import AdamStep, PairProducts, Provenance, Reference, Signals, Space

_SCALARS = {"loss": np.float64, "n_tokens": np.int64, "length": np.int64, "n_cut": np.int64, "finite": np.bool_}
_TEXTS = ("ids", "clusters", "digests")
_PAIR_IDS = ("left_ids", "right_ids")
_BY_BLOCK = ("gradients", "norms", "reference_dot", "adam_dot", "adam_norm", "adam_step_norm")


@dataclass(frozen=True)
class Identity:
    """What the rows of one saved table have in common."""

    space: Space
    provenance: Provenance
    reference: Reference | None = None
    adam: AdamStep | None = None


def shard(number: int) -> str:
    """The name of a shard's files, without their endings."""
    return f"shard-{number:05d}"


def pack(table: Signals | PairProducts) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """The arrays and the plain columns of a table."""
    if isinstance(table, PairProducts):
        both = {"inner": table.inner, "difference_norm": table.difference_norm}
        return {f"{k}/{b}": v for k, t in both.items() for b, v in t.items()}, {
            k: list(getattr(table, k)) for k in _PAIR_IDS
        }
    by_block: dict[str, Mapping[str, np.ndarray]] = {name: getattr(table, name) for name in _BY_BLOCK}
    named = {**by_block, "states": table.states}
    arrays = {f"{name}/{b}": np.ascontiguousarray(v) for name, of in named.items() for b, v in of.items()}
    arrays["token_loss"] = np.concatenate([np.zeros(0), *table.token_loss])
    arrays["target_ids"] = np.concatenate([np.zeros(0, np.int32), *table.target_ids])
    if table.token_alignment is not None and table.alignment_elsewhere is not None:
        arrays["token_alignment"] = np.concatenate([np.zeros(0), *table.token_alignment])
        arrays["alignment_elsewhere"] = table.alignment_elsewhere
    columns: dict[str, object] = {k: list(getattr(table, k)) for k in _TEXTS}
    return arrays, columns | {k: getattr(table, k) for k in _SCALARS}


def read_shard(stem: Path, of: Identity) -> Signals:
    """One shard of a table. Raises DataError where it is broken."""
    arrays, columns = _checked(stem), read_columns(stem)
    n_tokens, length = (np.array(columns[k], dtype=np.int64) for k in ("n_tokens", "length"))
    scores = arrays.get("token_alignment")
    return Signals(
        space=of.space,
        provenance=of.provenance,
        reference=of.reference,
        adam=of.adam,
        **{k: tuple(columns[k]) for k in _TEXTS},  # type: ignore[arg-type]
        **{k: np.array(columns[k], dtype=dtype) for k, dtype in _SCALARS.items()},  # type: ignore[arg-type]
        token_loss=_ragged(arrays["token_loss"], n_tokens),
        target_ids=_ragged(arrays["target_ids"], n_tokens),
        **{name: _of_blocks(arrays, name, of.space) for name in _BY_BLOCK},  # type: ignore[arg-type]
        states={site: arrays[f"states/{site}"] for site in of.space.states},
        token_alignment=None if scores is None else _ragged(scores, length - 1),
        alignment_elsewhere=arrays.get("alignment_elsewhere"),
    )


def read_pairs_shard(stem: Path) -> PairProducts:
    """One shard of exact products of pairs. Raises DataError where it is broken."""
    arrays, columns = _checked(stem), read_columns(stem)
    left_ids, right_ids = (tuple(columns[k]) for k in _PAIR_IDS)
    return PairProducts(left_ids, right_ids, _group(arrays, "inner"), _group(arrays, "difference_norm"))


def read_columns(stem: Path) -> dict[str, Sequence[str]]:
    """The plain columns of a shard."""
    return pq.read_table(stem.with_suffix(".parquet")).to_pydict()  # type: ignore[no-any-return]


def _checked(stem: Path) -> dict[str, np.ndarray]:
    check_sums(stem.with_suffix(".json"))
    return load_file(stem.with_suffix(".safetensors"))


def _ragged(flat: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, ...]:
    """One array per row from all of them end to end; none for no rows, which np.split would make one of."""
    return tuple(np.split(flat, np.cumsum(lengths)))[:-1]


def _of_blocks(arrays: Mapping[str, np.ndarray], name: str, space: Space) -> dict[str, np.ndarray]:
    """A column of every block, in model order; of none, where the table does not have it."""
    return {b.name: arrays[key] for b in space.blocks if (key := f"{name}/{b.name}") in arrays}


def _group(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k[len(prefix) + 1 :]: v for k, v in arrays.items() if k.startswith(prefix + "/")}
