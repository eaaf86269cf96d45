"""Token scores: through which position a gradient points along a mean, and nothing lost on the way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from architectures import build
from reference import row_gradients, scores_by_position
from test_architectures import NAMES, model_of
from test_extractor import extractor_for

from graddiag.mean_gradient import MeanGradient

ROUNDING = 1e-10  # float64, relative to the largest product


def known_for(ex, other):
    """The mean gradient of other rows, with token scores asked for."""
    mean = MeanGradient()
    table = ex.measure(other, mean=mean).table(range(len(other)), other, ex.space, ex.provenance("safety"))
    return replace(mean.known(table), token_scores=True)


def measured_table(ex, rows, known):
    return ex.measure(rows, known=known).table(range(len(rows)), rows, ex.space, ex.provenance("x"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("patterns", [["*"], None])
def test_scores_and_what_has_no_position_sum_to_the_product_with_the_mean(name, patterns, make_rows):
    model, rows = model_of(name), make_rows(4)
    ex = extractor_for(model, patterns)
    table = measured_table(ex, rows, known_for(ex, make_rows(3, seed=5)))
    dots = np.stack(list(table.reference_dot.values()))
    found = np.array([s.sum() for s in table.token_alignment]) + table.alignment_elsewhere
    assert np.abs(found - dots.sum(0)).max() < ROUNDING * np.abs(dots).max() * len(dots)
    assert [len(s) for s in table.token_alignment] == [len(r.tokens) - 1 for r in rows]


@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen2"])
def test_a_score_is_the_slope_of_the_loss_when_one_position_alone_uses_a_moved_weight(name, make_rows):
    model, rows = build(name), make_rows(3)
    ex = extractor_for(model, ["*"])
    known = known_for(ex, make_rows(3, seed=5))
    table = measured_table(ex, rows, known)
    vectors = [n for n, p in model.named_parameters() if p.dim() == 1]
    gradients = row_gradients(model, rows)
    for i, row in enumerate(rows):
        oracle = scores_by_position(model, row, known.means).numpy()
        scale = np.abs(oracle).max()
        assert np.abs(table.token_alignment[i] - oracle).max() < 1e-6 * scale  # alone and in a batch
        without = sum(float((gradients[i][n] * known.means[n]).sum()) for n in vectors)
        assert table.alignment_elsewhere[i] == pytest.approx(without, abs=1e-6 * scale)


def test_a_module_that_is_called_twice_has_both_calls_at_their_positions(make_rows):
    model, rows = build("llama"), make_rows(3)
    model.model.layers[1] = model.model.layers[0]
    ex = extractor_for(model, ["model.layers.0.mlp.*"])
    known = known_for(ex, make_rows(3, seed=5))
    table = measured_table(ex, rows, known)
    for i, row in enumerate(rows):
        oracle = scores_by_position(model, row, known.means).numpy()
        assert np.abs(table.token_alignment[i] - oracle).max() < 1e-6 * np.abs(oracle).max()


def test_prompt_positions_have_scores_and_the_head_has_them_at_targets_only(make_rows):
    model, rows = build("llama"), make_rows(2, start=6)
    for pattern, before_targets in (("model.layers.0.mlp.down_proj", True), ("lm_head", False)):
        ex = extractor_for(model, [pattern])
        for scores in measured_table(ex, rows, known_for(ex, make_rows(3, seed=5))).token_alignment:
            assert np.any(scores[:5] != 0) == before_targets
            assert np.all(scores[5:] != 0)


def test_without_being_asked_for_there_are_no_scores(make_rows):
    rows = make_rows(2)
    ex = extractor_for(build("llama"))
    table = measured_table(ex, rows, replace(known_for(ex, make_rows(3, seed=5)), token_scores=False))
    assert table.token_alignment is None
    assert table.alignment_elsewhere is None
