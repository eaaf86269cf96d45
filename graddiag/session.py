"""One batch on its way through the model: which block gets its gradients when, and from what."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from graddiag.blocks import Kind, Selected, Use
from graddiag.capture import Call, Recorder
from graddiag.condense import Condenser
from graddiag.formation import CannotReplay, Layout, form, share_of
from graddiag.gradients import Dense, Gradients, Lookup, Outer
from graddiag.head import Batch, SplitModel, loss_and_backward

Consume = Callable[[Selected, Gradients], None]


def can_be_formed(b: Selected) -> bool:
    """Whether the block's uses can be put together: one module, several linear ones, or a table and its tied head."""
    kinds = [u.kind for u in b.uses]
    if len(kinds) == 1:
        return True
    if b.part is not None:
        return False
    return all(k is Kind.LINEAR for k in kinds) or sorted(k.name for k in kinds) == ["LINEAR", "LOOKUP"]


class Session:
    """Puts the gradients of each block together and hands them to `consume`: at once where it can, else in `finish`.

    A condenser, if given, lets inputs go of which only norms and projections are wanted.
    """

    def __init__(
        self,
        blocks: Sequence[Selected],
        batch: Batch,
        split: SplitModel | None,
        consume: Consume,
        condenser: Condenser | None = None,
    ) -> None:
        self._blocks, self._batch, self._consume = blocks, batch, consume
        self._head = split.head if split else None
        self._logit_grads: Outer | None = None
        self._of_module: dict[nn.Module, list[tuple[Selected, Use]]] = {}
        for b in blocks:
            for use in b.uses:
                self._of_module.setdefault(use.module, []).append((b, use))
        self._consumed: set[str] = set()
        saw = condenser.saw if condenser else None
        self.recorder = Recorder(blocks, self._arrived, without=self._head, saw=saw)

    @property
    def needs_head(self) -> bool:
        """Whether a block is a parameter of the head, which runs apart from the rest."""
        return self._head in self._of_module

    def head_rows(self, logit_grads: Tensor, hidden: Tensor) -> None:
        """Takes the head's output gradients and inputs at all targets, row after row."""
        counts = self._batch.counts.tolist()
        device = self._head.weight.device if isinstance(self._head, nn.Linear) else hidden.device
        padded = [
            torch.nn.utils.rnn.pad_sequence(list(torch.split(x.to(device), counts)), batch_first=True)
            for x in (logit_grads, hidden)
        ]
        at = torch.zeros_like(padded[0][..., 0], dtype=torch.long)
        for i, (n, length) in enumerate(zip(counts, self._batch.lengths, strict=True)):
            at[i, :n] = torch.arange(length - n, length)  # targets are a row's last positions
        self._logit_grads = Outer(padded[0], padded[1], tuple(counts), at=at)

    def finish(self, without: set[str]) -> dict[str, str]:
        """Hands over the blocks that had to wait for the end of the backward pass; those that cannot be formed, and
        why."""
        failed = {}
        with self.recorder.paused():
            for b in self._blocks:
                if b.block.name not in self._consumed | without:
                    try:
                        self._consume(b, self._joined(b))
                    except CannotReplay as why:
                        failed[b.block.name] = f"its module cannot be run on one example ({why})"
        return failed

    def _arrived(self, module: nn.Module, calls: list[Call]) -> None:
        for b, use in self._of_module[module]:
            self._consume(b, self._formed(b, use, calls))
            self._consumed.add(b.block.name)

    def _formed(self, b: Selected, use: Use, calls: Sequence[Call]) -> Gradients:
        if use.module is self._head and self._logit_grads is not None:
            whole = self._logit_grads
            if use.kind is Kind.LINEAR:
                return share_of(b, whole)
            return Dense(whole.left.sum(1))
        if not calls:
            raise CannotReplay("it is not called as a module")
        if not any(c.grads for c in calls):
            return nothing(b, len(self._batch.lengths))
        return form(b, use, calls, Layout(self._batch.lengths, self._batch.tokens.shape[1]))

    def _joined(self, b: Selected) -> Gradients:
        """The sum over all uses of the parameter."""
        parts = [self._formed(b, u, self.recorder.calls.get(u.module, [])) for u in b.uses]
        if len(parts) == 1:
            return parts[0]
        tables = [p for p in parts if isinstance(p, Lookup)]
        products = [p for p in parts if isinstance(p, Outer)]
        if tables and len(products) == 1:
            t = tables[0]
            return Lookup(t.ids, t.output_grads, t.lengths, t.rows, products[0], t.at)
        if len(products) == len(parts):
            width = max(p.left.shape[1] for p in products)
            left, right, at = (torch.cat([getattr(p, x) for p in products], 1) for x in ("left", "right", "positions"))
            return Outer(left, right, (left.shape[1],) * len(self._batch.lengths), at=at) if width else parts[0]
        raise CannotReplay("it is shared by modules of different kinds")


def nothing(b: Selected, n: int) -> Gradients:
    """Gradients of 0 for n examples, small where the block is large."""
    shape, like = b.block.shape, b.parameter
    if len(shape) == 2:
        return Outer(like.new_zeros(n, 1, shape[0]), like.new_zeros(n, 1, shape[1]), (1,) * n)
    return Dense(like.new_zeros(n, *shape))


def depends_on(model: PreTrainedModel, b: Selected, batch: Batch) -> bool:
    """Whether the loss of the batch's shortest row depends on a parameter."""
    i = min(range(len(batch.lengths)), key=batch.lengths.__getitem__)
    return _alone(model, b, batch, i) is not None


def _alone(model: PreTrainedModel, b: Selected, batch: Batch, i: int) -> Tensor | None:
    """The gradient of row i, run alone, by plain autograd; None where the loss does not depend on the parameter."""
    n = batch.lengths[i]
    one = Batch(batch.tokens[i : i + 1, :n], batch.targets[i : i + 1, :n], (n,))
    b.parameter.requires_grad_(True)
    try:
        (losses,) = loss_and_backward(model, None, one, backward=False, keep_graph=True)
        (grad,) = (
            torch.autograd.grad(losses.mean(), [b.parameter], allow_unused=True) if losses.requires_grad else (None,)
        )
    finally:
        b.parameter.requires_grad_(False)
    return grad


def one_by_one(model: PreTrainedModel, b: Selected, batch: Batch) -> Dense:
    """The gradients of one block from one backward pass per example, each example alone: slow, and always right."""
    rows = []
    for i in range(len(batch.lengths)):
        grad = _alone(model, b, batch, i)
        whole = torch.zeros_like(b.parameter) if grad is None else grad
        rows.append(whole.narrow(b.part.dim, b.part.start, b.part.stop - b.part.start) if b.part else whole)
    return Dense(torch.stack(rows))
