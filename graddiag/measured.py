"""The numbers of one batch, off the device, and the tables that they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from graddiag.adam import AdamProducts
from graddiag.encoding import Encoded
from graddiag.gradients import Gradients, Products
from graddiag.mean_gradient import KnownMean
from graddiag.signals import AdamStep, PairProducts, Provenance, Reference, Signals, Space
from graddiag.token_scores import token_scores

Array = np.ndarray


@dataclass(frozen=True)
class Scores:
    """Token scores of one batch, summed over blocks as they come: by position [b, t], and without one [b]."""

    at: Array
    elsewhere: Array

    def add(self, gradients: Gradients, reference: Tensor, whole: Tensor) -> None:
        """Adds one block; `whole` is `<g_i, M>`, used where positions cannot be told apart."""
        found = token_scores(gradients, reference, self.at.shape[1])
        if found is None:
            np.add(self.elsewhere, numpy_of(whole), out=self.elsewhere)
        else:
            np.add(self.at, numpy_of(found), out=self.at)


@dataclass(frozen=True)
class Measured:
    """The numbers of one batch: token losses of each row, per block norms [b], rows [b, k] and products of pairs [p],
    and per site hidden states [b, d]."""

    token_loss: tuple[Array, ...]
    norms: Mapping[str, Array]
    gradients: Mapping[str, Array]
    inner: Mapping[str, Array]
    difference_norm: Mapping[str, Array]
    reference_dot: Mapping[str, Array]
    reference: Reference | None
    scores: Scores | None = None
    adam_step: AdamStep | None = None
    adam: Mapping[str, AdamProducts] = field(default_factory=dict)
    states: Mapping[str, Array] = field(default_factory=dict)

    def table(self, index: Sequence[int], rows: Sequence[Encoded], space: Space, provenance: Provenance) -> Signals:
        """The rows at `index` of the batch as a table of one set; `rows` are the batch's encoded rows."""
        chosen = [rows[i] for i in index]
        at = np.array(index, dtype=np.int64)
        token_loss = tuple(self.token_loss[i] for i in index)
        loss = np.array([x.mean() for x in token_loss], dtype=np.float64)
        norms = {b: v[at] for b, v in self.norms.items()}
        states = {site: v[at] for site, v in self.states.items()}
        numbers = [np.isfinite(v) for v in norms.values()] + [np.isfinite(v).all(axis=1) for v in states.values()]
        return Signals(
            space=space,
            provenance=provenance,
            ids=tuple(r.id for r in chosen),
            clusters=tuple(r.cluster for r in chosen),
            digests=tuple(r.digest for r in chosen),
            loss=loss,
            token_loss=token_loss,
            target_ids=tuple(r.tokens[r.start :].astype(np.int32) for r in chosen),
            n_tokens=np.array([r.n_targets for r in chosen], dtype=np.int64),
            length=np.array([len(r.tokens) for r in chosen], dtype=np.int64),
            n_cut=np.array([r.n_cut for r in chosen], dtype=np.int64),
            finite=np.all([np.isfinite(loss), *numbers], axis=0),
            norms=norms,
            gradients={b: v[at] for b, v in self.gradients.items()},
            reference=self.reference,
            reference_dot={b: v[at] for b, v in self.reference_dot.items()},
            token_alignment=tuple(self.scores.at[i, : len(rows[i].tokens) - 1] for i in index) if self.scores else None,
            alignment_elsewhere=self.scores.elsewhere[at] if self.scores else None,
            adam=self.adam_step,
            adam_dot={b: numpy_of(p.dot)[at] for b, p in self.adam.items()},
            adam_norm={b: np.sqrt(numpy_of(p.norm2)[at]) for b, p in self.adam.items()},
            adam_step_norm={b: np.sqrt(numpy_of(p.step_norm2)[at]) for b, p in self.adam.items()},
            states=states,
        )

    def pairs(self, left_ids: Sequence[str], right_ids: Sequence[str]) -> PairProducts:
        """The exact products of the batch's pairs under the ids of their members."""
        return PairProducts(tuple(left_ids), tuple(right_ids), self.inner, self.difference_norm)


def measured_of(
    losses: Sequence[Tensor],
    found: Mapping[str, tuple[Products, Tensor]],
    known: KnownMean | None,
) -> Measured:
    """Token losses of each row, and of each block its exact products and its projected rows, off the device."""
    return Measured(
        token_loss=tuple(numpy_of(x) for x in losses),
        norms={n: np.sqrt(numpy_of(p.norm2)) for n, (p, _) in found.items()},
        gradients={n: wide_numpy(r) for n, (_, r) in found.items()},
        inner={n: numpy_of(p.inner) for n, (p, _) in found.items()},
        difference_norm={n: np.sqrt(np.maximum(numpy_of(p.difference2), 0)) for n, (p, _) in found.items()},
        reference_dot={n: numpy_of(p.reference_dot) for n, (p, _) in found.items() if p.reference_dot is not None},
        reference=known.reference if known else None,
    )


def numpy_of(x: Tensor) -> Array:
    """The tensor in double precision, off the device."""
    return x.detach().double().cpu().numpy()


def wide_numpy(x: Tensor) -> Array:
    """The tensor in single precision, or double if it is that, off the device."""
    wide = x.detach() if x.dtype == torch.float64 else x.detach().float()
    return wide.cpu().numpy()
