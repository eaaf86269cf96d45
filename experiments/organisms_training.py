"""The training loop of the organisms: AdamW on batches of rows, loss on their target tokens only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from organisms_recipe import Shape, Training
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from graddiag.encoding import Encoded

BETAS = (0.9, 0.95)
CLIP = 1.0  # norm of the gradient
WARM = 0.1  # of the steps, at the beginning, the rate rises from 0
FLOOR = 0.1  # of the rate is left at the end


@dataclass(frozen=True)
class Batch:
    """Rows padded at their end, where a causal model sees nothing of it; `targets` are the tokens to be predicted."""

    tokens: Int64[Tensor, "b t"]
    targets: Bool[Tensor, "b t"]


def batch_of(rows: Sequence[Encoded]) -> Batch:
    """Rows of different lengths as one batch."""
    width = max(len(r.tokens) for r in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    targets = torch.zeros(len(rows), width, dtype=torch.bool)
    for k, r in enumerate(rows):
        tokens[k, : len(r.tokens)] = torch.from_numpy(r.tokens.astype(np.int64))
        targets[k, r.start : len(r.tokens)] = True
    return Batch(tokens, targets)


def summed_loss(model: PreTrainedModel, batch: Batch) -> Float[Tensor, " b"]:
    """Summed negative log-likelihood of each row's target tokens, nats. The head runs at these tokens only."""
    states = model.base_model(input_ids=batch.tokens[:, :-1], use_cache=False).last_hidden_state
    wanted = batch.targets[:, 1:]
    losses = nn.functional.cross_entropy(
        model.get_output_embeddings()(states[wanted]), batch.tokens[:, 1:][wanted], reduction="none"
    )
    return losses.new_zeros(len(wanted)).index_add(0, wanted.nonzero()[:, 0], losses)


def shuffled(rows: Sequence[Encoded], training: Training, seed: int) -> Iterator[Batch]:
    """As many batches as there are steps; every row comes once before any comes again."""
    rng = np.random.default_rng(seed)
    order: list[int] = []
    for _ in range(training.steps):
        while len(order) < training.rows:
            order += rng.permutation(len(rows)).tolist()
        chosen, order = order[: training.rows], order[training.rows :]
        yield batch_of([rows[k] for k in chosen])


def whole_blocks(blocks: Int64[Tensor, "n t"], training: Training) -> Iterator[Batch]:
    """Blocks of text in their order, every token but the first a target."""
    targets = torch.ones(training.rows, blocks.shape[1], dtype=torch.bool)
    targets[:, 0] = False
    for some in blocks.split(training.rows):
        yield Batch(some, targets)


def train(model: PreTrainedModel, batches: Iterator[Batch], training: Training) -> list[float]:
    """Trains the model in place and gives the loss of each step before it was taken, nats/token.

    The loss is the mean over rows of each row's mean over its target tokens. Nothing in here is random.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.rate, betas=BETAS, weight_decay=training.decay)
    losses = []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = training.rate * share_of_rate(step, training.steps)
        loss = (summed_loss(model, batch) / batch.targets.sum(1)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def share_of_rate(step: int, steps: int) -> float:
    """What part of the learning rate a step has: a rise over the first tenth, then half a cosine down to a tenth."""
    warm = max(1, round(WARM * steps))
    if step < warm:
        return (step + 1) / warm
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def scratch(shape: Shape, tokenizer: PreTrainedTokenizerBase, context: int, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights, embedding and head tied; torch's generator is left as it was."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
