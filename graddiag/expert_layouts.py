"""Experts that a model holds as one tensor and its files as one tensor each: which of them make up a parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from graddiag.weight_reading import Entry

# What a stack of experts is called in the model, and its parts, above one another, in files: Qwen's names, Mixtral's.
_PARTS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
_EXPERTS = ".experts."
_IN_MODEL, _IN_FILES = ".mlp.", ".block_sparse_moe."  # where a layer of Mixtral has its experts and its router


def other_names(name: str) -> tuple[str, ...]:
    """The name of a parameter, and the one that files of older releases have for it."""
    return (name, name.replace(_IN_MODEL, _IN_FILES)) if _IN_MODEL in name else (name,)


def stacked(files: Mapping[str, Entry], name: str, shape: Sequence[int]) -> Entry | None:
    """The parameter put together from one tensor, or two, of each expert; None where the files have not all of them in
    shapes that fit."""
    where, _, last = name.rpartition(_EXPERTS)
    if not where or len(shape) != 3:
        return None
    for kinds in _PARTS.get(last, ()):
        names = [[f"{where}{_EXPERTS}{e}.{kind}.weight" for kind in kinds] for e in range(shape[0])]
        if all(n in files for some in names for n in some):
            parts = [[files[n] for n in some] for some in names]
            if all(_fit(some, shape) for some in parts):
                return Entry(tuple(shape), partial(_joined, parts))
    return None


def _fit(parts: Sequence[Entry], shape: Sequence[int]) -> bool:
    return sum(p.shape[0] for p in parts) == shape[1] and all(p.shape[1:] == tuple(shape[2:]) for p in parts)


def _joined(parts: Sequence[Sequence[Entry]]) -> Tensor:
    return torch.stack([torch.cat([p.read() for p in some]) for some in parts])
