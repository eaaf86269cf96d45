"""From recorded calls of a module to the per-example gradients of its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from graddiag.blocks import Kind, Part, Selected, Use
from graddiag.capture import Call, by_example
from graddiag.gradients import Condensed, Dense, Gradients, Lookup, Outer

_AGREES = 1e-4  # relative: a module that is run again on one example gives what it gave in the batch, but for rounding


@dataclass(frozen=True)
class Layout:
    """How rows lie in a batch: tokens of each example, and positions of the padded batch."""

    lengths: tuple[int, ...]
    tokens: int

    @property
    def n(self) -> int:
        """Examples."""
        return len(self.lengths)

    def after(self, calls: int) -> tuple[int, ...]:
        """Rows of each example when several calls stand one after the other, padding between them."""
        return self.lengths if calls == 1 else (calls * self.tokens,) * self.n

    def at(self, calls: int, device: torch.device) -> Int[Tensor, "b t"] | None:
        """Positions of those rows; None where row t is position t."""
        positions = torch.arange(self.tokens, device=device)
        return None if calls == 1 else positions.repeat(calls).expand(self.n, calls * self.tokens)


class CannotReplay(Exception):
    """The module, run again on one example, does not do what it did in the batch."""


def form(b: Selected, use: Use, calls: Sequence[Call], layout: Layout) -> Gradients:
    """The gradients of one block from all calls of one module that uses it. Calls add up.

    Raises DataError where rows cannot be matched to examples, CannotReplay where a module of unknown kind cannot be run
    again example by example.
    """
    if use.kind is Kind.REPLAY:
        whole = _expanded(b, use.module, calls, layout)
        if whole is None:
            whole = torch.stack([_replayed(b, use.module, calls, i, layout) for i in range(layout.n)])
        return Dense(_share(whole, b.part, 1))
    used = [c for c in calls if 0 in c.grads]
    device = b.parameter.device  # a model may be spread over devices, and what goes into a module come from another one
    grads = [by_example(c.grads[0].to(device), layout.n, layout.tokens, b.block.name) for c in used]
    if use.kind is Kind.BIAS:
        sums = [torch.stack([g[i, :t].sum(0) for i, t in enumerate(layout.lengths)]) for g in grads]
        return Dense(_share(torch.stack(sums).sum(0), b.part, 1))
    if use.kind is Kind.LOOKUP:
        return _lookup(b, use.module, used, grads, layout)
    if used[0].shortened:
        return Condensed(grads[0], used[0].shortened, layout.lengths)
    inputs = [by_example(c.input.to(device), layout.n, layout.tokens, b.block.name) for c in used]
    left, right = (grads, inputs) if use.kind is Kind.LINEAR else (inputs, grads)
    # Padding between calls stays: its output gradients are 0.
    at = layout.at(len(used), left[0].device)
    return share_of(b, Outer(_behind(left), _behind(right), layout.after(len(used)), _first_rows(grads), at))


def share_of(b: Selected, whole: Outer) -> Outer:
    """The outer products of a block, or of its head's share."""
    left, right = whole.left, whole.right
    if b.part:
        side = slice(b.part.start, b.part.stop)
        left, right = (left[..., side], right) if b.part.dim == 0 else (left, right[..., side])
    return Outer(left, right, whole.lengths, whole.starts, whole.at)


def _behind(calls: Sequence[Tensor]) -> Tensor:
    """The calls of a module one behind the other; a single one as it is, without a copy."""
    return calls[0] if len(calls) == 1 else torch.cat(list(calls), 1)


def _first_rows(grads: Sequence[Tensor]) -> tuple[int, ...]:
    """Where the output gradients of each example begin: in the last layer, behind the prompt. Empty where at 0."""
    if len(grads) != 1 or bool(grads[0][:, 0].any()):
        return ()
    return tuple(grads[0].any(dim=2).int().argmax(dim=1).tolist())


def _share(x: Tensor, part: Part | None, offset: int) -> Tensor:
    return x.narrow(part.dim + offset, part.start, part.stop - part.start) if part else x


def _lookup(
    b: Selected, module: nn.Module, calls: Sequence[Call], grads: Sequence[Tensor], layout: Layout
) -> Gradients:
    """Rows looked up. What the module multiplies its rows with (Gemma: the root of the width) is read off a table of
    ones; the row of `padding_idx` has no input-side gradient."""
    assert isinstance(module, nn.Embedding)
    ones = torch.ones_like(module.weight[: (module.padding_idx or 0) + 1])
    at_0 = torch.zeros(1, 1, dtype=torch.long, device=ones.device)
    scale = torch.func.functional_call(module, {"weight": ones}, (at_0,)).flatten()[0]
    ids = [c.input.to(module.weight.device) for c in calls]
    if any(x.numel() != layout.n * layout.tokens for x in ids):
        raise CannotReplay(f"{ids[0].numel()} ids for {layout.n} examples of {layout.tokens} tokens")
    chosen = _behind([x.reshape(layout.n, layout.tokens) for x in ids])
    gradients = _behind(grads) * scale
    if module.padding_idx is not None:
        gradients = gradients.masked_fill((chosen == module.padding_idx).unsqueeze(-1), 0)
    at = layout.at(len(calls), chosen.device)
    return Lookup(chosen, gradients, layout.after(len(calls)), b.block.shape[0], at=at)


