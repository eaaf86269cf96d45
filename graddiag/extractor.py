"""What one batch gives: per-example losses, gradients and exact products, from one forward and one partial backward
pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from graddiag.adam import AdamProducts, adam_products
from graddiag.blocks import Kind, Selected
from graddiag.capture import Recorder, untouched
from graddiag.encoding import Encoded
from graddiag.errors import DataError, ResourceError
from graddiag.gradients import Gradients, Products, Workspace
from graddiag.head import Batch, head_agrees, loss_and_backward, split_model
from graddiag.mean_gradient import KnownMean, MeanGradient
from graddiag.projection import Projector
from graddiag.session import Session, can_be_formed, depends_on, nothing, one_by_one
from graddiag.signals import AdamStep, PairProducts, Provenance, Reference, Signals, Space
from graddiag.token_scores import token_scores

Array = np.ndarray
FULL_LOGITS = (
    "The head applied at target tokens does not give the model's own loss (soft-capped or scaled logits?): "
    "the model's full logits are used, which is slower."
)


@dataclass(frozen=True)
class Scores:
    """Token scores of one batch, summed over blocks as they come: by position [b, t], and without one [b]."""

    at: Array
    elsewhere: Array

    def add(self, gradients: Gradients, reference: Tensor, whole: Tensor) -> None:
        """Adds one block; `whole` is `<g_i, M>`, used where positions cannot be told apart."""
        found = token_scores(gradients, reference, self.at.shape[1])
        if found is None:
            np.add(self.elsewhere, _numpy(whole), out=self.elsewhere)
        else:
            np.add(self.at, _numpy(found), out=self.at)


@dataclass(frozen=True)
class Measured:
    """The numbers of one batch: token losses of each row, and per block norms [b], rows [b, k], products of pairs
    [p]."""

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

    def table(self, index: Sequence[int], rows: Sequence[Encoded], space: Space, provenance: Provenance) -> Signals:
        """The rows at `index` of the batch as a table of one set; `rows` are the batch's encoded rows."""
        chosen = [rows[i] for i in index]
        at = np.array(index, dtype=np.int64)
        token_loss = tuple(self.token_loss[i] for i in index)
        loss = np.array([x.mean() for x in token_loss], dtype=np.float64)
        norms = {b: v[at] for b, v in self.norms.items()}
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
            finite=np.isfinite(loss) & np.all([np.isfinite(v) for v in norms.values()], axis=0),
            norms=norms,
            gradients={b: v[at] for b, v in self.gradients.items()},
            reference=self.reference,
            reference_dot={b: v[at] for b, v in self.reference_dot.items()},
            token_alignment=tuple(self.scores.at[i, : len(rows[i].tokens) - 1] for i in index) if self.scores else None,
            alignment_elsewhere=self.scores.elsewhere[at] if self.scores else None,
            adam=self.adam_step,
            adam_dot={b: _numpy(p.dot)[at] for b, p in self.adam.items()},
            adam_norm={b: np.sqrt(_numpy(p.norm2)[at]) for b, p in self.adam.items()},
            adam_step_norm={b: np.sqrt(_numpy(p.step_norm2)[at]) for b, p in self.adam.items()},
        )

    def pairs(self, ids: Sequence[str]) -> PairProducts:
        """The exact products of the batch's pairs under their ids."""
        return PairProducts(tuple(ids), self.inner, self.difference_norm)


