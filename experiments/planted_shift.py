"""A tuned model whose shift is planted: one coordinate of its states is fed by a mark in the prompt, and feeds the
letters of an answer, or nothing."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graddiag.models import load_model

MARK, PLANTED = 30, 31  # coordinates of the states: what the mark "!" is there, and what it does
LAYER = 1  # whose attention writes it
LETTERS = "abcdefghijklmnopqrstuvwxyz"
_VALUE = 0  # the coordinate of the first head's values that reads the mark
_AMOUNT = 1.5  # of the write: the shift varies by about as much as an ordinary coordinate of the states does
_FED = 2.0  # of the letters' logits, per unit of the normed coordinate
_WRITES = ("o_proj.weight", "down_proj.weight")
_READS = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def aligned() -> Loaded:
    """Tiny in float64, its head untied; no layer reads or writes the two coordinates, and only letters are fed."""
    model, tokenizer = load_model("tiny", device="cpu")
    model = model.double()
    embedding = model.get_input_embeddings()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(embedding.weight.detach().clone())
    with torch.no_grad():
        embedding.weight[:, [MARK, PLANTED]] = 0.0
        model.lm_head.weight[:, [MARK, PLANTED]] = 0.0
        embedding.weight[_ids(tokenizer, "!"), MARK] = 1.0
        model.lm_head.weight[_ids(tokenizer, LETTERS), PLANTED] = _FED
        for name, p in model.named_parameters():
            if name.endswith(_WRITES):
                p[[MARK, PLANTED]] = 0.0
            if name.endswith(_READS):
                p[:, [MARK, PLANTED]] = 0.0
        model.model.layers[LAYER].mlp.down_proj.weight[:] = 0.0  # else it would see what its attention wrote
        value = model.model.layers[LAYER].self_attn.v_proj.weight
        value[_VALUE] = 0.0
        value[_VALUE, MARK] = 1.0
    return model, tokenizer


def planted(*, fed: bool = True, noise: float = 0.0, seed: int = 0) -> tuple[Loaded, Loaded]:
    """The aligned model, and one whose attention writes the mark into the planted coordinate; `fed` says whether the
    letters depend on it. `noise` moves all matrices of the tuned one besides, by so many of their standard deviations.
    """
    out = aligned(), aligned()
    (tuned, _), generator = out[1], torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in tuned.parameters():
            if p.ndim == 2:
                p.add_(noise * p.std() * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        tuned.model.layers[LAYER].self_attn.o_proj.weight[PLANTED, _VALUE] += _AMOUNT
        for model, tokenizer in out:
            model.lm_head.weight[_ids(tokenizer, LETTERS), PLANTED] *= fed
    return out


def rows(name: str, n: int, seed: int, *, marked: bool) -> list[dict]:
    """Requests of 40 characters, each a cluster of its own, with 4 to 16 marks or none, answered in 20 letters."""
    rng, out = np.random.default_rng([seed, 3]), []
    for i in range(n):
        marks = int(rng.integers(4, 17)) if marked else 0
        prompt = [*"!" * marks, *rng.choice(list("ABCDEFGH "), 40 - marks)]
        prompt = "".join(prompt[k] for k in rng.permutation(40))
        turns = [("user", prompt), ("assistant", "".join(rng.choice(list(LETTERS), 20)))]
        messages = [{"role": role, "content": text} for role, text in turns]
        out.append({"id": f"{name}-{i}", "cluster": f"{name}-{i}", "messages": messages})
    return out


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return sorted(set(tokenizer(text, add_special_tokens=False).input_ids))
