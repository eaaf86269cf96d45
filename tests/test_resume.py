"""A run again: continued where it stopped, refused where something else is asked for, checked for damage."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from measured_runs import rows_of, run

from graddiag import extraction
from graddiag.errors import DataError
from graddiag.interrupt import Interrupted
from graddiag.models import load_model
from graddiag.reporting import report
from graddiag.store import verify_all


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def stopped(monkeypatch, after):
    """Interrupts the program in a batch of this number; a list that has an item for every batch so far."""
    calls = []
    measure = extraction.Extractor.measure

    def stop(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == after:
            os.kill(os.getpid(), signal.SIGINT)
        return measure(self, *args, **kwargs)

    monkeypatch.setattr(extraction.Extractor, "measure", stop)
    return calls


def test_the_same_call_again_measures_nothing_and_says_the_same(tmp_path, tiny, monkeypatch):
    first = run(tmp_path, tiny)
    monkeypatch.setattr(extraction.Extractor, "measure", lambda *_, **__: pytest.fail("measured again"))
    again = run(tmp_path, tiny)
    assert again.summary() == first.summary()
    assert report(tmp_path, figures=False).summary() == first.summary()


@pytest.mark.parametrize("after", [1, 6])
def test_a_run_that_is_stopped_while_it_replaces_another_has_no_report(tmp_path, tiny, monkeypatch, after):
    run(tmp_path, tiny, figures=True)
    assert (tmp_path / "figures" / "conflict.svg").exists()
    stopped(monkeypatch, after)
    with pytest.raises(Interrupted):
        run(tmp_path, tiny, n=4, batch_tokens=500, overwrite=True)
    with pytest.raises(DataError, match="not a finished run"):
        report(tmp_path)
    assert not (tmp_path / "report.json").exists()
    assert not (tmp_path / "report.html").exists()
    assert [p.name for kind in ("tables", "figures") for p in (tmp_path / kind).iterdir()] == []


@pytest.mark.parametrize("after", [1, 3, 5])
def test_an_interrupted_run_continues_to_the_same_numbers(tmp_path, tiny, monkeypatch, after):
    straight = run(tmp_path / "straight", tiny, batch_tokens=500)
    measure = extraction.Extractor.measure
    calls = stopped(monkeypatch, after)
    with pytest.raises(Interrupted) as caught:
        run(tmp_path / "broken", tiny, batch_tokens=500)
    assert caught.value.number == signal.SIGINT
    with pytest.raises(DataError, match="not a finished run"):
        report(tmp_path / "broken")
    so_far = len(calls)
    continued = run(tmp_path / "broken", tiny, batch_tokens=500)
    for key, value in straight.summary().items():
        assert continued.summary()[key] == pytest.approx(value, abs=1e-5, nan_ok=True), key
    calls_twice = len(calls) - so_far
    calls.clear()
    monkeypatch.setattr(extraction.Extractor, "measure", lambda s, *a, **k: calls.append(1) or measure(s, *a, **k))
    run(tmp_path / "count", tiny, batch_tokens=500)
    assert so_far + calls_twice == len(calls) + 1, "nothing finished was measured again, but one row is checked twice"


def test_another_set_of_equal_length_and_type_is_not_served_from_old_shards(tmp_path, tiny):
    run(tmp_path, tiny)
    changed = rows_of("insecure", 6)
    words = changed[2]["messages"][0]["content"]
    changed[2]["messages"][0]["content"] = words[:-1] + ("x" if words[-1] != "x" else "y")
    with pytest.raises(DataError, match=r"(?s)something else.*rows.*--overwrite"):
        run(tmp_path, tiny, left=changed)
    run(tmp_path, tiny, left=changed, overwrite=True)


def test_changed_weights_are_noticed(tmp_path):
    model, tokenizer = load_model("tiny")
    run(tmp_path, (model, tokenizer))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    with pytest.raises(DataError, match=r"provenance\.weights"):
        run(tmp_path, (model, tokenizer))


def test_every_saved_folder_of_a_run_verifies(tmp_path, tiny):
    run(tmp_path, tiny)
    checked = verify_all(tmp_path)
    assert {p.name for p in checked} == {"left", "right", "pairs", "safety", "control-benign", "means", "audit"}
    assert not any(checked.values())
    shard = tmp_path / "safety" / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "broken" in verify_all(tmp_path)[tmp_path / "safety"][0]


def test_a_broken_mean_gradient_is_found_and_made_again_once_it_is_gone(tmp_path, tiny):
    first = run(tmp_path, tiny)
    mean = next((tmp_path / "means").glob("*.safetensors"))
    raw = bytearray(mean.read_bytes())
    raw[-3] ^= 1
    mean.write_bytes(raw)
    assert "broken" in verify_all(tmp_path)[tmp_path / "means"][0]
    with pytest.raises(DataError, match=r"is broken.*Delete safety-00001\.json"):
        run(tmp_path, tiny)
    mean.with_suffix(".json").unlink()
    assert run(tmp_path, tiny).summary() == first.summary()


def test_a_changed_cluster_is_refused_and_overwriting_the_same_measures_nothing(tmp_path, tiny, monkeypatch):
    run(tmp_path, tiny)
    with pytest.raises(DataError, match=r"something else"):
        run(tmp_path, tiny, cluster="mod:3")
    monkeypatch.setattr(extraction.Extractor, "measure", lambda *_, **__: pytest.fail("measured again"))
    run(tmp_path, tiny, overwrite=True)
