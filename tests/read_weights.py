"""Weights that are read from files, held against those of the loaded models."""

from __future__ import annotations

from pathlib import Path

import torch

from graddiag.model_set import model_set
from graddiag.models import load_model
from graddiag.weight_reading import weight_entries
from graddiag.weight_sources import weight_sources


def check_same(given: dict[str, Path | str]) -> None:
    """Every parameter of every role, under the same names in the same order, to the last bit."""
    found = weight_sources(model_set(**given, device="cpu"))
    for role, name in given.items():
        loaded = weight_entries(load_model(name, device="cpu")[0], role)
        assert list(found[role]) == list(loaded)
        for parameter, entry in loaded.items():
            read = found[role][parameter]
            assert read.shape == entry.shape
            assert torch.equal(read.read().float(), entry.read()), (role, parameter)
