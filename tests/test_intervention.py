"""Changes of the residual stream, against the same changes made by hand in the weights or after the last layer."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import relative
from measured_runs import rows_of
from test_reading import ROUNDED, hooks_of
from torch import nn

from graddiag.comparison import Comparison
from graddiag.data import read_set
from graddiag.encoding import encode
from graddiag.errors import DataError, UsageError
from graddiag.intervention import Intervention, intervened, random_like, read_intervened
from graddiag.models import load_model
from graddiag.reading import reader

RNG = np.random.default_rng(1)
BASIS = RNG.normal(size=(3, 32))
VECTOR = RNG.normal(size=32)


@pytest.fixture(scope="module")
def tiny():
    model, tokenizer = load_model("tiny", device="cpu")
    return model.double(), tokenizer


@pytest.fixture(scope="module")
def one(tiny):
    return encode(read_set(rows_of("insecure", 3, words=60), name="set"), tiny[1], max_length=1024)


def logits_of(model, row):
    with torch.no_grad():
        return model(torch.from_numpy(row.tokens.astype(np.int64))[None]).logits[0]


def test_adding_a_vector_is_a_bias_of_the_last_projection_of_the_layer(tiny, one):
    model = tiny[0]
    by_hand = copy.deepcopy(model)
    by_hand.model.layers[1].mlp.down_proj.bias = nn.Parameter(torch.from_numpy(VECTOR))
    with intervened(model, Intervention(add={1: VECTOR})):
        found = logits_of(model, one.rows[0])
    assert relative(found, logits_of(by_hand, one.rows[0])) < ROUNDED
    assert relative(found, logits_of(model, one.rows[0])) > 100 * ROUNDED


def test_removing_a_subspace_behind_the_last_layer_is_a_projection_before_the_norm(tiny, one):
    model, row = tiny[0], one.rows[0]
    before_norm = []
    handle = model.model.norm.register_forward_pre_hook(lambda _, args: before_norm.append(args[0]))
    logits_of(model, row)
    handle.remove()
    off = np.eye(32) - np.linalg.pinv(BASIS) @ BASIS
    with torch.no_grad():
        wanted = model.lm_head(model.model.norm(before_norm[0][0] @ torch.from_numpy(off)))
    with intervened(model, Intervention(remove={3: BASIS})):
        assert relative(logits_of(model, row), wanted) < ROUNDED


def test_nothing_is_left_of_the_subspace_where_it_was_removed_and_only_the_span_counts(tiny, one):
    of = reader(*tiny, positions=["answer", "last_prompt"])
    mixed = RNG.normal(size=(3, 3)) @ BASIS
    found, same_span = (read_intervened(of, one, Intervention(remove={1: b, 2: b})) for b in (BASIS, mixed))
    for layer in (1, 2):
        states = found.states[f"{layer}/answer"]
        assert np.abs(states @ BASIS.T).max() < ROUNDED * np.abs(states).max()
    assert np.abs(found.states["0/answer"] @ BASIS.T).max() > 0.1, "the layer below is as it was"
    for site, states in found.states.items():
        assert relative(same_span.states[site], states) < ROUNDED


def test_a_vector_is_added_after_the_subspace_was_removed(tiny, one):
    of = reader(*tiny, layers=[2], positions=["last_prompt"])
    inside = BASIS[0] * 3
    found = read_intervened(of, one, Intervention(remove={2: BASIS}, add={2: inside}))
    coordinates = found.states["2/last_prompt"] @ np.linalg.pinv(BASIS)
    assert np.allclose(coordinates, [3, 0, 0], atol=ROUNDED)


def test_a_table_of_a_changed_model_does_not_pass_for_one_of_the_model(tiny, one):
    of = reader(*tiny, positions=[])
    unchanged = read_intervened(of, one, Intervention())
    removed = read_intervened(of, one, Intervention(remove={1: BASIS}))
    other = read_intervened(of, one, Intervention(remove={1: BASIS + 1e-3}))
    assert "without 3 dimensions at layer 1" in removed.provenance.model
    assert len({t.provenance.weights for t in (unchanged, removed, other)}) == 3
    comparison = Comparison(removed, unchanged)
    assert comparison.differs == ("model",)
    assert comparison.identical.all()


def test_the_model_is_as_it_was_afterwards_also_after_an_error(tiny, one):
    model, row = tiny[0], one.rows[0]
    hooks, before = hooks_of(model), logits_of(model, row)
    with pytest.raises(ArithmeticError), intervened(model, Intervention(add={0: VECTOR})):
        raise ArithmeticError
    assert hooks_of(model) == hooks
    assert torch.equal(logits_of(model, row), before)
    with intervened(model, Intervention()):
        assert torch.equal(logits_of(model, row), before)


def test_the_random_control_has_the_sizes_and_lengths_of_what_it_is_a_control_for():
    wanted = Intervention(remove={1: BASIS, 4: BASIS[:1]}, add={2: VECTOR})
    control, again, other = (random_like(wanted, seed=s) for s in (7, 7, 8))
    assert {k: x.shape for k, x in control.remove.items()} == {1: (3, 32), 4: (1, 32)}
    assert np.linalg.norm(control.add[2]) == pytest.approx(np.linalg.norm(VECTOR))
    assert control.digest == again.digest != other.digest


def test_a_random_subspace_holds_as_much_of_a_vector_as_its_share_of_the_dimensions():
    """E ||P v||^2 / ||v||^2 = k / d for a uniform subspace; 400 draws of a Beta(k/2, (d-k)/2) share."""
    shares = []
    for seed in range(400):
        q = np.linalg.qr(random_like(Intervention(remove={0: BASIS}), seed=seed).remove[0].T)[0]
        shares.append(np.square(VECTOR @ q).sum() / np.square(VECTOR).sum())
    k, d = BASIS.shape
    sd = np.sqrt(k * (d - k) / (d * d * (d / 2 + 1)) * 0.5) * 2**0.5
    assert np.mean(shares) == pytest.approx(k / d, abs=4 * sd / np.sqrt(400))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda: Intervention(remove={4: BASIS}), UsageError, r"There is no layer 4. .* 0 to 3"),
        (lambda: Intervention(remove={0: BASIS[:, :5]}), DataError, r"layer 0 have 5 numbers, .* states 32"),
        (lambda: Intervention(add={2: VECTOR[:7]}), DataError, r"layer 2 have 7 numbers, .* states 32"),
        (lambda: Intervention(remove={0: BASIS[[0, 0]]}), DataError, r"The 2 vectors for layer 0 span fewer than 2"),
        (lambda: Intervention(remove={0: np.zeros((1, 32))}), DataError, r"span fewer than 1"),
        (lambda: Intervention(remove={0: RNG.normal(size=(33, 32))}), DataError, r"span fewer than 33"),
        (lambda: Intervention(remove={0: BASIS[:0]}), DataError, r"k at least 1; layer 0 has \[0, 32\]"),
        (lambda: Intervention(add={0: VECTOR * np.nan}), DataError, r"layer 0 are not finite"),
    ],
)
def test_what_cannot_be_removed_or_added_is_refused(tiny, change, error, message):
    with pytest.raises(error, match=message), intervened(tiny[0], change()):
        pytest.fail("nothing may run")
