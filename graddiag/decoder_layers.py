"""The decoder layers of a model, and the hidden states that come out of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from graddiag.errors import DataError, UsageError
from graddiag.head import inner_model

Change = Callable[[int, Tensor], Tensor | None]


def decoder_layers(model: nn.Module) -> tuple[nn.Module, ...]:
    """The layers through which the residual stream goes, the first one first.

    Raises DataError for a model without a list of as many modules as its config has layers.
    """
    inner = inner_model(model)
    n = inner.config.get_text_config(decoder=True).num_hidden_layers
    decoder = inner.get_decoder() or inner  # type: ignore[no-untyped-call]
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n:
            return tuple(module)
    raise DataError(
        f"A {type(inner).__name__} of {n} layers has no list of {n} modules: its decoder layers are not found."
    )


def chosen_layers(model: nn.Module, layers: Sequence[int] | None) -> Mapping[int, nn.Module]:
    """The decoder layers of these numbers, all of them by default. Raises UsageError for one that is not there."""
    every = decoder_layers(model)
    wanted = range(len(every)) if layers is None else sorted(set(layers))
    missing = [k for k in wanted if not 0 <= k < len(every)]
    if missing or not wanted:
        asked = f"There is no layer {missing[0]}" if missing else "No layer is chosen"
        raise UsageError(f"{asked}. This model has the decoder layers 0 to {len(every) - 1}.")
    return {k: every[k] for k in wanted}


@contextmanager
def at_outputs(layers: Mapping[int, nn.Module], see: Change) -> Iterator[None]:
    """Inside, `see` gets the number of each of the layers and its output [b, t, d] whenever one is run.

    What it returns takes the place of the output; None leaves it. The hooks are gone afterwards, also when it raises.
    """
    handles = []
    try:
        for number, module in layers.items():
            handles.append(module.register_forward_hook(_hook(number, see)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(number: int, see: Change) -> Callable[[nn.Module, object, object], object]:
    def hook(_: nn.Module, __: object, output: object) -> object:
        states = output[0] if isinstance(output, (tuple, list)) else output
        if not isinstance(states, Tensor) or states.ndim != 3:
            raise DataError(f"The output of decoder layer {number} is no [batch, token, width]: it cannot be read.")
        new = see(number, states)
        if new is None:
            return None
        return type(output)([new, *output[1:]]) if isinstance(output, (tuple, list)) else new

    return hook
