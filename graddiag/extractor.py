"""What one batch gives: per-example losses, gradients and exact products, from one forward and one partial backward
pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from graddiag.adam import AdamProducts, adam_products
from graddiag.blocks import Kind, Selected
from graddiag.capture import CalledAgain, Recorder, untouched
from graddiag.condense import Condenser
from graddiag.encoding import Encoded
from graddiag.errors import DataError
from graddiag.forward import collate, input_device, memory_named, shortest
from graddiag.gradients import Formable, Gradients, Products, Workspace
from graddiag.head import Batch, head_agrees, loss_and_backward, split_model
from graddiag.mean_gradient import KnownMean, MeanGradient
from graddiag.measured import Array, Measured, Scores, measured_of, numpy_of
from graddiag.projection import Factors, Projector, probe_digest, rows_of_formed
from graddiag.session import Consume, Session, can_be_formed, depends_on, nothing, one_by_one
from graddiag.signals import Provenance, Space

FULL_LOGITS = (
    "The head applied at target tokens does not give the model's own loss (soft-capped or scaled logits?): "
    "the model's full logits are used, which is slower."
)


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
        self._condense = True
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

    def with_projector(self, projector: Projector) -> Extractor:
        """The same extractor for rows of another projection, which shares what was learned of the model so far."""
        out = copy(self)
        out.projector = projector
        out.space = replace(
            self.space,
            projection=projector.kind,
            dim=projector.dim,
            seed=projector.seed,
            probe=probe_digest(projector),
        )
        return out

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
            handed = rows_of_formed(self.projector, b.block, gradients)
            exact = gradients.products(
                pairs,
                reference=known.means[name] if known else None,
                total=mean.total(b) if mean else None,
                formed=handed,
                workspace=self._workspace,
            )
            if mean:
                mean.counts[name] += int(torch.isfinite(exact.norm2).sum())
            found[name] = exact, handed.rows if handed else self.projector.rows(b.block, gradients)
            if scores and known and exact.reference_dot is not None:
                scores.add(gradients, known.means[name], exact.reference_dot)
            if known and known.optimizer:
                assert isinstance(gradients, Formable)  # nothing is condensed where there is a known mean
                moments = known.optimizer.moments[name]
                adam[name] = adam_products(gradients, moments, known.means[name], len(rows))

        condense = self._condense and known is None and mean is None and not pairs
        losses = self.walk(batch, consume, condense=condense)
        measured = measured_of(losses, {b.block.name: found[b.block.name] for b in self.blocks}, known)
        adam = {b.block.name: adam[b.block.name] for b in self.blocks if b.block.name in adam}
        return replace(measured, scores=scores, adam_step=known.adam if known else None, adam=adam)

    def walk(self, batch: Batch, consume: Consume, *, condense: bool = False) -> list[Tensor]:
        """The token losses of each row of a batch; every block's gradients are handed to `consume`, and nothing kept.

        With `condense`, gradients may come as what the projector makes of them. Raises as `measure`.
        """
        with untouched(self.model), memory_named(batch):
            self._check_head(batch)
            return self._backward(batch, consume, condense=condense)

    def _backward(self, batch: Batch, consume: Consume, *, condense: bool) -> list[Tensor]:
        """The losses; every block is handed to `consume` as soon as its gradients are there."""
        together = [b for b in self.blocks if b.block.name not in self._alone | self._unused]
        condenser = None
        if condense and isinstance(self.projector, Factors):
            condenser = Condenser(together, self.projector, batch.lengths, batch.tokens.shape[1])
        try:
            return self._through(Session(together, batch, self._split, consume, condenser), batch, consume)
        except CalledAgain:
            self._condense = False
            return self._through(Session(together, batch, self._split, consume), batch, consume)

    def _through(self, session: Session, batch: Batch, consume: Consume) -> list[Tensor]:
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
        with untouched(self.model), torch.no_grad(), memory_named(batch):
            self._check_head(batch)
            losses = loss_and_backward(self.model, self._split, batch, backward=False)
        return tuple(numpy_of(x) for x in losses)

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """The rows as one padded batch on the device of the model's input."""
        return collate(rows, input_device(self.model))

    def _check_head(self, batch: Batch) -> None:
        if self._head_checked or self._split is None:
            return
        if not head_agrees(self.model, self._split, shortest(batch)):
            self._split = None
            self.notes.append(FULL_LOGITS)
        self._head_checked = True