class Extractor:
    """A model made ready for extraction. `notes` says what a reader must know about how it was done."""

    def __init__(
        self,
        model: PreTrainedModel,
        blocks: Sequence[Selected],
        projector: Projector,
        space: Space,
        provenance: Provenance,
    ) -> None:
        self.model, self.blocks, self.projector, self.space = model, tuple(blocks), projector, space
        self.notes: list[str] = []
        self.checked = False  # whether a long run has compared it with plain autograd
        self.rows_measured = 0
        self._provenance = provenance
        self._split = split_model(model)
        self._workspace = Workspace()
        self._head_checked = False
        self._alone: set[str] = set()
        self._unused: set[str] = set()
        self._leave_to_single_runs(
            {b.block.name: "it is shared by modules of different kinds" for b in blocks if not can_be_formed(b)}
        )

    def only(self, names: Sequence[str]) -> Extractor:
        """An extractor for some of the blocks, in the same space otherwise."""
        blocks = [b for b in self.blocks if b.block.name in set(names)]
        space = replace(self.space, blocks=tuple(b.block for b in blocks))
        return Extractor(self.model, blocks, self.projector, space, self._provenance)

    @property
    def alone(self) -> frozenset[str]:
        """Blocks that so far took one backward pass per example."""
        return frozenset(self._alone)

    @property
    def unused(self) -> frozenset[str]:
        """Blocks that so far had no part in the loss."""
        return frozenset(self._unused)

    def provenance(self, data: str) -> Provenance:
        """Where a table of the set `data` comes from."""
        return replace(self._provenance, data=data)

    def measure(
        self,
        rows: Sequence[Encoded],
        *,
        pairs: Sequence[tuple[int, int]] = (),
        known: KnownMean | None = None,
        mean: MeanGradient | None = None,
    ) -> Measured:
        """One batch: `pairs` are indices into `rows`; rows are multiplied with `known`, and added to `mean`, if given.

        Raises ResourceError where memory runs out, DataError where a block's gradients cannot be had.
        """
        batch = self.collate(rows)
        self.rows_measured += len(rows)
        found: dict[str, tuple[Products, Tensor]] = {}
        adam: dict[str, AdamProducts] = {}
        scores = Scores(np.zeros(batch.tokens.shape), np.zeros(len(rows))) if known and known.token_scores else None

        def consume(b: Selected, gradients: Gradients) -> None:
            name = b.block.name
            exact = gradients.products(
                pairs,
                reference=known.means[name] if known else None,
                total=mean.total(b) if mean else None,
                workspace=self._workspace,
            )
            if mean:
                mean.counts[name] += int(torch.isfinite(exact.norm2).sum())
            found[name] = exact, self.projector.rows(b.block, gradients)
            if scores and known and exact.reference_dot is not None:
                scores.add(gradients, known.means[name], exact.reference_dot)
            if known and known.optimizer:
                moments = known.optimizer.moments[name]
                adam[name] = adam_products(gradients, moments, known.means[name], len(rows))

        with untouched(self.model), _memory_named(batch):
            self._check_head(batch)
            losses = self._backward(batch, consume)
        measured = _measured(losses, {b.block.name: found[b.block.name] for b in self.blocks}, known)
        adam = {b.block.name: adam[b.block.name] for b in self.blocks if b.block.name in adam}
        return replace(measured, scores=scores, adam_step=known.adam if known else None, adam=adam)

    def _backward(self, batch: Batch, consume: Callable[[Selected, Gradients], None]) -> list[Tensor]:
        """The losses; every block is handed to `consume` as soon as its gradients are there."""
        together = [b for b in self.blocks if b.block.name not in self._alone | self._unused]
        session = Session(together, batch, self._split, consume)
        with session.recorder as recorder:
            losses = loss_and_backward(
                self.model,
                self._split,
                batch,
                before_backward=lambda: self._check_calls(recorder, batch),
                head_rows=session.head_rows if session.needs_head else None,
            )
            self._leave_to_single_runs(session.finish(without=self._alone | self._unused))
        for b in self.blocks:
            if b.block.name in self._alone:
                consume(b, one_by_one(self.model, b, batch))
            elif b.block.name in self._unused:
                consume(b, nothing(b, len(batch.lengths)))
        return losses

    def _check_calls(self, recorder: Recorder, batch: Batch) -> None:
        """Sees to blocks whose modules were all silent: 0 if the loss does not depend on them, else a single run each.

        Raises DataError where a linear module is silent though the loss depends on its weight: hooks never fire there.
        """
        silent = recorder.silent()
        missing = [b for b in self.blocks if b.block.name not in self._alone | self._unused]
        missing = [b for b in missing if all(u.module in silent for u in b.uses)]
        with recorder.paused():
            used = [b for b in missing if depends_on(self.model, b, batch)]
        refused = [b.block.name for b in used if any(u.kind is not Kind.REPLAY for u in b.uses)]
        if refused:
            raise DataError(
                f"{len(refused)} of {len(self.blocks)} blocks took no part in the forward pass, the first is "
                f"{refused[0]!r}. A compiled model or a fused kernel goes past the hooks: pass the model as it was "
                "before torch.compile, or leave these blocks out with --blocks."
            )
        self._leave_to_single_runs({b.block.name: "it is not called as a module" for b in used})
        unused = [b.block.name for b in missing if b not in used]
        self._unused |= set(unused)
        if unused:
            self.notes.append(
                f"{len(unused)} blocks take no part in the loss, the first is {unused[0]!r}: their gradients are 0."
            )

    def _leave_to_single_runs(self, failed: Mapping[str, str]) -> None:
        for name, why in failed.items():
            self._alone.add(name)
            self.notes.append(f"{name}: {why}; its gradients come from one backward pass per example, which is slow.")

    def token_losses(self, rows: Sequence[Encoded]) -> tuple[Array, ...]:
        """Token losses of the rows, nats, without any gradient."""
        batch = self.collate(rows)
        with untouched(self.model), torch.no_grad(), _memory_named(batch):
            self._check_head(batch)
            losses = loss_and_backward(self.model, self._split, batch, backward=False)
        return tuple(_numpy(x) for x in losses)

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """The rows as one padded batch on the device of the model's input."""
        lengths = tuple(len(r.tokens) - 1 for r in rows)
        tokens = torch.zeros(len(rows), max(lengths), dtype=torch.long)
        targets = torch.full_like(tokens, -100)
        for k, r in enumerate(rows):
            row = torch.from_numpy(r.tokens.astype(np.int64))
            tokens[k, : lengths[k]] = row[:-1]
            targets[k, r.start - 1 : lengths[k]] = row[r.start :]
        device = next(self.model.get_input_embeddings().parameters()).device
        return Batch(tokens.to(device), targets.to(device), lengths)

    def _check_head(self, batch: Batch) -> None:
        if self._head_checked or self._split is None:
            return
        k = min(range(len(batch.lengths)), key=lambda i: batch.lengths[i])
        short, cut = slice(k, k + 1), slice(0, batch.lengths[k])
        if not head_agrees(
            self.model, self._split, Batch(batch.tokens[short, cut], batch.targets[short, cut], (batch.lengths[k],))
        ):
            self._split = None
            self.notes.append(FULL_LOGITS)
        self._head_checked = True


