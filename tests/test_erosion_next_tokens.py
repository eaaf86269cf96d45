"""What three models expect first after a prompt: their own probabilities, side by side, kept for the report."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from three_tiny import SETS, changed, noise, run
from tiny_models import ids_of, text_of
from written import csv_rows, parsed

from graddiag.data import ExampleSet
from graddiag.erosion_next_tokens import TOP, NextTokens
from graddiag.erosion_sets import ErosionSets
from graddiag.errors import DataError, UsageError
from graddiag.expected_tokens import TOKENS_FILE, AfterPrompt, Expected, keep_tokens
from graddiag.models import load_model
from graddiag.page import PicturePage, render_erosion_page
from graddiag.reporting import report
from graddiag.sample_views import token_views

ASK = {"left": None, "right": None, "harmful": None, "next_tokens": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {"aligned": "tiny", "tuned": changed(tmp_path_factory.mktemp("models") / "tuned", noise(0.1, 2))}


@pytest.fixture(scope="module")
def done(models, tmp_path_factory):
    return run(tmp_path_factory.mktemp("run"), **models, **ASK, figures=True)


def test_probabilities_are_those_of_each_model_after_the_prompt(models, done):
    found = {(p.part, p.id): p for p in done.findings.next_tokens}
    assert list(found) == [(part, r["id"]) for part in ("safety", "benign") for r in SETS[part][:2]]
    for role, name in models.items():
        model, tokenizer = load_model(name, device="cpu")
        for (part, i), prompt in found.items():
            (row,) = [r for r in SETS[part] if r["id"] == i]
            tokens = torch.tensor([ids_of(tokenizer, text_of(tokenizer, row["messages"][:-1], prompt=True))])
            with torch.no_grad():
                wanted = model(tokens).logits[0, -1].double().log_softmax(-1).numpy()
            for t in prompt.tokens:
                assert t.log_probability[role] == pytest.approx(wanted[t.id], abs=1e-5)
            firsts = set(np.argsort(-wanted)[:TOP].tolist())
            assert firsts <= {t.id for t in prompt.tokens}


def test_the_report_has_them_again_without_a_model(done, tmp_path):
    out = shutil.copytree(done.out, tmp_path / "copy")
    report(out)
    html = (out / "report.html").read_text()
    assert html == (done.out / "report.html").read_text()
    assert "What the models expect first" in html
    assert len(csv_rows(out, "next_tokens")) == sum(len(p.tokens) for p in done.findings.next_tokens)
    (out / TOKENS_FILE).write_text('{"prompts": [{"part": "safety"}]}')
    with pytest.raises(DataError, match="does not hold tokens after prompts"):
        report(out)


def test_none_are_read_where_none_are_asked_for_and_the_old_ones_go(models, done, tmp_path):
    out = shutil.copytree(done.out, tmp_path / "copy")
    found = run(out, **models, **{**ASK, "next_tokens": 0})
    assert found.findings.next_tokens == ()
    assert not (out / TOKENS_FILE).exists()
    with pytest.raises(UsageError, match="--next-tokens -1"):
        run(out, **models, **{**ASK, "next_tokens": -1})


def test_a_prompt_that_one_model_could_not_read_is_left_out_and_padded_vocabularies_are_cut():
    tokenizer = load_model("tiny")[1]
    some = NextTokens(ErosionSets((ExampleSet("s", ()),), (), {"safety": "s"}, (), ()), 1)
    rng = np.random.default_rng(0)
    some.found = {("safety", "a"): {"aligned": rng.normal(size=40), "tuned": rng.normal(size=50)}, ("safety", "b"): {}}
    some._prompts = lambda: [("safety", i, (("user", "?"),)) for i in "ab"]  # type: ignore[method-assign]
    (table,) = some.tables(tokenizer, ["aligned", "tuned"])
    assert table.id == "a"
    assert max(t.id for t in table.tokens) < 40


def test_an_impossible_token_is_kept_and_texts_are_never_obeyed(done, tmp_path):
    token = Expected(1, "<script>\x1b", {"aligned": -np.inf, "tuned": -0.5}, {"aligned": 9, "tuned": 1})
    prompt = AfterPrompt("safety", "<b>", (("user", "<img src=x>"),), (token,))
    keep_tokens(tmp_path, (prompt,))
    assert "Infinity" not in (tmp_path / TOKENS_FILE).read_text()
    known = replace(token, log_probability={"aligned": None, "tuned": -0.5})
    page = PicturePage("t", (), (), (), {}, {}, {}, None, token_views((replace(prompt, tokens=(known,)),)))
    html = render_erosion_page(page)
    assert not {"script", "img", "b"} & set(parsed(html).names)
    assert "\x1b" not in html
