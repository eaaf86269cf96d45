"""Three models: found to fit before any is loaded, then loaded one after another."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from tiny_models import change_weight, edit_json, save, save_adapter
from torch import nn

from graddiag import model_set as home
from graddiag.errors import DataError, UsageError
from graddiag.model_set import model_set
from graddiag.models import load_model, model_digest, tokenizer_digest

CPU = {"device": "cpu"}


def saved_tiny(folder, *, change=False, template=True, eos=None):
    model, tokenizer = load_model("tiny", **CPU)
    if change:
        change_weight(model)
    if not template:
        tokenizer.chat_template = None
    if eos:
        tokenizer.eos_token = eos
    return save((model, tokenizer), folder)


def saved_llama(folder, make_llama, **settings):
    """Another Llama with tiny's tokenizer."""
    return save((make_llama(vocab_size=259, **settings), load_model("tiny", **CPU)[1]), folder)


def another_adapter(folder):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return save_adapter(folder)


def adapter_with_modules(folder):
    """An adapter that brings a whole norm of its own."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(load_model("tiny", **CPU)[0], config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            nn.init.constant_(parameter, 0.5)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture
def loads(monkeypatch):
    """The places from which a base was loaded, in order."""
    seen, load = [], home.load_base

    def counted(place, **how):
        seen.append(place.name)
        return load(place, **how)

    monkeypatch.setattr(home, "load_base", counted)
    return seen


def digest_and_states(turn):
    tokens = torch.tensor([turn.tokenizer("some text")["input_ids"]])
    with torch.no_grad():
        return model_digest(turn.model), turn.model(tokens).logits


def test_adapters_on_a_shared_base_are_the_models_that_load_model_gives_with_one_base_loaded_once(tmp_path, loads):
    names = {"base": "tiny", "aligned": save_adapter(tmp_path / "a"), "tuned": another_adapter(tmp_path / "b")}
    found = model_set(**names, **CPU).visit(digest_and_states)
    assert list(found) == ["base", "aligned", "tuned"]
    assert loads == ["tiny"]
    assert len({digest for digest, _ in found.values()}) == 3
    for role, name in names.items():
        model, tokenizer = load_model(name, **CPU)
        digest, logits = digest_and_states(home.Turn(role, "", model, tokenizer))
        assert found[role][0] == digest
        assert torch.equal(found[role][1], logits)


def test_a_base_that_an_adapter_has_left_changed_is_read_again(tmp_path, loads):
    names = {"base": "tiny", "aligned": adapter_with_modules(tmp_path / "a"), "tuned": save_adapter(tmp_path / "b")}
    found = model_set(**names, **CPU).visit(digest_and_states)
    assert loads == ["tiny", "tiny"]
    for role, name in names.items():
        assert found[role][0] == model_digest(load_model(name, **CPU)[0])


def test_when_a_model_is_loaded_the_one_before_it_is_gone(tmp_path, monkeypatch):
    refs, alive, load = [], [], home.load_base

    def counting(place, **how):
        alive.append(sum(ref() is not None for ref in refs))
        return load(place, **how)

    def keep_nothing(turn):
        turn.model.a_cycle = turn.model  # reference counts alone do not free a model that knows itself
        refs.append(weakref.ref(turn.model))

    monkeypatch.setattr(home, "load_base", counting)
    gc.disable()
    try:
        model_set(
            base="tiny", aligned=saved_tiny(tmp_path / "a", change=True), tuned=saved_tiny(tmp_path / "b"), **CPU
        ).visit(keep_nothing)
    finally:
        gc.enable()
    assert alive == [0, 0, 0]


def test_rows_are_cut_at_the_shortest_context(tmp_path, make_llama):
    short = saved_llama(tmp_path / "short", make_llama, max_position_embeddings=77)
    long = saved_llama(tmp_path / "long", make_llama, max_position_embeddings=300)
    assert model_set(base=long, aligned=short, **CPU).max_length == 77


def test_a_lent_template_comes_with_the_tokenizer_it_belongs_to(tmp_path):
    base = saved_tiny(tmp_path / "base", template=False, eos="<|pad|>")
    with pytest.raises(DataError, match=r"base \(.*base\) has no chat template.*--lend-template"):
        model_set(base=base, aligned="tiny", **CPU)
    lent = model_set(base=base, aligned="tiny", lend_template=True, **CPU)
    digests = lent.visit(lambda turn: (tokenizer_digest(turn.tokenizer), turn.tokenizer.chat_template))
    assert digests["base"] == digests["aligned"]
    with pytest.raises(UsageError, match="name both models"):
        model_set(base=base, lend_template=True, **CPU)


def test_models_of_other_sizes_are_refused_before_any_is_loaded(tmp_path, make_llama, loads):
    wide, deep = (
        saved_llama(tmp_path / "wide", make_llama),
        saved_llama(tmp_path / "deep", make_llama, num_hidden_layers=5),
    )
    with pytest.raises(
        DataError, match=r"base \(tiny\) has 4 layers of width 32 and tuned \(.*wide\) has 3 of width 24"
    ):
        model_set(base="tiny", tuned=wide, **CPU)
    with pytest.raises(DataError, match=r"has 3 layers of width 24 and tuned \(.*deep\) has 5 of width 24"):
        model_set(aligned=wide, tuned=deep, **CPU)
    assert loads == []


def test_a_tokenizer_that_reads_text_otherwise_is_not_lent(tmp_path):
    other = saved_tiny(tmp_path / "other")
    vocabulary = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(vocabulary.replace('"a": ', '"swapped": ', 1))
    with pytest.raises(DataError, match=r"turn text into different tokens"):
        model_set(base=other, aligned="tiny", lend_template=True, **CPU)


def test_an_adapter_for_a_model_that_is_not_in_the_set_is_refused(tmp_path):
    adapter = save_adapter(tmp_path / "adapter")
    aligned = saved_tiny(tmp_path / "aligned", change=True)
    with pytest.raises(DataError, match=r"tuned \(.*adapter\) is an adapter for 'tiny', which none of .*aligned \("):
        model_set(aligned=aligned, tuned=adapter, **CPU)
    assert set(model_set(aligned=adapter, tuned=save_adapter(tmp_path / "second"), **CPU).models) == {
        "aligned",
        "tuned",
    }


def test_an_adapter_that_does_not_fit_the_model_it_names_is_refused_before_any_is_loaded(tmp_path, make_llama, loads):
    adapter = save_adapter(tmp_path / "adapter")
    other = saved_llama(tmp_path / "other", make_llama)
    edit_json(adapter / "adapter_config.json", {"base_model_name_or_path": str(other)})
    with pytest.raises(
        DataError, match=r"is for another model: its '.*down_proj' takes 96 inputs, .* of shape \[24, 40\]"
    ):
        model_set(aligned=other, tuned=adapter, **CPU)
    assert loads == []


def test_a_set_needs_a_model():
    with pytest.raises(UsageError, match="No model is named"):
        model_set()
