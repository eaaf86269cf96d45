"""The update of the weights held against the safety gradient: the gradient is autograd's, and small steps obey it."""

from __future__ import annotations

import pytest
import torch
from three_tiny import SETS, answer_loss, changed, noise, run
from tiny_models import save_adapter
from written import csv_rows

from graddiag.erosion_report import report_erosion
from graddiag.erosion_safety import GRADIENT_FOLDER
from graddiag.erosion_verdict import answers
from graddiag.errors import DataError, UsageError
from graddiag.models import load_model
from graddiag.weight_changes import compare_weights
from graddiag.weight_reading import in_layer

QUESTION = "The update changes the loss on safe answers to first order"
GIVEN = {"left": None, "right": None, "harmful": None, "benign": None, "layers": [3], "next_tokens": 0}
ASK = {**GIVEN, "safety_gradient": True}
STEP = 1e-3
FLOAT32 = 2e-5  # what a cosine may differ where its gradient is summed otherwise


def gradients(model, tokenizer, rows) -> dict[str, torch.Tensor]:
    """Of the mean loss of the rows, by plain autograd, of the matrices inside the layers."""
    names = {n: p for n, p in model.named_parameters() if in_layer(n, p.shape)}
    loss = sum(answer_loss(model, tokenizer, row) for row in rows) / len(rows)
    return dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))


def stepped(sign: float):
    """A step along the mean safety gradient of tiny, or against it."""

    def change(model):
        found = gradients(model, load_model("tiny", device="cpu")[1], SETS["safety"])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in found:
                    parameter.add_(sign * STEP * found[name])

    return change


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    changes = {"up": stepped(1.0), "down": stepped(-1.0), "aside": noise(0.1, 2)}
    return {name: changed(folder / name, change) for name, change in changes.items()}


@pytest.fixture(scope="module")
def done(models, tmp_path_factory):
    return run(tmp_path_factory.mktemp("run"), aligned="tiny", tuned=models["aside"], **ASK)


def near(value, tolerance, absolute=1e-6):
    """The number, or nothing where it is undefined."""
    return value if value is None else pytest.approx(value, rel=tolerance, abs=absolute)


def answer(found):
    return next(a for a in answers(found.findings) if a.question == QUESTION)


def check_against_autograd(found, tuned, aligned):
    """`aligned` and `tuned` are loaded models without adapters."""
    (model, tokenizer), (other, _) = aligned, tuned
    expected = compare_weights(other, model, safety=gradients(model, tokenizer, SETS["safety"]))
    for block, keys in {"": expected.summary(), **expected.block_summary()}.items():
        own = found.findings.weights.block_summary()[block] if block else found.summary()
        cosine, change = keys["weights/safety_cosine"], keys["weights/safety_change"]
        length = 1.0 if cosine is None else abs(change / cosine)  # of update and gradient, multiplied
        assert own["weights/safety_cosine"] == near(cosine, 0, FLOAT32), block
        assert own["weights/safety_change"] == near(change, 0, FLOAT32 * length), block
        assert own["weights/safety_cosine/chance_sd"] == near(keys["weights/safety_cosine/chance_sd"], 1e-3), block


def test_the_gradient_is_that_of_autograd_in_every_block(models, done):
    check_against_autograd(done, load_model(models["aside"], device="cpu"), load_model("tiny", device="cpu"))
    rows = {r["block"]: r for r in csv_rows(done.out, "weights")}
    for block, change in done.findings.weights.blocks.items():
        assert float(rows[block]["safety"]) == change.safety.cosine
        assert float(rows[block]["safety_change"]) == change.safety_change


def test_under_an_adapter_it_is_that_of_the_merged_model(tmp_path):
    peft = pytest.importorskip("peft")
    adapter = save_adapter(tmp_path / "adapter")
    found = run(tmp_path / "run", aligned=adapter, tuned="tiny", **ASK)
    loaded, tokenizer = load_model(adapter, device="cpu")
    assert isinstance(loaded, peft.PeftModel)
    merged = loaded.merge_and_unload()
    merged.requires_grad_(True)
    check_against_autograd(found, load_model("tiny", device="cpu"), (merged, tokenizer))


def test_blocks_that_take_turns_give_the_same_and_are_not_measured_again(models, done, tmp_path, monkeypatch):
    given = {"aligned": "tiny", "tuned": models["aside"], **ASK, "mean_memory": 150_000}
    found = run(tmp_path, **given)
    assert len(list((tmp_path / GRADIENT_FOLDER).glob("turn-*"))) > 1
    for key, value in done.summary().items():
        assert found.summary()[key] == near(value, 1e-6), key
    monkeypatch.setattr("graddiag.measurement.stream", lambda *_, **__: iter(()))
    (tmp_path / "weights.npz").unlink()
    assert run(tmp_path, **given).summary() == found.summary()


@pytest.mark.parametrize(
    ("tuned", "word", "sign"), [("up", "raised, no control", 1), ("down", "lowered, no control", -1)]
)
def test_a_small_step_along_the_gradient_does_what_is_said_of_it(models, tmp_path, tuned, word, sign):
    found = run(tmp_path, aligned="tiny", tuned=models[tuned], **ASK)
    summary = found.summary()
    assert answer(found).word == word
    assert summary["weights/safety_cosine"] == pytest.approx(-sign, abs=1e-3)
    said, measured = summary["weights/safety_change"], -summary["behaviour/safe_answers"]
    assert said * sign > 0
    assert measured == pytest.approx(said, rel=0.05)  # second order, and losses in float32
    assert f"loss on safety {said:+.3f}" in answer(found).numbers


def test_it_is_off_unless_asked_for_and_then_needs_a_set_and_the_weights(models, done, tmp_path):
    off = run(tmp_path, aligned="tiny", tuned=models["aside"], **GIVEN)
    assert not (tmp_path / GRADIENT_FOLDER).exists()
    assert QUESTION not in {a.question for a in answers(off.findings)}
    assert off.summary()["weights/safety_cosine"] is None
    for lacking in ({"safety": None, "benign": SETS["benign"]}, {"weights": False}):
        with pytest.raises(UsageError, match=r"--safety-gradient needs .*Give both, or leave the gradient out"):
            run(tmp_path, aligned="tiny", tuned=models["aside"], **ASK | lacking)
    on = run(tmp_path, aligned="tiny", tuned=models["aside"], **ASK)
    assert on.summary() == done.summary()
    assert run(tmp_path, aligned="tiny", tuned=models["aside"], **GIVEN).summary() == off.summary()


def test_the_gradient_of_other_rows_is_not_reported(models, done, tmp_path):
    few = run(tmp_path, aligned="tiny", tuned=models["aside"], **ASK, safety=SETS["safety"][:3])
    (tmp_path / "weights.npz").write_bytes((done.out / "weights.npz").read_bytes())
    with pytest.raises(DataError, match=r"safety gradient of other rows, or with none. Give the erosion command again"):
        report_erosion(few.out, figures=False)
