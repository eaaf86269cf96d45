"""What a monitor does not see of examples, block by block, and that this is said: once, and in the report."""

from __future__ import annotations

import json

import pytest
import torch
from architectures import build
from conftest import relative
from loops import SAFETY, TEXTS, own_gradients, padded, product, safety_gradient, tiny, watch

from graddiag.errors import UsageError
from graddiag.reporting import report

ROUNDING = 1e-5  # float32, in which transformers computes its own loss


@pytest.fixture(scope="module")
def tokenizer():
    return tiny()[1]


def model_of(name, tokenizer):
    """Ready to be trained: norms and a tied embedding in one, norms and fused experts in the other."""
    return tiny()[0] if name == "tiny" else build(name, vocabulary=len(tokenizer), context=256).train()


def steps(model, monitor, tokenizer, n=1):
    for _ in range(n):
        with monitor.step():
            model(**padded(tokenizer)).loss.backward()
        model.zero_grad()


def without_rows(model):
    """By their names: norms, fused experts, and an embedding that is also the head."""
    tied = model.config.tie_word_embeddings
    marks = ("norm", "experts.", "router", "mlp.gate.", *(["embed_tokens"] if tied else []))
    return {n for n, _ in model.named_parameters() if any(m in n for m in marks)}


@pytest.mark.parametrize(("name", "kind"), [("tiny", "model.embed_tokens.weight"), ("mixtral", "experts.")])
def test_examples_have_the_products_of_all_blocks_but_those_that_are_named(tokenizer, tmp_path, name, kind):
    model = model_of(name, tokenizer)
    left_out = without_rows(model)
    seen = [n for n, _ in model.named_parameters() if n not in left_out]
    safety = safety_gradient(model, tokenizer, seen)
    wanted = [product(g, safety) for g in own_gradients(model, tokenizer, TEXTS, seen)]
    monitor = watch(model, tokenizer, blocks=["*"], every=1, folder=tmp_path)
    steps(model, monitor, tokenizer, 3)
    assert relative(monitor.probes[0].dots, wanted) < ROUNDING
    (notice,) = [n for n in monitor.notices if "no example rows" in n.says]
    assert notice.says.startswith(f"{len(left_out)} of {len(seen) + len(left_out)} blocks have no example rows: ")
    assert kind in notice.says
    assert f"model.layers.*.input_layernorm.weight ({model.config.num_hidden_layers})" in notice.says
    found = report(tmp_path, figures=False)
    assert [w for w in found.report.warnings if "no example rows" in w] == [f"Step 0: {notice.says}"]
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert set(content["provenance"]["run"]["blocks without example rows"].split(", ")) == left_out


def test_nothing_is_said_where_every_block_has_rows(tokenizer, tmp_path):
    model, _ = tiny()
    monitor = watch(model, tokenizer, every=1, folder=tmp_path)
    steps(model, monitor, tokenizer)
    assert not any("no example rows" in n.says for n in monitor.notices)
    assert "blocks without example rows" not in (tmp_path / "monitor.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("knew", [True, False])
def test_it_is_said_once_when_a_run_goes_on(tokenizer, tmp_path, knew):
    model, _ = tiny()
    first = watch(model, tokenizer, blocks=["*"] if knew else None, every=1)
    steps(model, first, tokenizer)
    again = watch(model, tokenizer, blocks=["*"], every=1)
    again.load_state(json.loads(json.dumps(first.state())))
    steps(model, again, tokenizer, 2)
    assert [n.step for n in again.notices if "no example rows" in n.says] == [0 if knew else 1]


def test_norms_alone_are_watched_without_examples(tokenizer):
    model, _ = tiny()
    names = [n for n, _ in model.named_parameters() if "norm" in n]
    safety = safety_gradient(model, tokenizer, names)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    monitor = watch(model, tokenizer, blocks=["*norm*"], optimizer=optimizer, every=1)
    with monitor.step():
        model(**padded(tokenizer)).loss.backward()
    batch = {n: p.grad for n, p in model.named_parameters() if n in names}
    wanted = product(batch, safety)
    optimizer.step()
    (probe,) = monitor.probes
    assert sum(probe.gradient.dot.values()) == pytest.approx(wanted, rel=ROUNDING)
    assert probe.predicted_change is not None
    assert (len(probe.dots), probe.ids) == (0, ())
    assert any(n.says.startswith("Single examples are not seen") for n in monitor.notices)
    assert any("no example rows" in n.says for n in monitor.notices)


def test_rows_that_no_block_has_cannot_be_kept(tokenizer, tmp_path):
    with pytest.raises(UsageError, match=r"None of the \d+ blocks has example rows"):
        watch(tiny()[0], tokenizer, blocks=["*norm*"], projection="logra", folder=tmp_path, safety=SAFETY)
