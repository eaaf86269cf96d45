"""What can be known of a model before its weights are loaded: its widths, its tokenizer, what an adapter goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from graddiag import _smollm2, _tiny
from graddiag._adapter import check_adapter_fits
from graddiag._checkpoint import Place, find_adapter, has_tokenizer, load_tokenizer, problems_named
from graddiag._quiet import quiet
from graddiag.models import find_base, find_place, is_built_in


@dataclass(frozen=True, eq=False)
class Outline:
    """A model by its config: width of its hidden states, layers, vocabulary, context (None where it states none).

    `base` is where the weights are; an adapter's own are in the folder `adapter`.
    """

    name: str
    base: Place
    adapter: Path | None
    width: int
    n_layers: int
    vocabulary: int
    context: int | None
    tokenizer: PreTrainedTokenizerBase

    @property
    def weights_at(self) -> str:
        """Equal for two models that share their base."""
        where = str(self.base.folder.resolve()) if self.base.folder else self.base.name
        return f"{where}@{self.base.revision or ''}"


def outline(name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Outline:
    """The outline of a model as `load_model` takes it. Raises as that does, and DataError for an adapter that does not
    fit the model it names."""
    place = find_place(name, revision, trust_remote_code)
    adapter = None if is_built_in(place) else find_adapter(place)
    base = place if adapter is None else find_base(place, adapter)
    with torch.random.fork_rng(devices=[]), quiet():
        config, tokenizer = _config_and_tokenizer(base)
        if adapter is not None:
            check_adapter_fits(adapter, _made_of(config, base))
            if has_tokenizer(adapter):
                tokenizer = load_tokenizer(Place(str(adapter), adapter))
    text = config.get_text_config(decoder=True)
    context = getattr(text, "max_position_embeddings", None)
    if base.name == _tiny.NAME and is_built_in(base):
        context = _tiny.DEFAULT_LENGTH
    known = context if isinstance(context, int) and context > 0 else None
    return Outline(
        str(name), base, adapter, text.hidden_size, text.num_hidden_layers, text.vocab_size, known, tokenizer
    )


def skeleton(place: Place) -> PreTrainedModel:
    """The model of a place without its weights: modules and names, every tensor on the device "meta"."""
    with torch.random.fork_rng(devices=[]), quiet(), problems_named(place):
        return _made_of(_config_and_tokenizer(place)[0], place)


def _config_and_tokenizer(place: Place) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    if is_built_in(place):
        if place.name == _tiny.NAME:
            model, tokenizer = _tiny.build_tiny()
            return model.config, tokenizer
        folder = _smollm2.smollm2_folder()
        place = Place(str(folder), folder) if folder else Place(_smollm2.HUB_ID)
    with problems_named(place):
        how = {"revision": place.revision, "trust_remote_code": place.trust_remote_code}
        config: PretrainedConfig = AutoConfig.from_pretrained(place.folder or place.name, **how)
    return config, load_tokenizer(place)


def _made_of(config: PretrainedConfig, place: Place) -> PreTrainedModel:
    how = {"trust_remote_code": True, "code_revision": place.revision} if place.trust_remote_code else {}
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config, **how)  # type: ignore[no-untyped-call]
    return cast(PreTrainedModel, made)
