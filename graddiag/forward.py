"""Rows as a padded batch, on their way into a model, and what to do where memory does not hold it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from graddiag.encoding import Encoded
from graddiag.errors import DataError, ResourceError
from graddiag.head import Batch, inner_model


def check_in_memory(model: nn.Module) -> None:
    """Raises DataError where weights are offloaded."""
    away = [n for n, p in model.named_parameters() if p.device.type == "meta"]
    if away:
        raise DataError(
            f"{len(away)} parameters, the first is {away[0]!r}, are not in memory (offloaded, or on the meta device). "
            "Load the model onto devices only: a smaller --dtype, or a device_map without 'cpu' and 'disk' offloading."
        )


def input_device(model: nn.Module) -> torch.device:
    """The device that token ids must be on."""
    device: torch.device = next(inner_model(model).get_input_embeddings().parameters()).device
    return device


def collate(rows: Sequence[Encoded], device: torch.device, *, whole: bool = False) -> Batch:
    """The rows as one batch, padded on the right.

    The last token of a row predicts nothing and is left out; with `whole` it is there, as the state at it is asked for.
    """
    lengths = tuple(len(r.tokens) - (0 if whole else 1) for r in rows)
    tokens = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    targets = torch.full_like(tokens, -100)
    for k, r in enumerate(rows):
        row = torch.from_numpy(r.tokens.astype(np.int64))
        tokens[k, : lengths[k]] = row[: lengths[k]]
        targets[k, r.start - 1 : len(row) - 1] = row[r.start :]
    return Batch(tokens.to(device), targets.to(device), lengths)


def shortest(batch: Batch) -> Batch:
    """The shortest row of the batch alone."""
    k = min(range(len(batch.lengths)), key=batch.lengths.__getitem__)
    one, cut = slice(k, k + 1), slice(0, batch.lengths[k])
    return Batch(batch.tokens[one, cut], batch.targets[one, cut], (batch.lengths[k],))


@contextmanager
def memory_named(batch: Batch) -> Iterator[None]:
    """Turns running out of memory into an error that names the batch and what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(error):
            raise
        b, t = batch.tokens.shape
        raise ResourceError(
            f"Memory ran out on a batch of {b} rows of {t} tokens. Use a smaller --batch-tokens or --max-length."
        ) from error