def _measured(
    losses: Sequence[Tensor],
    found: Mapping[str, tuple[Products, Tensor]],
    known: KnownMean | None,
) -> Measured:
    return Measured(
        token_loss=tuple(_numpy(x) for x in losses),
        norms={n: np.sqrt(_numpy(p.norm2)) for n, (p, _) in found.items()},
        gradients={n: _rows(r) for n, (_, r) in found.items()},
        inner={n: _numpy(p.inner) for n, (p, _) in found.items()},
        difference_norm={n: np.sqrt(np.maximum(_numpy(p.difference2), 0)) for n, (p, _) in found.items()},
        reference_dot={n: _numpy(p.reference_dot) for n, (p, _) in found.items() if p.reference_dot is not None},
        reference=known.reference if known else None,
    )


def _numpy(x: Tensor) -> Array:
    return x.detach().double().cpu().numpy()


def _rows(x: Tensor) -> Array:
    wide = x.detach() if x.dtype == torch.float64 else x.detach().float()
    return wide.cpu().numpy()


@contextmanager
def _memory_named(batch: Batch) -> Iterator[None]:
    """Turns running out of memory into an error that names the batch and what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(error):
            raise
        b, t = batch.tokens.shape
        raise ResourceError(
            f"Memory ran out on a batch of {b} rows of {t} tokens. Use a smaller --batch-tokens or --max-length."
        ) from error
