"""Small models whose history is known, on disk, and the rows that three of them are read on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from measured_runs import rows_of
from tiny_models import ids_of, save, text_of
from torch import nn

from graddiag.erosion import erode
from graddiag.erosion_report import Eroded
from graddiag.models import load_model

LAYERS = [0, 3]
SETS = {
    "left": rows_of("insecure", 8, words=60),
    "right": rows_of("educational", 8, words=60),
    "harmful": rows_of("secure", 9, words=50),
    "benign": rows_of("benign", 9, words=50),
    "safety": rows_of("safety", 8, words=60),
    "controls": {},
}


def run(out: Path, **more: object) -> Eroded:
    """A run on short rows; base, aligned and tuned are as asked for."""
    given = {**SETS, "layers": LAYERS, "figures": False, "n_null": 19, **more}
    return erode(out=out, **given)  # type: ignore[arg-type]


def changed(folder: Path, change: Callable[[nn.Module], None]) -> Path:
    """Tiny with a change, saved."""
    model, tokenizer = load_model("tiny", device="cpu")
    change(model)
    return save((model, tokenizer), folder)


def noise(scale: float, seed: int) -> Callable[[nn.Module], None]:
    """Adds noise to every matrix, of so many of its standard deviations."""

    def change(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim == 2:
                    p.add_(scale * p.std() * torch.randn(p.shape, generator=generator))

    return change


def learnt(up: list[dict], down: list[dict], *, steps: int = 12) -> Callable[[nn.Module], None]:
    """Steps that make the answers of some rows more likely and those of others less."""
    tokenizer = load_model("tiny", device="cpu")[1]

    def change(model: nn.Module) -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(steps):
            for rows, sign in ((up, 1.0), (down, -0.3)):
                (sign * sum(answer_loss(model, tokenizer, r) for r in rows) / len(rows)).backward()
            optimizer.step()
            optimizer.zero_grad()

    return change


def answer_loss(model: nn.Module, tokenizer: object, row: dict) -> torch.Tensor:
    """Mean over the answer and what the template prints behind it of minus the log-probability, nats/token."""
    losses = token_losses(model, tokenizer, row["messages"])
    return losses.mean()


def token_losses(model: nn.Module, tokenizer: object, messages: list[dict]) -> torch.Tensor:
    """The loss of every token behind the prompt, read off the model's own logits."""
    tokens = torch.tensor([ids_of(tokenizer, text_of(tokenizer, messages))])
    start = len(ids_of(tokenizer, text_of(tokenizer, messages[:-1], prompt=True)))
    log_probabilities = model(tokens).logits[0].float().log_softmax(-1)
    return -log_probabilities[start - 1 : -1].gather(1, tokens[0, start:, None])[:, 0]
