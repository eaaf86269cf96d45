"""The whole path on the tiny model: report again, exact against projected, options, refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from measured_runs import SMALL, rows_of, run, trained_tiny

import graddiag
from graddiag import extraction
from graddiag.errors import DataError, UsageError
from graddiag.models import load_model
from graddiag.pipeline import compare, extract_to, plan_compare
from graddiag.reporting import report
from graddiag.store import read_signals, verify_all

KEYS = """
    pairs/n pairs/identical pairs/clusters loss/left loss/right
    loss_gap/mean loss_gap/low loss_gap/high loss_gap/p loss_gap/effect_size
    conflict/paired_cosine conflict/low conflict/high conflict/p conflict/negative_fraction
    conflict/within_left conflict/within_right conflict/across
    conflict/mean_gradient_cosine conflict/mean_gradient_cosine_corrected
    framing/consistency framing/p framing/safety_cosine framing/safety_cosine/low framing/safety_cosine/high
    alignment/left alignment/right alignment/difference alignment/difference/low alignment/difference/high
    alignment/difference/p alignment/control:benign projection/error
"""


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def test_every_key_of_the_interface_is_in_the_summary(tmp_path, tiny):
    found = run(tmp_path, tiny).summary()
    assert [k for k in KEYS.split() if k not in found] == []
    assert found["pairs/n"] == found["pairs/identical"] == 6
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["summary"] == found
    assert {report["kinds"][k] for k in ("conflict/paired_cosine", "alignment/left")} == {"exact"}
    assert {report["kinds"][k] for k in ("conflict/across", "framing/p")} == {"projected"}


def test_exact_numbers_are_those_of_whole_gradients(tmp_path, tiny):
    model, tokenizer = tiny
    result = run(tmp_path, tiny)
    sets = {"left": rows_of("insecure", 6), "right": rows_of("educational", 6), "safety": rows_of("safety", 4)}
    whole = {}
    for role, rows in sets.items():
        signals = graddiag.extract(model, tokenizer, rows, blocks=SMALL, projection="exact")
        whole[role] = np.concatenate([signals.gradients[b] for b in signals.blocks], axis=1).astype(np.float64)
    unit = {k: v / np.linalg.norm(v, axis=1, keepdims=True) for k, v in whole.items()}
    safe = whole["safety"].mean(0) / np.linalg.norm(whole["safety"].mean(0))
    found = result.summary()
    assert found["conflict/paired_cosine"] == pytest.approx((unit["left"] * unit["right"]).sum(1).mean(), abs=1e-5)
    for side in ("left", "right"):
        assert found[f"alignment/{side}"] == pytest.approx((unit[side] @ safe).mean(), abs=1e-5)
    exact = run(tmp_path / "exact", tiny, projection="exact").summary()
    assert exact["projection/error"] == 0
    d = whole["left"] - whole["right"]
    wanted = np.linalg.norm(d.sum(0)) ** 2 / (d**2).sum()
    assert exact["framing/consistency"] == pytest.approx(wanted, rel=1e-4)


def test_saved_signals_are_sets_and_other_spaces_are_refused_before_anything_runs(tmp_path, tiny, monkeypatch):
    model, tokenizer = tiny
    how = {"model": model, "tokenizer": tokenizer, "blocks": SMALL, "quiet": True}
    a = extract_to(rows_of("insecure", 5), out=tmp_path / "a", dim=16, **how)
    b = extract_to(rows_of("educational", 5), out=tmp_path / "b", dim=16, **how)
    other = extract_to(rows_of("educational", 5), out=tmp_path / "other", dim=4, **how)
    result = compare(str(a.out), b.out, out=tmp_path / "run", figures=False)
    assert result.summary()["pairs/n"] == 5
    assert result.findings.kinds()["conflict/paired_cosine"] == "projected"
    assert read_signals(tmp_path / "run" / "left").ids == a.signals.ids
    with pytest.raises(DataError, match=r"(?s)dim: 16  \|  4"):
        compare(a.out, other.out, out=tmp_path / "no", figures=False)
    monkeypatch.setattr(extraction.Extractor, "measure", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(DataError, match=r"(?s)dim: 16  \|  64"):
        compare(a.out, rows_of("educational", 5), out=tmp_path / "no", dim=64, **how)


def test_rows_that_are_left_out_are_told_of_by_the_library_too(tiny):
    rows = [{"prompt": "p", "completion": "c"}, {"prompt": "p", "completion": ""}]
    with pytest.warns(UserWarning, match=r"1 of 2 rows were left out: row 1 has an empty answer"):
        signals = graddiag.extract(*tiny, rows, blocks=SMALL, skip_bad_rows=True)
    assert len(signals) == 1


def test_the_clusters_that_are_asked_for_are_those_of_left_and_right(tmp_path, tiny):
    found = run(tmp_path, tiny, cluster="mod:3").findings
    assert found.comparison.cluster_names == ("0", "1", "2")
    assert found.safety.clusters == found.safety.ids


def test_rows_come_back_in_the_order_given_whatever_their_length(tiny):
    model, tokenizer = tiny
    rows = [{"id": f"{n}", "prompt": "hello", "completion": "x" * n} for n in (50, 3, 20, 1, 34)]
    signals = graddiag.extract(model, tokenizer, rows, blocks=SMALL, batch_tokens=80)
    assert signals.ids == ("50", "3", "20", "1", "34")
    alone = graddiag.extract(model, tokenizer, rows[2:3], blocks=SMALL)
    assert signals.loss[2] == pytest.approx(alone.loss[0], rel=1e-5)


def test_too_many_rows_that_are_not_finite_are_an_error_and_are_named(tmp_path):
    model, tokenizer = load_model("tiny")
    rows = rows_of("insecure", 6)
    rows[3]["messages"][0]["content"] = "\u00ff"
    token = tokenizer("\u00ff", add_special_tokens=False)["input_ids"][0]
    model.model.embed_tokens.register_forward_hook(
        lambda _, args, out: out.masked_fill((args[0] == token).unsqueeze(-1), float("nan"))
    )
    clean = run(tmp_path / "clean", (model, tokenizer))
    with pytest.raises(DataError, match=rf"1 of 6 rows .* not finite \(ids {rows[3]['id']}\).*--max-nonfinite"):
        run(tmp_path / "bad", (model, tokenizer), left=rows)
    allowed = run(tmp_path / "bad", (model, tokenizer), left=rows, max_nonfinite=0.5)
    assert allowed.summary()["pairs/n"] == 5
    assert any("not finite" in w for w in allowed.report.warnings)
    assert clean.summary()["pairs/n"] == 6


def test_a_plan_writes_nothing_and_counts_what_a_run_has(tmp_path, tiny, monkeypatch):
    model, tokenizer = tiny
    monkeypatch.chdir(tmp_path)
    cost = plan_compare(rows_of("insecure", 6), rows_of("educational", 6), safety=rows_of("safety", 4), model=model,
                        tokenizer=tokenizer, blocks=SMALL, dim=16)  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    assert cost.rows == {"left": 6, "right": 6, "safety": 4}
    result = run(tmp_path / "run", tiny, controls={})
    comparison = result.findings.comparison
    assert cost.tokens["left"] == comparison.left.length.sum()
    assert cost.targets["right"] == comparison.right.n_tokens.sum()
    used = sum(p.stat().st_size for p in (tmp_path / "run").rglob("*.safetensors"))
    assert used / 3 < cost.disk < used * 3


def test_token_scores_are_saved_and_sum_to_the_products_they_are_parts_of(tmp_path, tiny):
    run(tmp_path / "run", tiny, token_scores=True)
    with_safety = extract_to(rows_of("insecure", 6), safety=rows_of("safety", 4), token_scores=True, model=tiny[0],
                             tokenizer=tiny[1], blocks=SMALL, dim=16, out=tmp_path / "one")  # fmt: skip
    in_memory = graddiag.extract(*tiny, rows_of("insecure", 6), safety=rows_of("safety", 4), token_scores=True,
                                 blocks=SMALL, dim=16)  # fmt: skip
    left = read_signals(tmp_path / "run" / "left")
    for table in (left, read_signals(tmp_path / "run" / "control-benign"), with_safety.signals, in_memory):
        dots = sum(table.reference_dot.values())
        assert [s.sum() for s in table.token_alignment] == pytest.approx(dots, rel=1e-4, abs=1e-6 * abs(dots).max())
        assert [len(s) for s in table.token_alignment] == (table.length - 1).tolist()
    for other in (with_safety.signals, in_memory):
        assert other.ids == left.ids
        assert sum(other.reference_dot.values()) == pytest.approx(sum(left.reference_dot.values()), rel=1e-4)
    assert {p.name for p in verify_all(tmp_path / "one")} == {"one", "safety", "means"}
    with pytest.raises(DataError, match=r"token_scores: True  \|  None"):
        run(tmp_path / "run", tiny)


def test_token_scores_without_a_mean_to_point_at_are_refused(tmp_path, tiny):
    model, tokenizer = tiny
    how = {"model": model, "tokenizer": tokenizer, "blocks": SMALL, "dim": 16}
    saved = extract_to(rows_of("safety", 4), out=tmp_path / "safety", **how)
    for safety in (None, saved.out):
        with pytest.raises(UsageError, match=r"--token-scores.*give the safety set too.*Saved signals do not hold"):
            compare(rows_of("insecure", 3), rows_of("educational", 3), safety=safety, token_scores=True,
                    out=tmp_path / "run", **how)  # fmt: skip
    with pytest.raises(UsageError, match="--token-scores"):
        graddiag.extract(*tiny, rows_of("insecure", 3), token_scores=True)


def test_a_saved_and_a_live_optimizer_give_the_same_adam_form_and_another_state_is_refused(tmp_path):
    loaded, optimizer, folder = trained_tiny(tmp_path / "checkpoint")
    first = run(tmp_path / "run", loaded, optimizer=folder)
    summary = first.summary()
    keys = [k for k in summary if k.startswith("alignment_adam/")]
    assert {"alignment_adam/left", "alignment_adam/difference/p", "alignment_adam/control:benign/low"} < set(keys)
    assert all(summary[k] is not None for k in keys)
    assert any(line.startswith("What a row adds to Adam's step") for line in first.report.verdict)
    assert (
        json.loads((tmp_path / "run" / "report.json").read_text())["provenance"]["sets"]["left"]["optimizer"]["step"]
        == 1
    )
    again = run(tmp_path / "run", loaded, optimizer=optimizer)
    assert again.summary() == summary == report(tmp_path / "run", figures=False).summary()
    optimizer.state[loaded[0].model.layers[0].mlp.down_proj.weight]["exp_avg"] += 1e-3
    with pytest.raises(DataError, match=r"adam\.state"):
        run(tmp_path / "run", loaded, optimizer=optimizer)
    with pytest.raises(UsageError, match=r"--optimizer needs the mean safety gradient"):
        run(tmp_path / "none", loaded, optimizer=optimizer, safety=None)


def test_sets_that_share_rows_with_safety_are_told_of(tmp_path, tiny):
    found = run(tmp_path, tiny, controls={"same": rows_of("insecure", 3)}, left=rows_of("safety", 4))
    text = " ".join(found.report.warnings)
    assert "left: 4 of 4 rows are in the safety set too" in text
    found = run(tmp_path / "b", tiny, controls={"same": rows_of("insecure", 3)})
    assert "shares rows with left" in " ".join(found.report.warnings)


def test_impossible_lengths_names_and_settings_are_refused(tmp_path, tiny):
    with pytest.raises(UsageError, match="--max-length 5000: this model takes 2 to 2048 tokens"):
        run(tmp_path, tiny, max_length=5000)
    with pytest.raises(UsageError, match=r"cannot be called 'a/b'"):
        run(tmp_path, tiny, controls={"a/b": rows_of("benign", 2)})
    with pytest.raises(UsageError, match="loaded already"):
        run(tmp_path, tiny, dtype="bfloat16")
    with pytest.raises(UsageError, match="cannot be written"):
        run("/dev/null/x", tiny)


def test_projected_pairs_and_centring_are_options_that_the_report_names(tmp_path, tiny):
    projected = run(tmp_path / "a", tiny, pairs="projected")
    assert projected.findings.kinds()["conflict/paired_cosine"] == "projected"
    assert not (tmp_path / "a" / "pairs").exists()
    centered = run(tmp_path / "b", tiny, center=True)
    assert centered.summary()["conflict/forced"] < 0
    with pytest.raises(UsageError, match=r"no --pairs 'both'\. Allowed: exact, projected"):
        run(tmp_path / "c", tiny, pairs="both")


def test_a_model_that_is_not_in_memory_is_refused():
    model, tokenizer = load_model("tiny")
    model.model.layers[1].to("meta")
    with pytest.raises(DataError, match=r"9 parameters, the first is 'model\.layers\.1.*are not in memory"):
        graddiag.extract(model, tokenizer, rows_of("insecure", 2))


def test_a_model_object_needs_its_tokenizer(tiny):
    with pytest.raises(UsageError, match="needs its tokenizer"):
        compare(rows_of("insecure", 2), rows_of("educational", 2), model=tiny[0])


def test_a_comparison_of_two_models_says_that_both_differ(tmp_path, tiny):
    model, tokenizer = load_model("tiny")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.1)
    how = {"tokenizer": tokenizer, "blocks": SMALL, "dim": 16}
    a = extract_to(rows_of("insecure", 5), model=tiny[0], out=tmp_path / "a", **how)
    b = extract_to(rows_of("educational", 5), model=model, out=tmp_path / "b", **how)
    result = compare(a.out, b.out, out=tmp_path / "run", figures=False)
    assert any("both data and model" in w for w in result.report.warnings)
    assert replace(result.findings).comparison.differs == ("data", "model")


def test_every_parameter_can_be_planned_vectors_too(tiny):
    model, tokenizer = tiny
    found = plan_compare("insecure", "educational", model=model, tokenizer=tokenizer, blocks=["*"], limit=2)
    assert found.blocks == len(list(model.named_parameters()))
    assert found.memory > sum(p.numel() * p.element_size() for p in model.parameters())
