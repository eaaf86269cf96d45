"""Where the weights of models that are not loaded can be read, one tensor at a time: safetensors, adapters on them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from graddiag._adapter import put_adapter
from graddiag._checkpoint import WEIGHTS, Place, problems_named
from graddiag._quiet import quiet
from graddiag.errors import DataError
from graddiag.expert_layouts import other_names, stacked
from graddiag.model_set import ModelSet
from graddiag.models import choose_device, is_built_in, load_base
from graddiag.outline import Outline, skeleton
from graddiag.weight_reading import Entry, held_elsewhere, in_layer, weight_entries

Entries = dict[str, Entry]
SINGLE, INDEX = WEIGHTS
_PLAIN_TYPES = ("F64", "F32", "F16", "BF16")  # anything else is packed or scaled: its numbers are not the weights
_PLAIN_STARTS = ("gaussian", "orthogonal")  # other named starts of a LoRA change the weights under the adapter too


def weight_sources(models: ModelSet) -> dict[str, Entries]:
    """The parameters of each model of a set, by role, under the names that the loaded model has for them.

    Values are read from files when they are asked for, a tensor at a time, in the type that was saved (float32 under an
    adapter), to the device of the set; a stack of experts from a tensor for each, where files have these. Only a
    built-in model is in memory as a whole, once. What files do not hold as
    plain numbers of the model's own name and shape is not there: `missing` tells. Raises DataError where that is a
    matrix of a layer, and for an adapter that is more than its own files and the plain weights under it.
    """
    device = choose_device(models.device)
    bases: dict[str, Entries] = {}
    out = {}
    for role, one in models.models.items():
        if one.weights_at not in bases:
            bases[one.weights_at] = _base_entries(one.base, device)
        base = bases[one.weights_at]
        out[role] = base if one.adapter is None else _adapted(one, one.adapter, base, device)
    return out


def _base_entries(place: Place, device: torch.device) -> Entries:
    if is_built_in(place):
        return weight_entries(load_base(place, device=str(device))[0], place.name)
    bare = skeleton(place)
    files = _file_entries(_folder(place), device)
    found = {name: _found(files, name, p, bare) for name, p in bare.named_parameters()}
    lost = [n for n, p in bare.named_parameters() if found[n] is None and in_layer(n, p.shape)]
    if lost:
        raise DataError(
            f"The files of the model {place} hold no {lost[0]!r} as plain numbers of that name and shape (nor "
            f"{len(lost) - 1} other matrices of layers): they are quantized, or stored in another layout. Load the "
            "models and give them to graddiag.compare_weights."
        )
    return {name: entry for name, entry in found.items() if entry is not None}


def missing(place: Place, entries: Collection[str]) -> tuple[str, ...]:
    """The parameters of the model that are not among the entries."""
    if is_built_in(place):
        return ()
    return tuple(name for name, _ in skeleton(place).named_parameters() if name not in entries)


def _folder(place: Place) -> Path:
    if place.folder is not None:
        return place.folder
    try:
        patterns = ["*.safetensors", INDEX]
        found = snapshot_download(place.name, revision=place.revision, allow_patterns=patterns, local_files_only=True)
    except LocalEntryNotFoundError as error:
        raise DataError(f"The model {place} is not in the local cache of the hub as safetensors.") from error
    return Path(found)


def _file_entries(folder: Path, device: torch.device) -> Entries:
    """What is in the safetensors of a folder, by the name that it has there; only shapes are read yet."""
    with problems_named(Place(str(folder), folder)):
        if (folder / SINGLE).is_file():
            paths = [folder / SINGLE]
        else:
            where = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            paths = [folder / name for name in dict.fromkeys(where.values())]
        out = {}
        for path in paths:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  no mapping
                    part = opened.get_slice(name)
                    if part.get_dtype() in _PLAIN_TYPES:
                        out[name] = Entry(tuple(part.get_shape()), partial(_read, path, name, str(device)))
    return out


def _read(path: Path, name: str, device: str) -> Tensor:
    with safe_open(path, framework="pt", device=device) as opened:
        values: Tensor = opened.get_tensor(name)
    return values


def _found(files: Entries, name: str, parameter: Tensor, bare: PreTrainedModel) -> Entry | None:
    """A checkpoint of a model with or without its head may name the rest with or without a prefix, and may have a
    tensor for each expert where the model has one for all."""
    prefix, shape = f"{bare.base_model_prefix}.", tuple(parameter.shape)
    for plain in (name, name.removeprefix(prefix), prefix + name):
        for known in other_names(plain):
            if known in files and files[known].shape == shape:
                return files[known]
            if (experts := stacked(files, known, shape)) is not None:
                return experts
    return None


def _adapted(one: Outline, folder: Path, base: Mapping[str, Entry], device: torch.device) -> Entries:
    """The adapter on a model without values, which come from `base` as each layer is merged."""
    _check_plain(one, folder)
    bare = skeleton(one.base)
    held = _without_values(bare, base, device)
    with torch.random.fork_rng(devices=[]), quiet():
        model = put_adapter(bare, folder)
    return {name: entry for name, entry in held_elsewhere(model, held).items() if name in base}


def _without_values(bare: PreTrainedModel, base: Mapping[str, Entry], device: torch.device) -> dict[int, Entry]:
    """Puts into every parameter's place one zero that is shown in its shape: PEFT puts adapters on no other device than
    the weights'. Gives where the values are, by the parameter's id."""
    zero = torch.zeros((), dtype=torch.float32, device=device)
    made = {id(p): nn.Parameter(zero.expand(p.shape), requires_grad=False) for p in bare.parameters()}
    held = {id(made[id(p)]): base[name] for name, p in bare.named_parameters() if name in base}
    for module in bare.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            setattr(module, name, made[id(parameter)])
    return held


def _check_plain(one: Outline, folder: Path) -> None:
    from peft import PeftConfig

    with problems_named(Place(one.name, folder)):
        config = PeftConfig.from_pretrained(str(folder))
    start = getattr(config, "init_lora_weights", True)
    if config.is_prompt_learning:
        raise DataError(f"The adapter {one.name!r} changes no weights: it is put before the prompt.")
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        raise DataError(
            f"The adapter {one.name!r} changes the weights under it when it is loaded ({start}). Merge it into its "
            "model, save that, and give its folder."
        )
