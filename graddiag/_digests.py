"""Short texts that are equal exactly where weights, tokenizers or chat templates are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from graddiag.signals import digest_of

_NOT_OF_A_MODEL = (  # settings that name things or say how fast to compute, not what
    "transformers_version",
    "peft_version",
    "_name_or_path",
    "base_model_name_or_path",
    "architectures",
    "dtype",
    "inference_mode",
    "use_cache",
    "_attn_implementation",
)
_NOT_OF_A_ROW = ("truncation", "padding")  # settings that any earlier call of the tokenizer may have left behind


def weights_digest(model: nn.Module) -> str:
    """A digest of the names, dtypes, shapes and bytes of all parameters, a tied one once; the same on every device.

    It changes if any weight does. Speed is that of SHA-256, 1 to 2 GB/s on most CPUs; nothing is copied there.
    """
    parts = (f"{n} {p.dtype} {tuple(p.shape)} {bytes_digest(p)}" for n, p in model.named_parameters())
    return digest_of(parts)


def model_digest(model: nn.Module) -> str:
    """A digest of the weights and of the settings that say how they are used, such as an adapter's scale."""
    return digest_of([weights_digest(model), *_settings(model)])


def _settings(model: nn.Module) -> Iterator[str]:
    """The config and the adapters' configs as text, without names, versions and how attention is computed."""
    config = getattr(model, "config", None)
    adapters = getattr(model, "peft_config", None) or {}
    for one in (config, *(adapters[name] for name in sorted(adapters))):
        if one is not None:
            kept = {k: v for k, v in one.to_dict().items() if k not in _NOT_OF_A_MODEL}
            yield json.dumps(kept, sort_keys=True, default=str)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of all that turns text into token ids, and of the begin and end tokens that a chat template may print.

    The padding token and side, and what the tokenizer is called, are not part of it: they do not change a row's tokens.
    """
    return digest_of([_rules(tokenizer), json.dumps([str(tokenizer.bos_token), str(tokenizer.eos_token)])])


def rules_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of what turns text into token ids, alone: begin and end tokens do not count."""
    return digest_of([_rules(tokenizer)])


def _rules(tokenizer: PreTrainedTokenizerBase) -> str:
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        whole = json.loads(tokenizer.backend_tokenizer.to_str())
        return json.dumps({k: v for k, v in whole.items() if k not in _NOT_OF_A_ROW})
    return json.dumps({"class": type(tokenizer).__name__, "vocabulary": dict(sorted(tokenizer.get_vocab().items()))})


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of the chat template; no template and an empty one are the same."""
    template = tokenizer.chat_template or ""
    return digest_of([template if isinstance(template, str) else json.dumps(template, sort_keys=True)])


def bytes_digest(parameter: Tensor) -> str:
    """A digest of a tensor's bytes; the same on every device."""
    flat = parameter.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
