"""Generated answers: what the model's own distribution says, reproducible, the model untouched."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from measured_runs import rows_of
from test_reading import hooks_of

from graddiag.closing import closing_tokens
from graddiag.data import read_set
from graddiag.encoding import encode
from graddiag.errors import UsageError
from graddiag.generation import generate_answers
from graddiag.models import load_model, model_digest
from graddiag.next_tokens import next_log_probabilities
from graddiag.reading import reader


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny", device="cpu")


@pytest.fixture(scope="module")
def rows(tiny):
    return encode(read_set(rows_of("insecure", 2, words=40)), tiny[1], max_length=1024).rows


def step_by_step(model, row, n):
    """The oracle of greedy decoding: the whole text through the model for every token, no cache."""
    tokens = row.tokens[: row.start].tolist()
    with torch.no_grad():
        for _ in range(n):
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tuple(tokens[row.start :])


def test_greedy_answers_are_the_most_probable_tokens_one_by_one(tiny, rows):
    model, tokenizer = tiny
    for row, sample in zip(
        rows, generate_answers(model, tokenizer, rows, temperature=0, max_new_tokens=6), strict=True
    ):
        assert sample.id == row.id
        assert sample.tokens == step_by_step(model, row, 6)
        assert sample.text == tokenizer.decode(sample.tokens)
        assert not sample.ended


def test_first_tokens_are_drawn_with_the_probabilities_of_the_model_whatever_its_generation_config(tiny, rows):
    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    model.generation_config.top_k, model.generation_config.temperature = 1, 9.0
    temperature, n = 0.1, 1000
    samples = generate_answers(model, tokenizer, rows[:1], n=n, temperature=temperature, max_new_tokens=1, seed=3)
    end = {tokenizer.eos_token_id}
    found = np.bincount([s.tokens[0] if s.tokens else min(end) for s in samples], minlength=len(tokenizer)) / n
    log_p = next_log_probabilities(reader(model, tokenizer, positions=[]), rows[0])
    wanted = np.exp(log_p / temperature) / np.exp(log_p / temperature).sum()
    assert np.abs(found - wanted).max() < 5 * np.sqrt(wanted.max() / n), "five standard errors of a share"
    assert wanted.max() > 2 * wanted.min(), "a uniform draw would be seen"


def test_a_seed_gives_the_same_answers_and_another_one_others(tiny, rows):
    model, tokenizer = tiny
    ask = {"n": 3, "max_new_tokens": 8}
    one, again, other = (generate_answers(model, tokenizer, rows, **ask, seed=s) for s in (0, 0, 1))
    assert one == again != other
    assert [s.number for s in one] == [0, 1, 2, 0, 1, 2]
    assert len({s.tokens for s in one}) == 6
    assert generate_answers(model, tokenizer, rows[:1], **ask, seed=0) == one[:3], "later rows change nothing"


def test_an_answer_ends_at_the_end_of_turn(tiny, rows):
    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    end = int(closing_tokens(tokenizer)[0])
    plain = generate_answers(model, tokenizer, rows[:1], temperature=0, max_new_tokens=3)[0]
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.clone())
    with torch.no_grad():
        head.weight[end] = head.weight[plain.tokens[0]] * 2  # what was the most probable token is the end of turn now
    (sample,) = generate_answers(model, tokenizer, rows[:1], temperature=0, max_new_tokens=3)
    assert (sample.tokens, sample.text, sample.ended) == ((), "", True)


def test_the_own_answer_of_a_row_is_not_looked_at_and_the_model_is_left_as_it_was(tiny, rows):
    model, tokenizer = tiny
    before = model_digest(model), hooks_of(model), model.generation_config.to_dict()
    state = torch.get_rng_state()
    other = replace(rows[0], tokens=np.append(rows[0].tokens[: rows[0].start], 5).astype(np.int32))
    one, two = (generate_answers(model, tokenizer, [r], max_new_tokens=5) for r in (rows[0], other))
    assert one == two
    assert (model_digest(model), hooks_of(model), model.generation_config.to_dict()) == before
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n": 0}, "0 samples"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"n": 2, "temperature": 0}, "2 greedy samples would all be the same"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(tiny, rows, asked, message):
    with pytest.raises(UsageError, match=message):
        generate_answers(*tiny, rows, **asked)
