"""Models with tokenizers of their own: rows go by the pieces of their answers, or are refused before anything runs."""

from __future__ import annotations

import math

import pytest
import torch
from three_tiny import SETS, changed, noise, run
from tiny_models import change_weight, save

from graddiag.answer_tokens import check_same_answers
from graddiag.data import read_set
from graddiag.errors import DataError
from graddiag.model_set import model_set
from graddiag.models import load_model

MORE = 8  # tokens that the larger vocabulary has besides


def tuned(folder, *, padded):
    """Tiny with another weight; with `padded` also with a padding token, and embeddings, as training may add them."""
    model, tokenizer = load_model("tiny", device="cpu")
    change_weight(model)
    if padded:
        tokenizer.add_special_tokens({"pad_token": "<|PAD|>"})
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(len(tokenizer) + MORE, mean_resizing=False)
        with torch.no_grad():  # no token of a row is likelier or less likely for it
            model.get_input_embeddings().weight[-MORE - 1 :] = 0
            model.get_output_embeddings().weight[-MORE - 1 :] = 0
    return save((model, tokenizer), folder)


def other_vocabulary(folder, old, new):
    """Tiny whose tokenizer has another token in the place of one."""
    model, tokenizer = load_model("tiny", device="cpu")
    save((model, tokenizer), folder)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace(f'"{old}": ', f'"{new}": ', 1))
    return folder


def checked(**models):
    check_same_answers(model_set(device="cpu", **models), [read_set(s) for s in SETS.values() if s], max_length=None)


def test_a_token_that_no_row_has_changes_neither_states_nor_how_rows_are_matched(tmp_path):
    plain, padded = (tuned(tmp_path / str(p), padded=p) for p in (False, True))
    base = changed(tmp_path / "base", noise(0.3, 1))
    a, b = (run(tmp_path / f"run-{m.name}", base=base, aligned="tiny", tuned=m, weights=False) for m in (plain, padded))
    x, y = a.summary(), b.summary()
    of_states = [k for k in x if k.startswith(("direction/", "subspace/"))]
    assert of_states, "the aim of the comparison"
    for key in of_states:
        assert y[key] == x[key] or math.isclose(x[key], y[key], abs_tol=1e-6), key
    assert "have different tokenizers" in " ".join(b.report.warnings)
    assert "have different tokenizers" not in " ".join(a.report.warnings)


def test_another_text_under_the_same_id_is_refused_with_the_row_and_the_token(tmp_path):
    other = other_vocabulary(tmp_path / "other", "e", "swapped")
    with pytest.raises(DataError, match=r"turn text into different tokens: token \d+ of the answer of row .* in "):
        checked(aligned="tiny", tuned=other)


def test_begin_and_end_tokens_may_differ_until_an_answer_shows_it(tmp_path):
    model, tokenizer = load_model("tiny", device="cpu")
    tokenizer.bos_token = tokenizer.pad_token
    begins = save((model, tokenizer), tmp_path / "begins")
    checked(aligned="tiny", tuned=begins)
    tokenizer.chat_template = tokenizer.chat_template + "{% if not add_generation_prompt %}{{ bos_token }}{% endif %}"
    ends = save((model, tokenizer), tmp_path / "ends")
    with pytest.raises(DataError, match=r"base .* and aligned .* have other begin or end tokens.*--lend-template"):
        checked(base=ends, aligned="tiny")


def test_a_run_of_models_that_read_otherwise_stops_before_a_model_is_loaded(tmp_path, monkeypatch):
    other = other_vocabulary(tmp_path / "other", "e", "swapped")
    for name in ("model_set", "models"):
        monkeypatch.setattr(f"graddiag.{name}.load_base", None)
    with pytest.raises(DataError, match=r"rows cannot be matched"):
        run(tmp_path / "run", aligned="tiny", tuned=other)
    assert not (tmp_path / "run").exists()
