"""Recording what goes into a module and the gradient that comes out of it, without touching the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from graddiag.blocks import Kind, Selected
from graddiag.errors import DataError
from graddiag.gradients import Shortened

_AT_ONCE = (Kind.LINEAR, Kind.CONV1D, Kind.BIAS)  # kinds whose gradient needs nothing but inputs and output gradients


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """The model in eval mode with frozen parameters; modes, `requires_grad` and RNG state are as before afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        try:
            for m, _ in modes:
                m.training = False
            for p, _ in wanted:
                p.requires_grad_(False)
            yield
        finally:
            for m, mode in modes:
                m.training = mode
            for p, want in wanted:
                p.requires_grad_(want)


@dataclass
class Call:
    """One call of a module in a forward pass: what went in, what came out, and the gradients of what came out.

    Outputs are kept where the module will be run again; elsewhere only their number. `shortened` stands for what went
    in where that was let go.
    """

    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    outputs: list[Tensor]
    grads: dict[int, Tensor] = field(default_factory=dict)
    shortened: Shortened | None = None

    @property
    def input(self) -> Tensor:
        """The first thing that went in."""
        value = self.args[0] if self.args else next(iter(self.kwargs.values()), None)
        assert isinstance(value, Tensor)
        return value

    def condense(self, shortened: Shortened) -> None:
        """Lets go what went in; `shortened` is what remains of it."""
        self.args, self.kwargs, self.shortened = (), {}, shortened

    def forget(self) -> None:
        """Lets its tensors go: the graph, whose hooks know the call, lives until the whole backward pass is done."""
        self.args, self.kwargs, self.shortened = (), {}, None
        self.outputs.clear()
        self.grads.clear()


Arrived = Callable[[nn.Module, list[Call]], None]


class CalledAgain(Exception):
    """A module was called once more after its first input had been let go."""


class Recorder:
    """Hooks on the modules of some blocks, which live only inside the `with` block.

    The graph starts at the output of the lowest module: where an output needs no gradient yet, it becomes a leaf, so
    the backward pass never goes below it. A module of which nothing but inputs and output gradients is needed is
    handed to `arrived` as soon as the gradients of all its calls are there, and forgotten; the others wait in
    `calls`. `saw` is told of each call and may condense it, or an earlier one; then a module that is called again
    raises CalledAgain in the forward pass.
    """

    def __init__(
        self,
        blocks: Sequence[Selected],
        arrived: Arrived,
        *,
        without: nn.Module | None = None,
        saw: Callable[[nn.Module, Call], None] | None = None,
    ) -> None:
        self._at_once: dict[nn.Module, bool] = {}
        for b in blocks:
            for use in b.uses:
                if use.module is not without:
                    single = use.kind in _AT_ONCE and len(b.uses) == 1
                    self._at_once[use.module] = self._at_once.get(use.module, True) and single
        self._arrived, self._saw = arrived, saw
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._recording = True
        self.calls: dict[nn.Module, list[Call]] = {m: [] for m in self._at_once}

    def __enter__(self) -> Recorder:
        for module in self.calls:
            self._handles.append(module.register_forward_hook(self._hook, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self.calls.clear()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Modules may be run inside without being recorded."""
        self._recording = False
        try:
            yield
        finally:
            self._recording = True

    def silent(self) -> set[nn.Module]:
        """Modules that have not been called in the forward pass."""
        return {m for m, calls in self.calls.items() if not calls}

    def _hook(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> object:
        if not self._recording:
            return None
        call = Call(_detached(args), _detached(kwargs), [])  # type: ignore[arg-type]
        if any(c.shortened for c in self.calls[module]):
            raise CalledAgain
        self.calls[module].append(call)
        if self._saw:
            self._saw(module, call)
        return self._traced(module, call, output)

    def _traced(self, module: nn.Module, call: Call, output: object) -> object:
        """The output, each floating tensor of it with a gradient that is recorded."""
        if isinstance(output, (tuple, list)):
            return type(output)(self._traced(module, call, x) for x in output)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        # A view: the gradient that arrives is that of later uses, without what the module itself does with its output.
        traced = output.view_as(output) if output.requires_grad else output.detach().requires_grad_(True)
        number = len(call.outputs)
        call.outputs.append(traced.new_empty(0) if self._at_once[module] else traced.detach())
        traced.register_hook(lambda grad: self._grad(module, call, number, grad))  # type: ignore[no-untyped-call]
        return traced

    def _grad(self, module: nn.Module, call: Call, number: int, grad: Tensor) -> None:
        call.grads[number] = grad
        calls = self.calls[module]
        if self._at_once[module] and all(c.grads for c in calls):
            self._arrived(module, calls)
            for c in calls:
                c.forget()
            self.calls[module] = []


def by_example(x: Tensor, batch: int, tokens: int, name: str) -> Tensor:
    """A tensor of one row per token as [b, t, d]; modules may have flattened batch and tokens.

    Raises DataError where it has another number of rows, so that they cannot be matched to examples.
    """
    n = x.shape[:-1].numel()
    if n != batch * tokens:
        raise DataError(
            f"Block {name!r} saw {n} token rows for {batch} examples of {tokens} tokens: rows cannot be matched to "
            "examples. Leave this block out with --blocks."
        )
    return x.reshape(batch, tokens, x.shape[-1])


def _detached(value: object) -> object:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (tuple, list)):
        return type(value)(_detached(x) for x in value)
    if isinstance(value, dict):
        return {k: _detached(x) for k, x in value.items()}
    return value
