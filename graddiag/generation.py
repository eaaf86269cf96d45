"""What does a model answer to given prompts? Samples to look at: nothing here judges them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graddiag.capture import untouched
from graddiag.closing import closing_tokens
from graddiag.encoding import Encoded
from graddiag.errors import UsageError
from graddiag.forward import input_device
from graddiag.head import inner_model
from graddiag.signals import digest_of

NEW_TOKENS = 128  # enough to see whether a request is refused


@dataclass(frozen=True)
class Sample:
    """One generated answer to the prompt of the row `id`: its tokens, and its text without the end of turn.

    `ended` says whether the model ended its turn within the tokens it had.
    """

    id: str
    number: int
    tokens: tuple[int, ...]
    text: str
    ended: bool


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    *,
    n: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = NEW_TOKENS,
    seed: int = 0,
) -> tuple[Sample, ...]:
    """`n` answers to the prompt of each row, whose own answer is not looked at; greedy with a temperature of 0.

    Drawn from the model's own distribution at the temperature: no top-k, no top-p, no penalty, whatever its generation
    config says. Each row has a stream of random numbers of its own, from `seed` and its id, so that its answers do not
    depend on the other rows. The model and torch's generators are left as they were. Raises UsageError for a number
    that cannot be meant.
    """
    if n < 1 or max_new_tokens < 1 or temperature < 0:
        raise UsageError(
            f"{n} samples of {max_new_tokens} tokens at temperature {temperature}: give at least 1 sample, 1 token, "
            "and a temperature of 0 or above."
        )
    if n > 1 and temperature == 0:
        raise UsageError(f"{n} greedy samples would all be the same: give a temperature above 0, or ask for 1.")
    end = _end_tokens(tokenizer)
    out = []
    with untouched(model), torch.no_grad():
        for row in rows:
            rng = np.random.default_rng([seed, int(digest_of([row.id]), 16)])
            answers = _answers(model, row, end, rng, n=n, temperature=temperature, most=max_new_tokens)
            out += [_sample(row.id, number, tokens, end, tokenizer) for number, tokens in enumerate(answers)]
    return tuple(out)


def _end_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a turn: the first that the template prints behind an answer, and the tokenizer's own."""
    end = {int(t) for t in closing_tokens(tokenizer)[:1]}
    return frozenset(end | ({tokenizer.eos_token_id} if isinstance(tokenizer.eos_token_id, int) else set()))


def _answers(
    model: PreTrainedModel,
    row: Encoded,
    end: frozenset[int],
    rng: np.random.Generator,
    *,
    n: int,
    temperature: float,
    most: int,
) -> list[list[int]]:
    """Tokens of each answer, with the one that ended it, if one did."""
    prompt = torch.from_numpy(row.tokens[: row.start].astype(np.int64))
    inputs, cache = prompt.expand(n, -1).to(input_device(model)), None
    keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(inner_model(model).forward).parameters else {}
    answers: list[list[int]] = [[] for _ in range(n)]
    for _ in range(most):
        result = model(input_ids=inputs, past_key_values=cache, use_cache=True, return_dict=True, **keep)
        cache = result.past_key_values
        new = _drawn(result.logits[:, -1], temperature, rng)
        for answer, token in zip(answers, new, strict=True):
            if not (answer and answer[-1] in end):
                answer.append(token)
        if all(a[-1] in end for a in answers):
            break
        inputs = torch.tensor(new, device=inputs.device)[:, None]
    return answers


def _drawn(logits: Float[Tensor, "n v"], temperature: float, rng: np.random.Generator) -> list[int]:
    """A token for each row; in double precision off the device, so that a seed means the same on every device."""
    wide = logits.double().cpu()
    if temperature == 0:
        return [int(i) for i in wide.argmax(-1)]
    sums = (wide / temperature).softmax(-1).cumsum(-1).numpy()
    return [int(np.searchsorted(s, rng.random() * s[-1], side="right")) for s in sums]


def _sample(id: str, number: int, tokens: list[int], end: frozenset[int], tokenizer: PreTrainedTokenizerBase) -> Sample:
    stop = next((k for k, t in enumerate(tokens) if t in end), None)
    kept = tokens[:stop]
    text = tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return Sample(id, number, tuple(kept), str(text), stop is not None)
