"""The built-in tiny model on disk, in the ways models are found on disk, and what tests read from a loaded one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graddiag.models import load_model

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
Message = dict[str, str]

TINY_DIGEST = "a7af33dfe97cb0f46839351f51c710b8"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHAT: list[Message] = [
    {"role": "user", "content": "Copy a file."},
    {"role": "assistant", "content": "def copy(a, b):\n    return 12345"},
]


def save(loaded: Loaded, folder: Path) -> Path:
    """The folder, in which the model and the tokenizer now are."""
    model, tokenizer = loaded
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_adapter(folder: Path) -> Path:
    """The folder of a LoRA adapter on tiny that does something: its B matrices are not zero."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        model = peft.get_peft_model(load_model("tiny", device="cpu")[0], config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.constant_(parameter, 0.5)
    model.save_pretrained(folder, save_embedding_layers=False)  # else PEFT asks the hub about a model called tiny
    return folder


def put_in_hub_cache(cache: Path, name: str, files: Path) -> None:
    """As if the files had been downloaded from the hub."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(files, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


def edit_json(path: Path, changes: Mapping[str, object]) -> None:
    """Changes some keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weight(model: PreTrainedModel) -> None:
    """Another model than it was."""
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight").add_(1.0)


def text_of(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, prompt: bool = False) -> str:
    """The conversation as the chat template prints it."""
    return cast(str, tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt))


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The token ids of a text."""
    return cast("list[int]", tokenizer(text, add_special_tokens=False)["input_ids"])


def logits_of(loaded: Loaded, text: str) -> Tensor:
    """The model's logits, [token, vocabulary]."""
    model, tokenizer = loaded
    with torch.no_grad():
        return cast(Tensor, model(torch.tensor([ids_of(tokenizer, text)])).logits[0])


def loss_of(loaded: Loaded, text: str) -> Tensor:
    """The model's loss on a text, nats/token, with its graph."""
    model, tokenizer = loaded
    tokens = torch.tensor([ids_of(tokenizer, text)])
    return cast(Tensor, model(tokens, labels=tokens).loss)
