"""Hooks that see a training loop's own forward and backward pass, and live only inside a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from graddiag.blocks import Kind, Selected, Use
from graddiag.capture import Call
from graddiag.errors import DataError
from graddiag.monitor._guard import Guard
from graddiag.monitor._inputs import Given, Inputs, arguments, read_inputs
from graddiag.monitor._placing import place
from graddiag.monitor._scale import TokenWeights

Consume = Callable[["Pass", Selected, Use, Sequence[Call]], None]


@dataclass(eq=False)
class _Seen:
    """One call of a module: its input, None until it is recomputed; and the gradient of its output."""

    inputs: Tensor | None
    version: int = 0
    grad: Tensor | None = None

    @property
    def whole(self) -> bool:
        return self.inputs is not None and self.grad is not None


@dataclass(eq=False)
class Pass:
    """One forward pass of the model: its examples, and for each module how often it ran, and what was seen of that."""

    inputs: Inputs
    number: int
    weights: TokenWeights | None = None
    ran: dict[nn.Module, int] = field(default_factory=dict)
    seen: dict[nn.Module, list[_Seen]] = field(default_factory=dict)
    used: set[nn.Module] = field(default_factory=set)  # modules whose calls were handed on

    def lacks(self, module: nn.Module) -> bool:
        """Whether a run of the module is still to come again, in the backward pass: gradient checkpointing."""
        seen = self.seen.get(module, [])
        return module not in self.used and (len(seen) < self.ran.get(module, 0) or any(s.inputs is None for s in seen))


class Capture:
    """What goes into the modules of some blocks and what gradient comes out, forward pass by forward pass.

    The calls of a module are handed to `consume` as soon as the gradients of all of them are there, and forgotten.
    Nothing that the model computes is replaced: outputs get a hook that reads their gradient. Under gradient
    checkpointing a module's input is read when it is computed again.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Selected],
        guard: Guard,
        *,
        before: Callable[[Inputs, tuple[object, ...], Mapping[str, object]], None],
        consume: Consume,
    ) -> None:
        self._model, self._guard, self._before, self._consume = model, guard, before, consume
        self._of_module: dict[nn.Module, list[tuple[Selected, Use]]] = {}
        for b in blocks:
            self._of_module.setdefault(b.uses[0].module, []).append((b, b.uses[0]))
        self._checkpointed = _checkpointing_layers(model, self._of_module)
        self._batch: Given = {}
        self._inside: Pass | None = None
        self._paused = False
        self.passes: list[Pass] = []

    @contextmanager
    def running(self, batch: Given) -> Iterator[None]:
        """Passes of the model are seen inside."""
        self._batch = batch
        model = self._model
        handles = [
            model.register_forward_pre_hook(self._hooked(self._begin), with_kwargs=True),
            model.register_forward_hook(self._hooked(self._end), always_call=True),
        ]
        for module in self._of_module:
            # Two hooks, since a layer that is computed again stops inside the module whose input was wanted last.
            handles.append(module.register_forward_pre_hook(self._hooked(self._runs), with_kwargs=True))
            handles.append(module.register_forward_hook(self._hooked(self._ran), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._batch, self._inside = {}, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The model may be run inside without being seen."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def finish(self) -> None:
        """Hands on the calls that had to wait: of modules of which some output was not used."""
        for one in self.passes:
            for module in list(one.seen):
                if any(s.whole for s in one.seen[module]):
                    self._hand_on(one, module)
            one.seen.clear()

    def _hooked(self, hook: Callable[..., None]) -> Callable[..., None]:
        guarded = self._guard(hook)

        def hooked(*args: object) -> None:
            # While a compiler traces the model it must not trace this too: what is compiled has no hooks.
            if not torch.compiler.is_compiling() and not self._paused:
                guarded(*args)

        return hooked

    def _begin(self, model: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if not torch.is_grad_enabled():
            return
        inputs = read_inputs(arguments(model, args, kwargs, self._batch), self._batch)
        if not self.passes:
            with self.paused():
                self._before(inputs, args, kwargs)
        self._inside = Pass(inputs, len(self.passes))
        self.passes.append(self._inside)

    def _end(self, model: nn.Module, args: tuple[object, ...], output: object) -> None:
        one, self._inside = self._inside, None
        if one is None:
            return
        if output is None:  # the forward pass raised
            self.passes.remove(one)
            return
        _check_called(one)
        one.weights = TokenWeights(one.inputs, output, self._guard)

    def _runs(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Takes the input of a module that is computed again, outside the model's own forward pass."""
        one = None if self._inside is not None else self._waiting(module)
        missing = next((s for s in one.seen.get(module, []) if s.inputs is None), None) if one else None
        x = _first(args, kwargs)
        if one is not None and missing is not None and x is not None:
            missing.inputs, missing.version = x.detach(), x._version
            self._if_complete(one, module)

    def _ran(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        x = _first(args, kwargs)
        if not isinstance(output, Tensor) or x is None:
            return
        one = self._inside
        if one is not None:
            one.ran[module] = one.ran.get(module, 0) + 1
        elif output.requires_grad:
            one = self._waiting(module)
        if one is not None and output.requires_grad and len(one.seen.get(module, [])) < one.ran[module]:
            self._record(one, module, x, output)

    def _record(self, one: Pass, module: nn.Module, x: Tensor, output: Tensor) -> None:
        again = one is self._inside and any(_checkpoints(layer) for layer in self._checkpointed[module])
        again = again and any(use.kind is not Kind.BIAS for _, use in self._of_module[module])
        seen = _Seen(None if again else x.detach(), x._version)
        calls = one.seen.setdefault(module, [])
        calls.append(seen)
        if again and len(calls) > 1:
            raise DataError(
                "A module runs several times in one forward pass under gradient checkpointing, so that it cannot be "
                "told which of them is computed again. Leave it out with blocks=[...]."
            )

        def arrived(grad: Tensor) -> None:
            seen.grad = grad.detach()
            self._if_complete(one, module)

        output.register_hook(self._guard(arrived))  # type: ignore[no-untyped-call]

    def _waiting(self, module: nn.Module) -> Pass | None:
        """The pass of which a part is computed again, in the backward pass; None where nothing is missing."""
        waiting = [p for p in self.passes if p.lacks(module)]
        if len(waiting) > 1:
            raise DataError(
                f"{len(waiting)} forward passes under gradient checkpointing wait for one backward pass, so that it "
                "cannot be told which of them is computed again. Call backward() after each forward pass."
            )
        return waiting[0] if waiting else None

    def _if_complete(self, one: Pass, module: nn.Module) -> None:
        calls = one.seen[module]
        if len(calls) == one.ran[module] and all(s.whole for s in calls):
            self._hand_on(one, module)

    def _hand_on(self, one: Pass, module: nn.Module) -> None:
        seen = one.seen.pop(module)
        one.used.add(module)
        if not one.inputs.segments:
            return
        for b, use in self._of_module[module]:
            calls = [place(s.inputs, s.grad, one.inputs, b.block.name) for s in _unchanged(seen, b) if s.whole]
            with torch.no_grad(), torch.autocast(calls[0].grads[0].device.type, enabled=False):
                self._consume(one, b, use, calls)


def _first(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Tensor | None:
    return next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)


def _unchanged(seen: Sequence[_Seen], b: Selected) -> Sequence[_Seen]:
    for s in seen:
        if s.inputs is not None and s.inputs._version != s.version:
            raise DataError(
                f"What went into {b.block.name!r} was changed in place afterwards, so its gradients cannot be had. "
                "Leave this block out with blocks=[...]."
            )
    return seen


def _check_called(one: Pass) -> None:
    """Raises DataError where no hook fired at all."""
    if not one.ran:
        raise DataError(
            "The model ran and none of its chosen modules was seen: 0 rows captured of "
            f"{len(one.inputs.segments)} examples. A compiled model or fused kernels go past the hooks. Give the "
            "monitor and the loop the model as it was before torch.compile, or compile after a probe-free warm-up "
            "only what is not watched."
        )


def _checkpoints(layer: GradientCheckpointingLayer) -> bool:
    return bool(layer.gradient_checkpointing and layer.training)


def _checkpointing_layers(
    model: nn.Module, modules: Mapping[nn.Module, object]
) -> dict[nn.Module, list[GradientCheckpointingLayer]]:
    """For each module the layers around it that may drop its input and compute it again."""
    found: dict[nn.Module, list[GradientCheckpointingLayer]] = {m: [] for m in modules}
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            for inner in layer.modules():
                if inner in found:
                    found[inner].append(layer)
    return found
