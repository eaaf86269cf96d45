"""A PEFT adapter (LoRA and its kin) on the model that it was trained on."""

from __future__ import annotations

import importlib.util
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from safetensors import safe_open
from transformers import PreTrainedModel

from graddiag._checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Place, problems_named
from graddiag.errors import DataError, UsageError


@dataclass(frozen=True)
class Base:
    """The model an adapter was trained on, as the adapter names it: built-in name, folder or hub id."""

    name: str
    revision: str | None


def read_base(folder: Path) -> Base:
    """What the adapter in the folder goes on.

    Raises UsageError where PEFT is not installed, DataError where the folder is not complete.
    """
    if importlib.util.find_spec("peft") is None:
        raise UsageError(f"{str(folder)!r} is an adapter; loading it needs PEFT: pip install 'graddiag[peft]'.")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise DataError(
            f"The adapter folder {str(folder)!r} has no {ADAPTER_WEIGHTS}. "
            "Save the adapter with save_pretrained, as safetensors."
        )
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        name, revision = config["base_model_name_or_path"], config.get("revision")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{str(folder / ADAPTER_CONFIG)!r} is not a PEFT config: {error}.") from error
    if not isinstance(name, str) or not name:
        raise DataError(
            f"The adapter in {str(folder)!r} does not say which model it goes on. Set base_model_name_or_path in its "
            f"{ADAPTER_CONFIG} to a built-in name, a folder or a hub id."
        )
    return Base(name, revision or None)


def put_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with the adapter on it, not merged, frozen: a PeftModel, which forwards what a PreTrainedModel has.

    Raises DataError where the adapter does not fit the model.
    """
    from peft import PeftModel

    with (
        problems_named(Place(str(folder), folder), "Was the adapter trained on this model?"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's way of calling transformers
        warnings.filterwarnings("error", message="Found missing adapter keys")  # they would be as if untrained
        return cast(PreTrainedModel, PeftModel.from_pretrained(model, str(folder), torch_device="cpu"))


def take_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """The model that the adapter was put on, without it. Modules that an adapter brings whole may stay in their place:
    compare digests before the model is used as the one it was."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTuner

    assert isinstance(model, PeftModel)
    inside = model.base_model
    return cast(PreTrainedModel, inside.unload() if isinstance(inside, BaseTuner) else model.get_base_model())


def check_adapter_fits(folder: Path, skeleton: PreTrainedModel) -> None:
    """Raises DataError where the adapter's LoRA matrices have no module in the model, or one of another width.

    Only shapes are read: the model may be without weights.
    """
    with problems_named(Place(str(folder), folder)), safe_open(folder / ADAPTER_WEIGHTS, framework="np") as weights:
        shapes = {k: weights.get_slice(k).get_shape() for k in weights.keys()}  # noqa: SIM118  no mapping
    modules = dict(skeleton.named_modules())
    for key, shape in shapes.items():
        name, found, _ = key.removeprefix("base_model.model.").partition(".lora_A.")
        weight = getattr(modules.get(name), "weight", None)
        if found and (weight is None or shape[1] not in weight.shape):
            has = "has no such module" if weight is None else f"has one of shape {list(weight.shape)}"
            raise DataError(
                f"The adapter {str(folder)!r} is for another model: its {name!r} takes {shape[1]} inputs, and the "
                f"model that it names {has}. Give the adapter with the model that it was trained on."
            )
