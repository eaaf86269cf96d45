"""Recording what goes into a block and the gradient that comes out of it, without touching the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from graddiag.blocks import LinearBlock
from graddiag.errors import DataError

Consume = Callable[[LinearBlock, Tensor, Tensor], None]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """The model in eval mode with frozen parameters; modes, `requires_grad` and the RNG state are as before
    afterwards."""
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


class Recorder:
    """Hooks on the modules of some blocks that hand each block's inputs and output gradients to `consume`, once per
    batch.

    The graph starts at the output of the lowest block: where a block's output needs no gradient yet, it becomes a
    leaf, so the backward pass never goes below it. A module that is called several times in one forward pass is
    handed over with its calls one after the other along the tokens; their gradients add up. Hooks live only inside
    the `with` block.
    """

    def __init__(self, blocks: Sequence[LinearBlock], consume: Consume, *, batch: int, tokens: int) -> None:
        self._blocks = blocks
        self._consume = consume
        self._batch, self._tokens = batch, tokens
        self._inputs: dict[str, list[Tensor]] = {b.block.name: [] for b in blocks}
        self._grads: dict[str, dict[int, Tensor]] = {b.block.name: {} for b in blocks}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self.consumed: set[str] = set()

    def __enter__(self) -> Recorder:
        for b in self._blocks:
            self._handles.append(b.module.register_forward_hook(self._forward_hook(b)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._inputs.clear()
        self._grads.clear()

    def check_calls(self) -> None:
        """Raises DataError naming the blocks whose hook did not fire in the forward pass."""
        silent = [name for name, calls in self._inputs.items() if not calls]
        if silent:
            raise DataError(
                f"{len(silent)} of {len(self._blocks)} blocks took no part in the forward pass, the "
                f"first is {silent[0]!r}. "
                "A compiled model or a fused kernel goes past the hooks: pass the model as it was "
                "before torch.compile, "
                "or leave these blocks out with --blocks."
            )

    def check_consumed(self) -> None:
        """Raises DataError naming the blocks whose output gradient never arrived."""
        missing = [b.block.name for b in self._blocks if b.block.name not in self.consumed]
        if missing:
            raise DataError(
                f"No gradient reached {len(missing)} blocks, the first is {missing[0]!r}: the loss "
                "does not depend on them. Leave them out."
            )

    def _forward_hook(self, b: LinearBlock) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        name = b.block.name

        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            call = len(self._inputs[name])
            self._inputs[name].append(self._by_example(b, args[0].detach()))
            traced = output if output.requires_grad else output.detach().requires_grad_(True)
            traced.register_hook(lambda grad: self._arrived(b, call, grad))  # type: ignore[no-untyped-call]
            return None if traced is output else traced

        return hook

    def _arrived(self, b: LinearBlock, call: int, grad: Tensor) -> None:
        name = b.block.name
        grads = self._grads[name]
        grads[call] = self._by_example(b, grad)
        calls = len(self._inputs[name])
        if len(grads) < calls:
            return
        inputs = self._inputs[name][0] if calls == 1 else torch.cat(self._inputs[name], dim=1)
        output_grads = grads[0] if calls == 1 else torch.cat([grads[c] for c in range(calls)], dim=1)
        self._inputs[name], self._grads[name] = [], {}
        self._consume(b, inputs, output_grads)
        self.consumed.add(name)

    def _by_example(self, b: LinearBlock, x: Tensor) -> Tensor:
        if x.shape[: x.dim() - 1].numel() != self._batch * self._tokens:
            raise DataError(
                f"Block {b.block.name!r} saw {x.shape[:-1].numel()} token rows for {self._batch} "
                f"examples of {self._tokens} tokens: "
                "rows cannot be matched to examples (routed experts?). Leave this block out with --blocks."
            )
        return x.reshape(self._batch, self._tokens, x.shape[-1])
