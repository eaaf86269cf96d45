"""Hidden states and losses of given rows, against what transformers says of each row alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from architectures import build, configs
from conftest import relative
from measured_runs import rows_of
from test_signals import same

from graddiag.closing import answer_length, closing_tokens
from graddiag.data import read_set
from graddiag.decoder_layers import chosen_layers
from graddiag.encoding import Encoded, encode
from graddiag.errors import DataError, UsageError
from graddiag.head import split_model
from graddiag.models import load_model, model_digest
from graddiag.reading import Reader, read_states, span
from graddiag.signals import ONLY_READ, Provenance, Signals, Space
from graddiag.sites import sites_of

POSITIONS = ("first:3", "first:500", "answer", "last_answer", "last_prompt")
NONE = np.zeros(0, np.int32)
ROUNDED = 1e-5  # relative: transformers computes norms and softmax in float32 whatever the model is


@pytest.fixture(scope="module")
def tiny():
    model, tokenizer = load_model("tiny", device="cpu")
    return model.double(), tokenizer


def bare_reader(model, positions=POSITIONS):
    layers = chosen_layers(model, None)
    states = tuple(s.name for s in sites_of(list(layers), positions))
    space = Space("", "", "answer", 64, (), ONLY_READ, 0, 0, "", "float64", states)
    return Reader(model, split_model(model), NONE, layers, space, Provenance("", "", "", ""))


def by_transformers(model, row: Encoded):
    """Hidden states after each layer but the last, whose transformers shows behind the final norm only, [layer, t, d],
    and the token losses."""
    tokens = torch.from_numpy(row.tokens.astype(np.int64))[None]
    with torch.no_grad():
        out = model(tokens, output_hidden_states=True, use_cache=False)
    log_p = out.logits[0, :-1].double().log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    return torch.stack(out.hidden_states[1:-1])[:, 0].numpy(), -log_p[row.start - 1 :].numpy(), out.hidden_states[-1][0]


def hooks_of(model):
    return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]


def mean_at(states, row: Encoded, n: int, position: str):
    """The oracle of a position: plain means over plain slices; `n` are the tokens of the answer."""
    answer = states[row.start : row.start + n]
    if position.startswith("first:"):
        return answer[: int(position[6:])].mean(0)
    return {"answer": answer.mean(0), "last_answer": answer[-1], "last_prompt": states[row.start - 1]}[position]


@pytest.mark.parametrize("name", sorted(configs()))
def test_states_and_losses_are_those_that_transformers_gives_each_row_alone(name, make_rows):
    model = build(name)
    rows = make_rows(5)
    found = bare_reader(model).read(rows)
    for i, row in enumerate(rows):
        wanted, losses, _ = by_transformers(model, row)
        assert relative(found.token_loss[i], losses) < ROUNDED
        for layer, states in enumerate(wanted):
            for position in POSITIONS:
                mean = mean_at(states, row, row.n_targets, position)
                assert relative(found.states[f"{layer}/{position}"][i], mean) < ROUNDED, (layer, position)


def test_the_states_of_the_last_layer_are_those_before_the_final_norm(make_llama, make_rows):
    model, rows = make_llama(), make_rows(4)
    found = bare_reader(model, ("last_answer", "last_prompt")).read(rows)
    for i, row in enumerate(rows):
        behind_norm = by_transformers(model, row)[2]
        for position, at in (("last_answer", -1), ("last_prompt", row.start - 1)):
            state = torch.from_numpy(found.states[f"2/{position}"][i])
            with torch.no_grad():
                assert relative(model.model.norm(state), behind_norm[at]) < ROUNDED


def test_a_row_has_the_same_states_alone_and_in_a_batch(make_llama, make_rows):
    reader, rows = bare_reader(make_llama()), make_rows(6)
    together = reader.read(rows)
    for i, row in enumerate(rows):
        alone = reader.read([row])
        assert relative(together.token_loss[i], alone.token_loss[0]) < ROUNDED
        for site, states in together.states.items():
            assert relative(states[i], alone.states[site][0]) < ROUNDED, site


def test_what_the_template_prints_behind_an_answer_is_in_the_loss_and_in_no_state(tiny):
    model, tokenizer = tiny
    examples = rows_of("insecure", 3, words=30)
    table = read_states(model, tokenizer, examples, positions=POSITIONS)
    rows = encode(read_set(examples), tokenizer, max_length=1024).rows
    for i, (row, example) in enumerate(zip(rows, examples, strict=True)):
        answer = tokenizer(example["messages"][-1]["content"])["input_ids"]
        assert row.tokens[row.start : row.start + len(answer)].tolist() == answer
        assert row.n_targets == len(answer) + 2, "the end of turn and a newline"
        wanted, losses, _ = by_transformers(model, row)
        assert relative(table.token_loss[i], losses) < ROUNDED
        for layer, states in enumerate(wanted):
            for position in POSITIONS:
                mean = mean_at(states, row, len(answer), position)
                assert relative(table.states[f"{layer}/{position}"][i], mean) < ROUNDED, (layer, position)


def test_an_answer_that_was_cut_ends_where_it_was_cut(tiny):
    _, tokenizer = tiny
    examples = read_set(rows_of("insecure", 1, words=30))
    whole = encode(examples, tokenizer, max_length=1024).rows[0]
    closing = closing_tokens(tokenizer)
    n = answer_length(whole, closing)
    for cut in range(1, 5):
        row = encode(examples, tokenizer, max_length=len(whole.tokens) - cut).rows[0]
        assert answer_length(row, closing) == min(n, row.n_targets), cut
        assert span(row, closing, "last_answer") == (
            row.start + min(n, row.n_targets) - 1,
            row.start + min(n, row.n_targets),
        )


def test_a_closing_that_is_not_found_counts_as_answer_and_a_reader_is_told(tiny):
    model, tokenizer = tiny
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
        "{{ '!' if m['content'] == 'graddiag' else '?' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.warns(UserWarning, match="in 2 of 2 rows the end of turn cannot be told apart from the answer"):
        table = read_states(model, tokenizer, rows_of("insecure", 2), layers=[0], positions=["answer", "first:9999"])
    assert np.array_equal(table.states["0/answer"], table.states["0/first:9999"])


def test_batches_and_their_size_change_nothing_and_rows_come_back_in_the_order_given(tiny):
    model, tokenizer = tiny
    examples = rows_of("insecure", 6)
    one = read_states(model, tokenizer, examples, layers=[1, 3], positions=POSITIONS, name="set")
    small = read_states(model, tokenizer, examples, layers=[3, 1], positions=POSITIONS, name="set", batch_tokens=1)
    assert one.ids == small.ids == tuple(e["id"] for e in examples)
    assert one.space == small.space
    for site in one.states:
        assert relative(small.states[site], one.states[site]) < ROUNDED
    parts = [one.take([0, 1]), one.take([2, 3, 4, 5])]
    assert same(Signals.concat(parts), one)


def test_the_model_is_left_as_it_was(tiny):
    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    model.train()
    for p in list(model.parameters())[::2]:
        p.requires_grad_(False)
    hooks = hooks_of(model)
    before = model_digest(model), [p.requires_grad for p in model.parameters()], torch.get_rng_state()
    read_states(model, tokenizer, rows_of("insecure", 2))
    after = model_digest(model), [p.requires_grad for p in model.parameters()], torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert all(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert hooks_of(model) == hooks


def test_hooks_are_gone_after_an_error(tiny, monkeypatch):
    model, tokenizer = tiny

    def broken(*_, **__):
        raise ArithmeticError

    hooks = hooks_of(model)
    monkeypatch.setattr(model.model.layers[2], "forward", broken)
    with pytest.raises(ArithmeticError):
        read_states(model, tokenizer, rows_of("insecure", 1))
    assert hooks_of(model) == hooks


def test_states_of_a_float32_model_are_float32_and_only_what_is_asked_for_is_there(tiny):
    model, tokenizer = load_model("tiny", device="cpu")
    table = read_states(model, tokenizer, rows_of("insecure", 2), layers=[2], positions=["last_prompt"])
    assert list(table.states) == ["2/last_prompt"]
    assert table.states["2/last_prompt"].dtype == np.float32
    assert (table.blocks, table.norms, table.gradients) == ((), {}, {})
    losses_alone = read_states(model, tokenizer, rows_of("insecure", 2), positions=[])
    assert losses_alone.space.states == ()
    assert np.array_equal(losses_alone.loss, table.loss)


def test_a_row_whose_states_are_not_finite_is_counted_and_refused(tiny):
    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = np.inf
    with pytest.raises(DataError, match="2 of 2 rows have a loss or gradient that is not finite"):
        read_states(model, tokenizer, rows_of("insecure", 2))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"layers": [0, 4]}, r"There is no layer 4. This model has the decoder layers 0 to 3"),
        ({"layers": []}, r"No layer is chosen"),
        ({"positions": ["first"]}, r"There is no position 'first'. Allowed: first:N"),
        ({"max_length": 5000}, r"--max-length 5000"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_runs(tiny, asked, message):
    model, tokenizer = tiny
    with pytest.raises(UsageError, match=message):
        read_states(model, tokenizer, rows_of("insecure", 1), **asked)
