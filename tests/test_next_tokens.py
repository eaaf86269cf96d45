"""The next token at a position, and the tables of several models side by side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import relative
from measured_runs import rows_of
from test_reading import ROUNDED

from graddiag.data import read_set
from graddiag.encoding import encode
from graddiag.errors import UsageError
from graddiag.models import load_model
from graddiag.next_tokens import next_log_probabilities, next_token_table
from graddiag.reading import reader


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny", device="cpu")


@pytest.fixture(scope="module")
def row(tiny):
    return encode(read_set(rows_of("insecure", 1)), tiny[1], max_length=1024).rows[0]


@pytest.mark.parametrize("at", [0, 4, -1])
@pytest.mark.parametrize("split", [True, False])
def test_log_probabilities_are_those_of_the_model_itself_and_give_the_token_loss(tiny, row, at, split):
    model, tokenizer = tiny
    at = at % row.n_targets
    of = reader(model, tokenizer, positions=[])
    of = of if split else replace(of, split=None)
    found = next_log_probabilities(of, row, at=at)
    with torch.no_grad():
        logits = model(torch.from_numpy(row.tokens.astype(np.int64))[None]).logits[0, row.start - 1 + at]
    assert relative(found, logits.double().log_softmax(-1)) < ROUNDED
    loss = of.read([row]).token_loss[0][at]
    assert found[row.tokens[row.start + at]] == pytest.approx(-loss, rel=ROUNDED)


def test_a_place_behind_the_answer_is_refused(tiny, row):
    with pytest.raises(UsageError, match=rf"target tokens 0 to {row.n_targets - 1}, and no token {row.n_targets}"):
        next_log_probabilities(reader(*tiny, positions=[]), row, at=row.n_targets)


def test_the_first_tokens_of_every_model_are_in_the_table_with_what_the_others_say_of_them(tiny):
    rng = np.random.default_rng(0)
    size = len(tiny[1])
    of = {name: np.log(rng.dirichlet(np.ones(size))) for name in ("base", "tuned")}
    table = next_token_table(of, tiny[1], k=5)
    firsts = {name: sorted(range(size), key=lambda i, p=p: -p[i])[:5] for name, p in of.items()}
    assert {t.id for t in table} == {i for ids in firsts.values() for i in ids}
    assert table[0].id == firsts["base"][0]
    for token in table:
        assert token.text == tiny[1].decode([token.id])
        for name, p in of.items():
            assert token.log_probability[name] == p[token.id]
            assert token.rank[name] == 1 + sum(x > p[token.id] for x in p)
