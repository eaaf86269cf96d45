"""How does a model behave now: how likely are given answers, and does it refuse?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from early_warning_findings import Seen
from padding import padded
from transformers import PreTrainedModel

from graddiag.encoding import Encoded

PASS_ROWS = 10  # of a forward pass


@dataclass(frozen=True)
class Said:
    """One given answer: the mean log-probability of its tokens, nats/token, and whether it is what greedy decoding
    says, each of its tokens being the likeliest behind those before it."""

    log_probability: float
    greedy: bool


def said(model: PreTrainedModel, rows: Sequence[Encoded]) -> tuple[Said, ...]:
    """Each row's targets under the model, in evaluation mode. The head runs at these tokens only."""
    out = list[Said]()
    model.eval()
    with torch.no_grad():
        for start in range(0, len(rows), PASS_ROWS):
            batch = padded(rows[start : start + PASS_ROWS])
            labels = batch.pop("labels")[:, 1:]
            wanted = labels >= 0
            states = model.base_model(**batch, use_cache=False).last_hidden_state[:, :-1]
            logits = model.get_output_embeddings()(states[wanted])
            targets, sizes = labels[wanted], wanted.sum(dim=1).tolist()
            chosen = logits.log_softmax(dim=1).gather(1, targets[:, None])[:, 0].split(sizes)
            right = (logits.argmax(dim=1) == targets).split(sizes)
            out += [Said(c.mean().item(), bool(r.all())) for c, r in zip(chosen, right, strict=True)]
    model.train()
    return tuple(out)


def seen(model: PreTrainedModel, held_out: Mapping[str, tuple[Encoded, ...]], step: int) -> Seen:
    """Behaviour now, by kind; where both openings are among the kinds, also what they say together."""
    found = {kind: said(model, rows) for kind, rows in held_out.items()}
    answers = {kind: tuple(s.log_probability for s in some) for kind, some in found.items()}
    for after in ("", "_benign"):
        if f"refusing{after}" in found:
            n = held_out[f"refusing{after}"][0].n_targets  # of either opening, as log-odds are sums over tokens
            both = zip(answers[f"refusing{after}"], answers[f"complying{after}"], strict=True)
            answers[f"log_odds{after}"] = tuple(n * (refusing - complying) for refusing, complying in both)
            answers[f"refused{after}"] = tuple(float(s.greedy) for s in found[f"refusing{after}"])
    return Seen(step, answers)
