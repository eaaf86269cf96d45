"""Which token does a model expect next after the first tokens of an answer, and what do other models say of it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from graddiag.capture import untouched
from graddiag.decoding import texts_of
from graddiag.encoding import Encoded
from graddiag.errors import UsageError
from graddiag.forward import collate, input_device, memory_named
from graddiag.head import run
from graddiag.reading import Reader


@dataclass(frozen=True)
class NextToken:
    """One token at a position: its text, and under each model its log-probability, nats, and its rank, 1 the first."""

    id: int
    text: str
    log_probability: Mapping[str, float]
    rank: Mapping[str, int]


def next_log_probabilities(of: Reader, row: Encoded, *, at: int = 0) -> Float[np.ndarray, " v"]:
    """The log-probability, nats, of every token to be the one behind the prompt and `at` tokens of the answer.

    The model is left as it was. Raises UsageError where the answer has no token at that place.
    """
    if not 0 <= at < row.n_targets:
        raise UsageError(f"Row {row.id!r} has the target tokens 0 to {row.n_targets - 1}, and no token {at}.")
    seen = row.tokens[: row.start + at]
    batch = collate(
        [replace(row, tokens=np.append(seen, row.tokens[row.start + at]), start=len(seen))], input_device(of.model)
    )
    with untouched(of.model), torch.no_grad(), memory_named(batch):
        if of.split is None:
            logits = run(of.model, batch)[0, -1]
        else:
            last = run(of.split.decoder, batch)[0, -1]
            logits = of.split.head(last.to(of.split.head.weight.device))
        return np.asarray(logits.double().log_softmax(-1).cpu().numpy())


def next_token_table(
    log_probabilities: Mapping[str, Float[np.ndarray, " v"]], tokenizer: PreTrainedTokenizerBase, *, k: int = 10
) -> tuple[NextToken, ...]:
    """The k most probable tokens of each model side by side: every token that is among the first k of one of them.

    In the order of the best rank that a token has under any model, then of the first model. Ties go to the lower id.
    """
    order = {name: np.argsort(-p, kind="stable") for name, p in log_probabilities.items()}
    rank = {name: np.argsort(o, kind="stable") + 1 for name, o in order.items()}
    found = {int(i) for o in order.values() for i in o[:k]}
    texts = texts_of(found, tokenizer)
    rows = [
        NextToken(
            i,
            texts[i],
            {name: float(p[i]) for name, p in log_probabilities.items()},
            {name: int(r[i]) for name, r in rank.items()},
        )
        for i in found
    ]
    return tuple(sorted(rows, key=lambda t: (min(t.rank.values()), *t.rank.values())))
