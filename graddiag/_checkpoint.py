"""A model and its tokenizer from a folder or from a repository on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file

from graddiag.errors import DataError, GraddiagError, ResourceError, UsageError

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, *TOKENIZERS, "tokenizer_config.json", "merges.txt", "*.jinja")
MODEL_HOLDS = f"{CONFIG}, safetensors weights ({' or '.join(WEIGHTS)}) and a tokenizer ({TOKENIZERS[0]})"
REASON_LENGTH = 300  # characters of another library's message that are shown

_FROM_HUB: tuple[tuple[type[Exception], str], ...] = (  # the first that fits: a later one may include an earlier one
    (
        LocalEntryNotFoundError,
        "is no folder here, is not in the local cache of the hub, and the hub cannot be reached (no network, or "
        "HF_HUB_OFFLINE is set). Download it where there is a network, or use a built-in model or a folder.",
    ),
    (EntryNotFoundError, f"is on the hub, but is no model: a model has {MODEL_HOLDS}."),
    (GatedRepoError, "asks for consent: accept its terms on its page of the hub, then run `hf auth login`."),
    (
        RepositoryNotFoundError,
        "is no folder here and no public model on the hub. Check the spelling; for a private one, run `hf auth login`.",
    ),
    (RevisionNotFoundError, "is not on the hub: the repository is, the revision is not. Its page lists the commits."),
)


@dataclass(frozen=True)
class Place:
    """Where a checkpoint is: in a folder, or on the hub, at a revision."""

    name: str
    folder: Path | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def __str__(self) -> str:
        return f"{self.name!r}" + (f" at revision {self.revision!r}" if self.revision else "")


def has_tokenizer(folder: Path) -> bool:
    """Whether the files of a tokenizer are in the folder."""
    return any((folder / f).is_file() for f in TOKENIZERS)


def load_checkpoint(place: Place, dtype: torch.dtype | str) -> Loaded:
    """The causal language model, on the CPU, and its tokenizer; a `dtype` of "auto" is the checkpoint's own.

    Raises DataError for files that are missing, damaged or pickled, or that leave weights without a value; UsageError
    for a model that needs code of its own; ResourceError where memory is too small.
    """
    if place.folder is not None:
        _check_folder(place.folder)
    tokenizer = load_tokenizer(place)
    with problems_named(place):
        loaded = AutoModelForCausalLM.from_pretrained(
            place.folder or place.name, dtype=dtype, use_safetensors=True, output_loading_info=True, **_how(place)
        )
    model, info = cast("tuple[PreTrainedModel, dict[str, set[str]]]", loaded)
    missing = sorted(info["missing_keys"])
    if missing:
        raise DataError(
            f"The model {place} has no values for {len(missing)} of its weights, the first is {missing[0]!r}; they "
            "would be random. Save the whole model, with the config that belongs to it."
        )
    return model, tokenizer


def load_tokenizer(place: Place) -> PreTrainedTokenizerBase:
    """The tokenizer alone. Raises DataError or UsageError as `load_checkpoint` does."""
    with problems_named(place):
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(place.folder or place.name, **_how(place)))


def find_adapter(place: Place) -> Path | None:
    """The folder of the PEFT adapter that is there, downloaded if it is on the hub; None for a model of its own.

    Raises DataError where the hub has no such repository or revision, or cannot be reached and nothing is cached.
    """
    if place.folder is not None:
        return place.folder if (place.folder / ADAPTER_CONFIG).is_file() else None
    with problems_named(place):
        missing: EntryNotFoundError | None = None
        try:
            hf_hub_download(place.name, CONFIG, revision=place.revision)
        except EntryNotFoundError as error:  # adapters often have no such file
            missing = error
        if find_adapter_config_file(place.name, revision=place.revision) is not None:
            return Path(snapshot_download(place.name, revision=place.revision, allow_patterns=list(ADAPTER_FILES)))
        if missing is not None:
            raise missing
    return None


@contextmanager
def problems_named(place: Place, advice: str = f"A model has {MODEL_HOLDS}.") -> Iterator[None]:
    """Turns what other libraries raise about a checkpoint into an error that names it and says what to do.

    All exceptions are caught: files can be wrong in any way, and the tokenizers library raises bare ones.
    """
    try:
        yield
    except GraddiagError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(
            f"The model {place} does not fit into memory. Use --dtype bfloat16, or a smaller model."
        ) from error
    except Exception as error:
        raise _explained(place, error, advice) from error


@contextmanager
def advised(advice: str) -> Iterator[None]:
    """Adds advice to a DataError."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{error} {advice}") from error


def _how(place: Place) -> dict[str, str | bool | None]:
    """Code is pinned like the weights: where a config points at code of another repository, that has no such commit."""
    how: dict[str, str | bool | None] = {"revision": place.revision, "trust_remote_code": place.trust_remote_code}
    return how | {"code_revision": place.revision} if place.trust_remote_code else how


def _check_folder(folder: Path) -> None:
    missing = [] if (folder / CONFIG).is_file() else [CONFIG]
    if not any((folder / f).is_file() for f in WEIGHTS):
        pickled = any(folder.glob("*.bin"))
        missing.append("safetensors weights" + (" (its .bin files are pickles, which can run code)" if pickled else ""))
    if not has_tokenizer(folder):
        missing.append("tokenizer")
    if missing:
        raise DataError(
            f"The folder {str(folder)!r} has no {' and no '.join(missing)}. A model has {MODEL_HOLDS}: "
            "what save_pretrained of the model and of the tokenizer write."
        )


def _explained(place: Place, error: Exception, advice: str) -> GraddiagError:
    if place.folder is None:
        for kind, text in _FROM_HUB:
            if isinstance(error, kind):
                return DataError(f"The model {place} {text}")
    if "trust_remote_code" in str(error):
        return UsageError(
            f"The model {place} brings code of its own, which is not run. If you have read that code and want "
            "it to run, give the hub id, --trust-remote-code and the full commit as --revision (40 hex digits)."
        )
    reason = " ".join(str(error).split()) or type(error).__name__
    shown = reason if len(reason) <= REASON_LENGTH else f"{reason[:REASON_LENGTH]}..."
    return DataError(f"The model {place} cannot be loaded: {shown.rstrip('.')}. {advice}")
