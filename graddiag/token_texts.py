"""The texts of a run's answer tokens, kept beside its signals: a report has no tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from graddiag.errors import DataError
from graddiag.files import disk_named, read_json, write_json

TOKENS_FILE = "tokens.json"


def read_texts(folder: Path) -> dict[int, str]:
    """The kept texts by token id; none where a run has no such file. Raises DataError where it cannot be read."""
    path = folder / TOKENS_FILE
    if not path.is_file():
        return {}
    texts = read_json(path).get("texts")
    if not isinstance(texts, dict) or not all(str(k).isdigit() for k in texts):
        raise DataError(f"{path} does not hold token ids and their texts. Delete it, or give the same command again.")
    return {int(k): str(v) for k, v in texts.items()}


def keep_texts(folder: Path, texts: Mapping[int, str]) -> None:
    """Writes the texts, beside those that are there already."""
    with disk_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        every = read_texts(folder) | dict(texts)
        write_json(folder / TOKENS_FILE, {"texts": {str(k): every[k] for k in sorted(every)}})
