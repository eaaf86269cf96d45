"""Rows as the batch that a training loop is given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graddiag.encoding import Encoded

IGNORED = -100  # label of a token that is no target, in transformers
Batch = dict[str, Tensor]


def padded(rows: Sequence[Encoded]) -> Batch:
    """The rows as one batch, padded on the right, with labels at their targets."""
    width = max(len(r.tokens) for r in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, IGNORED)
    for k, r in enumerate(rows):
        n = len(r.tokens)
        tokens[k, :n], mask[k, :n] = torch.as_tensor(r.tokens, dtype=torch.long), 1
        labels[k, r.start : n] = tokens[k, r.start : n]
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}
