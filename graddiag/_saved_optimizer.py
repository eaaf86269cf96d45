"""From a saved optimizer, which counts parameters, to the state of each parameter by its name."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from graddiag.errors import DataError, UsageError

SAVED_AS = "optimizer.pt"  # what a transformers Trainer calls it in a checkpoint
_NO_DECAY = [re.compile(p) for p in (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")]
_OF_ADAPTERS = ("lora_", "modules_to_save")  # an adapter that was loaded for use is frozen, and trained these
_MATTER = "Give the checkpoint that the state belongs to as --model, or pass the live optimizer from Python."

Settings = Mapping[str, object]


@dataclass(frozen=True)
class Entry:
    """What an optimizer holds of one parameter, and the settings of its group."""

    state: Settings
    group: Settings


def read_entries(path: Path, model: nn.Module) -> dict[str, Entry]:
    """What a saved `state_dict` of an optimizer, or a folder with one, holds of each parameter of the model.

    Raises UsageError or DataError where it cannot be read, or does not fit the model.
    """
    content = _load(path / SAVED_AS if path.is_dir() else path)
    states, groups = content.get("state"), content.get("param_groups")
    if not isinstance(states, Mapping) or not isinstance(groups, list) or not states:
        raise DataError(
            f"{path} holds {', '.join(map(repr, list(content)[:5])) or 'nothing'}, not the state_dict of an optimizer "
            "that has taken a step ('state' and 'param_groups'). Where DeepSpeed or FSDP saved it in parts, put them "
            "together first."
        )
    names = _names_in_order(groups, model)
    entries = {str(n): Entry(states.get(k, {}), group) for group, part in names for n, k in part.items()}
    _check_shapes(entries, dict(model.named_parameters()))
    return entries


def _load(file: Path) -> Mapping[str, object]:
    if not file.is_file():
        raise UsageError(
            f"There is no optimizer state {str(file)!r}. Give a checkpoint folder with {SAVED_AS}, or such a file."
        )
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        why = str(error).splitlines()[0]
        raise DataError(
            f"{file} cannot be read as tensors alone ({why}). Save optimizer.state_dict() again."
        ) from error
    return content if isinstance(content, Mapping) else {}


def _names_in_order(groups: Sequence[Settings], model: nn.Module) -> list[tuple[Settings, dict[object, object]]]:
    """For each group, the number under which the state of each of its parameters is kept."""
    numbers, named = ([_listed(g, key) for g in groups] for key in ("params", "param_names"))
    if all(named):
        return [(g, dict(zip(n, k, strict=True))) for g, n, k in zip(groups, named, numbers, strict=True)]
    trained = _trained(model)
    if len(groups) > 2:
        raise UsageError(
            f"The saved optimizer has {len(groups)} groups of parameters without names, so it is not known which is "
            f"which. {_MATTER}"
        )
    decayed = [n for n in trained if _decays(n, model)]
    parts = [trained] if len(groups) == 1 else [decayed, [n for n in trained if n not in set(decayed)]]
    have, want = [len(k) for k in numbers], [len(n) for n in parts]
    if have != want:
        raise DataError(
            f"The saved optimizer has groups of {_counts(have)} parameters, and this model's trained ones are "
            f"{_counts(want)}. {_MATTER}"
        )
    return [(g, dict(zip(n, k, strict=True))) for g, n, k in zip(groups, parts, numbers, strict=True)]


def _listed(group: Settings, key: str) -> list[object]:
    value = group.get(key, [])
    return list(value) if isinstance(value, (list, tuple)) else []


def _counts(sizes: Sequence[int]) -> str:
    return " and ".join(map(str, sizes))


def _trained(model: nn.Module) -> list[str]:
    """Names of the parameters that training changes; where all are frozen, those of the adapter, or else all."""
    parameters = dict(model.named_parameters())
    trainable = [n for n, p in parameters.items() if p.requires_grad]
    return trainable or [n for n in parameters if any(a in n for a in _OF_ADAPTERS)] or list(parameters)


def _decays(name: str, model: nn.Module) -> bool:
    """Whether a Trainer puts the parameter in its first group, as its get_decay_parameter_names decides."""
    layer_norm = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.LayerNorm)
    return not layer_norm and not any(p.search(name.lower()) for p in _NO_DECAY)


def _check_shapes(entries: Mapping[str, Entry], parameters: Mapping[str, nn.Parameter]) -> None:
    for name, entry in entries.items():
        first = entry.state.get("exp_avg")
        wanted = list(parameters[name].shape) if name in parameters else None
        if isinstance(first, Tensor) and wanted is not None and list(first.shape) != wanted:
            raise DataError(
                f"The optimizer's state at the place of {name!r} has shape {list(first.shape)}, and the parameter has "
                f"{wanted}: it is of another model, or of one with other parameters frozen. {_MATTER}"
            )
