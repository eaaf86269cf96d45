"""The weights of a model by name, one tensor at a time: of a loaded model, adapters merged on the way, or a mapping."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from graddiag.errors import DataError

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer

_ADAPTER_ROOT, _ADAPTER_BASE = "base_model.model.", ".base_layer"


@dataclass(frozen=True)
class Entry:
    """One parameter: its shape, and its values once they are asked for."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


Weights = nn.Module | Mapping[str, Tensor] | Mapping[str, Entry]
_Walked = Iterator[tuple[str, nn.Parameter, Callable[[], Tensor]]]
_NOTHING_HELD: Mapping[int, Entry] = {}


def weight_entries(source: Weights, role: str) -> dict[str, Entry]:
    """The parameters of a model, by the name that they have without an adapter, in its order; tied ones once.

    A PEFT adapter counts as merged: the values of a layer are read off a copy of that one layer into which the active
    adapters were merged. The model itself stays as it is. Of a mapping, values are asked for one at a time, so it may
    load them; it may also hold entries, which say how. Raises DataError for a mapping with an adapter's tensors, which
    cannot be merged without its settings.
    """
    if isinstance(source, nn.Module):
        return _of_model(source)
    unmerged = [k for k in source if _ADAPTER_BASE in k or k.startswith(_ADAPTER_ROOT) or ".lora_" in k]
    if unmerged:
        raise DataError(
            f"The weights of the {role} model hold an adapter that is not merged ({unmerged[0]!r}). Give the loaded "
            "model instead of its state dict, or merge the adapter."
        )
    return entries_of(source)


def entries_of(source: Mapping[str, Tensor] | Mapping[str, Entry]) -> dict[str, Entry]:
    """The tensors of a mapping under its own names, asked for one at a time."""
    return {k: Entry(tuple(v.shape), partial(_asked, source, k)) for k, v in source.items()}


def in_layer(name: str, shape: Sequence[int]) -> bool:
    """Whether a parameter is a matrix inside a numbered layer, or a stack of such matrices, one for each expert."""
    parts = name.split(".")
    return (len(shape) == 2 or (len(shape) == 3 and "experts" in parts)) and any(p.isdecimal() for p in parts)


def plain_name(name: str) -> str:
    """A parameter's name without what an adapter around the model adds to it."""
    return name.removeprefix(_ADAPTER_ROOT).replace(f"{_ADAPTER_BASE}.", ".")


def held_elsewhere(model: nn.Module, held: Mapping[int, Entry]) -> dict[str, Entry]:
    """The same of a model some of whose parameters have no values of their own: `held` has those, by the parameter's
    id."""
    return _of_model(model, held)


def _of_model(model: nn.Module, held: Mapping[int, Entry] = _NOTHING_HELD) -> dict[str, Entry]:
    peft = sys.modules.get("peft")  # who has a PeftModel has imported it
    plain = model.get_base_model() if peft is not None and isinstance(model, peft.PeftModel) else model
    out: dict[str, Entry] = {}
    seen: set[int] = set()
    for name, parameter, read in _walk(plain, "", held):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            out[name] = Entry(tuple(parameter.shape), read)
    return out


def _walk(module: nn.Module, prefix: str, held: Mapping[int, Entry]) -> _Walked:
    """Name, parameter and how to read it, in the order of the model; what an adapter adds is walked past."""
    tuners, wrappers = sys.modules.get("peft.tuners.tuners_utils"), sys.modules.get("peft.utils.other")
    if wrappers is not None and isinstance(module, wrappers.ModulesToSaveWrapper):
        trained = module.active_adapters and not module.disable_adapters
        inner = module.modules_to_save[module.active_adapters[0]] if trained else module.original_module
        yield from _walk(inner, prefix, held)
    elif tuners is not None and isinstance(module, tuners.BaseTunerLayer):
        for name, parameter in module.get_base_layer().named_parameters(recurse=False):
            yield prefix + name, parameter, partial(_merged, module, name, held)
    else:
        for name, parameter in module.named_parameters(recurse=False):
            own = held.get(id(parameter))
            yield prefix + name, parameter, partial(_itself, parameter) if own is None else own.read
        for name, child in module.named_children():
            yield from _walk(child, f"{prefix}{name}.", held)


def _asked(source: Mapping[str, Tensor] | Mapping[str, Entry], name: str) -> Tensor:
    value = source[name]
    return value.read() if isinstance(value, Entry) else value


def _itself(values: Tensor) -> Tensor:
    return values.detach()


def _merged(layer: BaseTunerLayer, name: str, held: Mapping[int, Entry]) -> Tensor:
    """A parameter of the layer under the adapter, the active ones merged into a copy; as it is where they are off."""
    base: nn.Module = layer.get_base_layer()
    with torch.no_grad():
        if layer.disable_adapters:
            parameter = base.get_parameter(name)
            return held[id(parameter)].read() if id(parameter) in held else _itself(parameter)
        read = {id(p): _like(p, held[id(p)]) for p in base.parameters(recurse=False) if id(p) in held}
        own = copy.deepcopy(layer, dict(read))  # a parameter that deepcopy takes for copied is replaced by its values
        own.merge()
        merged: nn.Module = own.get_base_layer()
        return merged.get_parameter(name).detach()


def _like(parameter: nn.Parameter, values: Entry) -> nn.Parameter:
    return nn.Parameter(values.read().to(parameter.device, parameter.dtype, copy=True), requires_grad=False)
