"""Before anything is trained on a monitor's word: is one captured row what plain autograd gives?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from graddiag.blocks import Selected
from graddiag.errors import DataError
from graddiag.gradients import Formable, Gradients
from graddiag.monitor._batch_gradient import share
from graddiag.monitor._inputs import IGNORED, Inputs
from graddiag.monitor._scale import loss_and_logits
from graddiag.startcheck import limit_for, spread

# So that the model gives logits and no loss of its own; the last is TRL's name for a head that gives no logits.
_WITHOUT = ("labels", "shift_labels", "num_items_in_batch", "fused_lm_head")
_SMALL = 1e-2  # of the norm over the checked blocks: below it a block's own norm is no scale for rounding


class WrongRows(DataError):
    """What was captured is not the gradient of an example: the one error that stops a training loop."""


class FirstCheck:
    """One example of the first probe, in the lowest, middle and highest block, with a backward pass of its own.

    The batch is run once more just before the loop runs it: in the same mode, from the same random state (which is put
    back), on other leaves than the parameters, so that no `.grad` and no hook of the user's sees it.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[Selected]) -> None:
        self._model, self._blocks = model, spread(blocks)
        self._wanted: dict[str, Tensor] = {}
        self._found: dict[str, Tensor] = {}
        self._number, self._id = 0, ""
        self.notes: tuple[str, ...] = ()
        self._dtype = torch.float64

    def before(self, inputs: Inputs, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        """Runs the example: the last of the batch, which every earlier border shifts."""
        if not inputs.segments:
            return
        self._number, self._id = len(inputs.segments) - 1, inputs.ids[-1]
        try:
            self._wanted = self._own_gradients(inputs, args, {k: v for k, v in kwargs.items() if k not in _WITHOUT})
        except RuntimeError as error:  # a reentrant checkpoint of the loop's own; memory
            self.notes = (f"No example could be checked by a backward pass of its own: {str(error).splitlines()[0]}",)

    def _own_gradients(
        self, inputs: Inputs, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> dict[str, Tensor]:
        names = {id(p): n for n, p in self._model.named_parameters()}
        leaves = {names[id(b.parameter)]: b.parameter.detach().requires_grad_(True) for b in self._blocks}
        copies = {n: b.clone() for n, b in self._model.named_buffers()}  # what a forward pass counts is counted there
        with _same_random_state(self._model), _no_reentrant(self._model):
            output = torch.func.functional_call(self._model, {**copies, **leaves}, args, dict(kwargs))
            _, logits = loss_and_logits(output)
            if logits is None:
                raise DataError("The model gives no logits without labels, so its rows cannot be checked.")
            loss = _own_loss(logits, inputs, self._number)
            grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        found = dict(zip(leaves, grads, strict=True))
        wanted = {b.block.name: found[names[id(b.parameter)]] for b in self._blocks}
        return {
            b.block.name: share(torch.zeros_like(b.parameter) if g is None else g, b)
            for b, g in zip(self._blocks, wanted.values(), strict=True)
        }

    def see(self, b: Selected, gradients: Gradients, dtype: torch.dtype) -> None:
        """Keeps the captured gradient of the example, if the block is one of the three."""
        if b.block.name in self._wanted:
            assert isinstance(gradients, Formable)  # nothing is condensed in a training step
            self._found[b.block.name] = gradients.tile(self._number, range(b.block.shape[0])).clone()
            self._dtype = min(self._dtype, dtype, b.parameter.dtype, key=lambda d: -limit_for(d))

    def compare(self, factors: np.ndarray) -> None:
        """Raises WrongRows where the captured gradient, scaled to that of the example's own loss, is another one."""
        if not self._wanted:
            return
        factor, limit = float(factors[self._number]), limit_for(self._dtype)
        floor = _SMALL * math.sqrt(sum(float(w.double().square().sum()) for w in self._wanted.values()))
        for name, wanted in self._wanted.items():
            found = self._found.get(name, torch.zeros_like(wanted)).double() * factor
            scale = max(float(torch.linalg.vector_norm(wanted.double())), floor)
            distance = float(torch.linalg.vector_norm(found - wanted.double()))
            if distance > limit * scale and math.isfinite(distance):  # what is not finite is counted elsewhere
                raise WrongRows(
                    f"The gradient of {name} captured for example {self._number} of the batch ({self._id}) differs "
                    f"from that of its own backward pass by {distance / scale if scale else math.inf:.2g} of its size; "
                    f"rounding makes at most {limit:g}. Its loss may share a batch with something that the monitor "
                    "cannot see (examples that attend to each other, a loss that is no mean over target tokens, a "
                    "penalty), or a block is not used as a plain layer: leave that out with blocks=[...], or train "
                    "without the monitor."
                )


def _own_loss(logits: Tensor, inputs: Inputs, k: int) -> Tensor:
    s = inputs.segments[k]
    targets = torch.from_numpy(inputs.targets[s.at].astype(np.int64)).to(logits.device)
    wide = logits[s.at] if logits.dtype == torch.float64 else logits[s.at].float()
    return torch.nn.functional.cross_entropy(wide, targets, ignore_index=IGNORED)


@contextmanager
def _same_random_state(model: nn.Module) -> Iterator[None]:
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def _no_reentrant(model: nn.Module) -> Iterator[None]:
    """Layers that compute again do it in the way that knows `torch.autograd.grad`."""
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]
    before = [m._gradient_checkpointing_func for m in layers]
    again = partial(checkpoint, use_reentrant=False)
    try:
        for m in layers:
            m._gradient_checkpointing_func = again  # type: ignore[assignment]  # a plain attribute
        yield
    finally:
        for m, function in zip(layers, before, strict=True):
            m._gradient_checkpointing_func = function
