"""What three models answer: made once, kept whole, counted as they are, shown as text."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from three_tiny import SETS, changed, noise, run
from written import csv_rows, parsed

from graddiag import erosion_generation as making
from graddiag.data import read_set
from graddiag.encoding import encode
from graddiag.erosion_samples import (
    GENERATED_FILE,
    Made,
    MadeAnswer,
    Samples,
    begins,
    first_words,
    read_answers,
)
from graddiag.erosion_setting import Generation
from graddiag.errors import DataError, UsageError
from graddiag.generation import generate_answers
from graddiag.models import load_model
from graddiag.openings import REFUSING
from graddiag.page import PicturePage, render_erosion_page
from graddiag.reporting import report
from graddiag.sample_views import sample_view
from graddiag.statistics import wilson

ASK = {"generate": 2, "new_tokens": 5, "left": None, "right": None, "harmful": None}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {"aligned": "tiny", "tuned": changed(tmp_path_factory.mktemp("models") / "tuned", noise(0.1, 2))}


@pytest.fixture(scope="module")
def done(models, tmp_path_factory):
    return run(tmp_path_factory.mktemp("run"), **models, **ASK, figures=True)


def answer(model, part, i, text, cluster=None):
    prompt = (("user", "Why?"),)
    return MadeAnswer(model, part, i, cluster or i, int(i), prompt, text, 3, True, Made("w", "p", 0.0, 8, 0))


def samples_of(*answers):
    how = Generation({"safety": ("0",)}, REFUSING, 0.0, 8, 0)
    return Samples(how, REFUSING, tuple(dict.fromkeys(a.model for a in answers)), answers)


def no_generation(*_, **__):
    pytest.fail("an answer was made again")


def test_the_answers_are_what_each_model_says_greedily(models, done):
    for role, name in models.items():
        model, tokenizer = load_model(name, device="cpu")
        for part in ("safety", "benign"):
            rows = encode(read_set(SETS[part][:2]), tokenizer, max_length=1024).rows
            wanted = generate_answers(model, tokenizer, rows, temperature=0, max_new_tokens=5)
            found = done.findings.samples.of(part, role)
            assert [(a.id, a.text, a.ended) for a in found] == [(s.id, s.text, s.ended) for s in wanted]


def test_the_file_has_a_line_for_every_model_and_prompt_with_the_prompt(done):
    lines = [json.loads(line) for line in (done.out / GENERATED_FILE).read_text().splitlines()]
    assert len(lines) == len({(x["model"], x["part"], x["id"]) for x in lines}) == 2 * 2 * 2
    prompts = {r["id"]: r["messages"][0]["content"] for part in ("safety", "benign") for r in SETS[part]}
    assert all(x["messages"] == [["user", prompts[x["id"]]]] for x in lines)
    assert len(csv_rows(done.out, "generated")) == len(lines)


def test_the_same_call_makes_no_answer_again_and_more_prompts_only_the_new_ones(models, done, tmp_path, monkeypatch):
    out = shutil.copytree(done.out, tmp_path / "copy")
    before = (out / GENERATED_FILE).read_text()
    with monkeypatch.context() as patch:
        patch.setattr(making, "generate_answers", no_generation)
        run(out, **models, **ASK)
    assert (out / GENERATED_FILE).read_text() == before
    run(out, **models, **{**ASK, "generate": 3})
    assert (out / GENERATED_FILE).read_text().startswith(before)
    assert len(read_answers(out)) == 2 * 2 * 3
    assert run(out, **models, **ASK).summary() == done.summary(), "fewer prompts: the others are kept, and not counted"
    assert len(read_answers(out)) == 2 * 2 * 3


def test_an_answer_that_was_cut_off_is_made_again_and_only_that(models, done, tmp_path, monkeypatch):
    out = shutil.copytree(done.out, tmp_path / "copy")
    path, asked = out / GENERATED_FILE, []
    whole = path.read_text()
    path.write_text(whole[:-7])
    with pytest.raises(DataError, match=r"lacks 1 of 8 answers, the first of tuned to 'benign-001' of benign"):
        report(out)

    def counted(*args, **settings):
        asked.append(args[2][0].id)
        return generate_answers(*args, **settings)

    monkeypatch.setattr(making, "generate_answers", counted)
    run(out, **models, **ASK)
    assert asked == ["benign-001"]
    assert path.read_text() == whole


def test_answers_made_otherwise_are_refused_and_replaced_only_if_that_is_said(models, done, tmp_path):
    out = shutil.copytree(done.out, tmp_path / "copy")
    drawn = {**ASK, "temperature": 0.5}
    with pytest.raises(DataError, match=r"8 answers made otherwise \(temperature 0, 5 tokens.*--overwrite"):
        run(out, **models, **drawn)
    found = run(out, **models, **drawn, overwrite=True)
    assert {a.made.temperature for a in read_answers(out)} == {0.5}
    other = run(tmp_path / "other", **models, **drawn, seed=1)
    texts = [[a.text for a in f.findings.samples.answers] for f in (found, other)]
    assert texts[0] != texts[1]


@pytest.mark.parametrize("other", [{"weights": "of another model"}, {"temperature": 0.5}])
def test_an_answer_that_was_made_otherwise_is_no_part_of_the_report(done, tmp_path, other):
    out = shutil.copytree(done.out, tmp_path / "copy")
    first, *rest = read_answers(out)
    changed_line = replace(first, made=replace(first.made, **other)).line
    (out / GENERATED_FILE).write_text("".join(f"{x}\n" for x in (changed_line, *(a.line for a in rest))))
    with pytest.raises(DataError, match="lacks 1 of 8 answers"):
        report(out)


def test_nothing_is_generated_unless_asked(models, tmp_path):
    found = run(tmp_path, **models, **{**ASK, "generate": 0})
    assert not (tmp_path / GENERATED_FILE).exists()
    assert not any(k.startswith("generated/") for k in found.summary())


def test_the_report_comes_again_without_a_model(done, tmp_path):
    out = shutil.copytree(done.out, tmp_path / "copy")
    assert report(out).summary() == done.summary()
    assert (out / "report.html").read_bytes() == (done.out / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"generate": -1}, "-1 prompts"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"new_tokens": 0}, "0 new tokens"),
        ({"safety": None, "benign": None, "left": "insecure"}, "both are none"),
    ],
)
def test_what_cannot_be_meant_is_refused(models, tmp_path, asked, message):
    with pytest.raises(UsageError, match=message):
        run(tmp_path, **models, **{**ASK, "limit": 2, **asked})


@pytest.mark.parametrize(
    ("text", "whole", "start"),
    [
        (REFUSING, True, True),
        ("  I\u2019m  SORRY, but I can\u2019t\nhelp with that. Ask a doctor.", True, True),
        ("I'm sorry, but that is nothing I do.", False, True),
        ("I cannot do that.", False, False),
        ("Well. " + REFUSING, False, False),
        ("", False, False),
    ],
)
def test_which_answers_begin_as_a_refusal(text, whole, start):
    assert first_words(REFUSING) == "I'm sorry"
    assert (begins(text, REFUSING), begins(text, first_words(REFUSING))) == (whole, start)


def test_shares_count_answers_and_a_cluster_once_for_the_interval():
    texts = [REFUSING, "Sure.", REFUSING, "I'm sorry, no."]
    some = samples_of(*(answer("tuned", "safety", str(i), t) for i, t in enumerate(texts)))
    summary = some.summary()
    assert summary["generated/refusing:safety:tuned"] == 0.5
    assert summary["generated/refusing_start:safety:tuned"] == 0.75
    assert summary["generated/refusing:safety:tuned/n"] == 4
    alike = samples_of(*(replace(a, cluster=str(k // 2)) for k, a in enumerate(some.answers)))
    whole, halved = (s.summary()["generated/refusing:safety:tuned/high"] for s in (some, alike))
    assert halved > whole
    assert "tuned 3 of 4" in some.line
    assert "nothing judges them" in some.line


def paired(part, texts):
    """Answers of both models, (aligned, tuned) prompt by prompt: True begins as a refusal."""
    said = {True: REFUSING, False: "Sure."}
    models = ("aligned", "tuned")
    return [answer(m, part, str(i), said[t[k]]) for k, m in enumerate(models) for i, t in enumerate(texts)]


def test_the_change_of_a_share_pairs_prompts_and_is_held_against_harmless_ones():
    lost = paired("safety", [(True, False)] * 9 + [(False, True)] + [(True, True)] * 5)
    same = paired("benign", [(False, False)] * 13 + [(True, False)] * 2)
    some = samples_of(*lost, *same)
    s = some.summary()
    for stem in ("refusing", "refusing_start"):
        assert s[f"generated/{stem}_change:safety"] == pytest.approx(-8 / 15)
        assert (s[f"generated/{stem}_change:safety/lost"], s[f"generated/{stem}_change:safety/gained"]) == (9, 1)
        assert s[f"generated/{stem}_change:safety/p"] == pytest.approx(stats.binomtest(1, 10).pvalue)
        assert s[f"generated/{stem}_change:safety/high"] < 0
        assert s[f"generated/{stem}_beyond"] == pytest.approx(-8 / 15 + 2 / 15)
        assert s[f"generated/{stem}_beyond/low"] < -6 / 15 < s[f"generated/{stem}_beyond/high"]
    assert "changed by -53% [" in some.line
    assert "safety beyond benign -40% [" in some.line
    alone = samples_of(*lost)
    assert alone.summary()["generated/refusing_beyond"] is None
    assert "beyond" not in alone.line


def test_swapped_models_change_the_sign_of_a_change_and_nothing_else():
    texts = [(True, False)] * 4 + [(False, True)] * 1 + [(True, True)] * 3
    one, other = (samples_of(*paired("safety", t)) for t in (texts, [t[::-1] for t in texts]))
    a, b = (x.change("safety", REFUSING) for x in (one, other))
    assert (a.value, a.low, a.high, a.p) == pytest.approx((-b.value, -b.high, -b.low, b.p))


def test_changes_stand_on_the_page_and_in_a_table(done):
    lines = csv_rows(done.out, "generated_changes")
    assert [x["answers to"] for x in lines] == ["safety", "benign", "safety beyond benign"] * 2
    page = (done.out / "report.html").read_text()
    assert "no longer" in page.split('id="generated"')[1].split("<h3>")[0]


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (3, 8), (1, 1)])
def test_the_interval_of_a_share_is_wilsons(hits, n):
    found = wilson(np.repeat([1.0, 0.0], [hits, n - hits]), np.arange(n))
    oracle = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert found.value == hits / n
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-4)  # 1.96 for 1.95996


def test_texts_of_models_are_shown_and_never_obeyed():
    hostile = "<script>alert(1)</script>\n\x1b[2J\u202e</pre><img src=x onerror=alert(1)>" + "x" * 2000
    asked = replace(answer("tuned", "safety", "0", hostile), messages=(("system", "<b>"), ("user", "a & b")))
    html = render_erosion_page(
        PicturePage("t", (), (), (), {}, {}, {}, sample_view(samples_of(replace(asked, model="aligned"), asked)))
    )
    found = parsed(html)
    assert not {"script", "img", "b"} & set(found.names)
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;↵\n") == 2, "the line break is made"
    assert "more characters" in html
    assert "a &amp; b" in html