def _expanded(b: Selected, module: nn.Module, calls: Sequence[Call], layout: Layout) -> Float[Tensor, "b d"] | None:
    """The gradient of a vector that a module only multiplies with or adds: each example is given a copy of its own, and
    the module is run once more on the whole batch. None where that does not give what the module gave."""
    name = next(n for n, p in module.named_parameters(recurse=False) if p is b.parameter)
    total = torch.zeros(layout.n, *b.parameter.shape, dtype=b.parameter.dtype, device=b.parameter.device)
    for call in calls:
        x = call.args[0] if call.args else None
        if b.parameter.dim() != 1 or not isinstance(x, Tensor) or x.shape[0] != layout.n or len(call.outputs) != 1:
            return None
        if 0 not in call.grads:
            continue
        copies = b.parameter.detach().expand(layout.n, *(1,) * (x.dim() - 2), -1).clone().requires_grad_(True)
        try:
            y = torch.func.functional_call(module, {name: copies}, call.args, dict(call.kwargs))
        except RuntimeError:  # a fused kernel takes one vector only
            return None
        if not isinstance(y, Tensor) or not torch.equal(y.detach(), call.outputs[0]):
            return None
        total += torch.autograd.grad(y, copies, call.grads[0])[0].reshape(total.shape)
    return total


def _replayed(b: Selected, module: nn.Module, calls: Sequence[Call], i: int, layout: Layout) -> Float[Tensor, "*shape"]:
    """The gradient of example i: the module is run again on its share of the inputs, and walked backward alone."""
    total = torch.zeros_like(b.parameter)
    for call in calls:
        if not call.grads:
            continue
        args, kwargs = _of_example(call.args, i, layout), _of_example(call.kwargs, i, layout)
        b.parameter.requires_grad_(True)
        try:
            outputs = _floating(module(*args, **kwargs))  # type: ignore[misc, arg-type]
            _check_same(outputs, [_of_example(x, i, layout) for x in call.outputs])
            grads = [_of_example(call.grads.get(k), i, layout) for k in range(len(outputs))]
            traced = [(y, g) for y, g in zip(outputs, grads, strict=True) if y.requires_grad and isinstance(g, Tensor)]
            if traced:
                ys, gs = zip(*traced, strict=True)
                (grad,) = torch.autograd.grad(ys, [b.parameter], gs, allow_unused=True)
                total += 0 if grad is None else grad
        finally:
            b.parameter.requires_grad_(False)
    return total


def _check_same(outputs: Sequence[Tensor], recorded: Sequence[object]) -> None:
    if len(outputs) != len(recorded):
        raise CannotReplay(f"{len(outputs)} outputs, in the batch {len(recorded)}")
    for mine, theirs in zip(outputs, recorded, strict=True):
        assert isinstance(theirs, Tensor)
        if mine.shape != theirs.shape:
            raise CannotReplay(f"an output of shape {list(mine.shape)}, in the batch {list(theirs.shape)}")
        scale = theirs.abs().max() if theirs.numel() else theirs.sum()
        if bool(((mine - theirs).abs() > _AGREES * scale).any()) and bool(torch.isfinite(scale)):
            raise CannotReplay("other values than in the batch")


def _floating(output: object) -> list[Tensor]:
    if isinstance(output, (tuple, list)):
        return [t for x in output for t in _floating(x)]
    return [output] if isinstance(output, Tensor) and output.is_floating_point() else []


def _of_example(value: object, i: int, layout: Layout) -> object:
    """Example i's share of a module's inputs: of tensors whose first dimension counts examples, or all their tokens."""
    if isinstance(value, Tensor) and value.dim():
        n, t = layout.n, layout.tokens
        if value.shape[0] == n * t and t > 1:
            return value[i * t : (i + 1) * t]
        return value[i : i + 1] if value.shape[0] == n else value
    if isinstance(value, (tuple, list)):
        return type(value)(_of_example(x, i, layout) for x in value)
    if isinstance(value, dict):
        return {k: _of_example(x, i, layout) for k, x in value.items()}
    return value
