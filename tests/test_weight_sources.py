"""Weights read from files, a tensor at a time, are those of the loaded models."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from read_weights import check_same
from safetensors.torch import load_file, save_file
from three_tiny import changed, noise
from tiny_models import edit_json, save_adapter
from torch import nn

from graddiag import weight_sources as sources
from graddiag.errors import DataError
from graddiag.model_set import model_set
from graddiag.models import load_model
from graddiag.weight_changes import compare_weights


def _adapter(folder: Path, base: Path | str = "tiny", **settings: object) -> Path:
    """A trained-looking adapter of any kind on a model: all that it adds is random."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        **{"r": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **settings}
    )
    model = peft.get_peft_model(load_model(base, device="cpu")[0], config)
    generator = torch.Generator().manual_seed(len(str(settings)))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3, generator=generator)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def test_of_folders_with_one_file_with_several_and_of_a_built_in_model(tmp_path: Path) -> None:
    one = changed(tmp_path / "one", noise(0.2, 1))
    model, tokenizer = load_model("tiny", device="cpu")
    model.save_pretrained(tmp_path / "several", max_shard_size="100KB")
    tokenizer.save_pretrained(tmp_path / "several")
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 1
    check_same({"base": one, "aligned": tmp_path / "several", "tuned": "tiny"})


def test_of_a_checkpoint_whose_names_lack_the_prefix_of_the_model(tmp_path: Path) -> None:
    folder = changed(tmp_path / "bare", noise(0.2, 1))
    file = folder / "model.safetensors"
    save_file({k.removeprefix("model."): v for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    check_same({"aligned": folder})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True, "init_lora_weights": "gaussian"},
        {"modules_to_save": ["input_layernorm"]},
        {"target_modules": "all-linear", "rank_pattern": {"up_proj": 3}, "fan_in_fan_out": False},
    ],
)
def test_of_adapters_of_several_kinds_on_one_base(tmp_path: Path, settings: dict[str, object]) -> None:
    base = changed(tmp_path / "base", noise(0.2, 1))
    tuned = _adapter(tmp_path / "tuned", base, **settings)
    check_same({"aligned": base, "tuned": tuned})
    check_same({"base": base, "aligned": _adapter(tmp_path / "aligned", base), "tuned": tuned})
    check_same({"aligned": "tiny", "tuned": _adapter(tmp_path / "on_tiny", **settings)})


def test_no_tensor_stays_in_memory_once_it_was_read(tmp_path: Path) -> None:
    base = changed(tmp_path / "base", noise(0.2, 1))
    found = sources.weight_sources(model_set(aligned=base, tuned=_adapter(tmp_path / "tuned", base)))
    kept = [weakref.ref(e.read()) for entries in found.values() for n, e in entries.items() if "down_proj" in n]
    gc.collect()
    assert kept
    assert not any(k() is not None for k in kept)


def test_a_built_in_model_is_loaded_once_and_a_saved_one_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = changed(tmp_path / "base", noise(0.2, 1))
    loaded: list[str] = []
    load = sources.load_base
    monkeypatch.setattr(sources, "load_base", lambda place, **how: loaded.append(place.name) or load(place, **how))
    sources.weight_sources(model_set(base=base, aligned=base, tuned=_adapter(tmp_path / "tuned", base)))
    assert loaded == []
    sources.weight_sources(model_set(base=base, aligned="tiny", tuned=save_adapter(tmp_path / "on_tiny")))
    assert loaded == ["tiny"]


def test_the_comparison_of_entries_is_that_of_loaded_models(tmp_path: Path) -> None:
    given = {
        "base": changed(tmp_path / "base", noise(0.2, 1)),
        "aligned": "tiny",
        "tuned": _adapter(tmp_path / "tuned"),
    }
    found = sources.weight_sources(model_set(**given))
    loaded = {role: load_model(name, device="cpu")[0] for role, name in given.items()}
    one, other = (compare_weights(m["tuned"], m["aligned"], base=m["base"]) for m in (found, loaded))
    assert one.summary() == other.summary()
    assert one.block_summary() == other.block_summary()


def test_a_parameter_outside_layers_that_files_call_otherwise_is_left_out_and_told(tmp_path: Path) -> None:
    """Under an adapter too, where it would else be read as the zero that stands in its place."""
    folder = changed(tmp_path / "renamed", noise(0.2, 1))
    adapter = _adapter(tmp_path / "tuned", folder)
    file, name = folder / "model.safetensors", "model.embed_tokens.weight"
    held = load_file(file)
    save_file({("embed_in.weight" if k == name else k): v for k, v in held.items()}, file, metadata={"format": "pt"})
    models = model_set(aligned=folder, tuned=adapter)
    for role, entries in sources.weight_sources(models).items():
        assert name not in entries
        assert len(entries) == len(held) - 1
        assert sources.missing(models.models[role].base, entries) == (name,)


def test_packed_numbers_and_adapters_that_change_their_base_are_refused(tmp_path: Path) -> None:
    packed = changed(tmp_path / "packed", noise(0.2, 1))
    file = packed / "model.safetensors"
    held = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(held | {name: held[name].to(torch.int8)}, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"packed' hold no 'model.layers.1.mlp.up_proj.weight' .*nor 0 .* quantized"):
        sources.weight_sources(model_set(aligned=packed))
    started = _adapter(tmp_path / "started")
    edit_json(started / "adapter_config.json", {"init_lora_weights": "olora"})
    with pytest.raises(DataError, match=r"started' changes the weights under it .*olora.* Merge it"):
        sources.weight_sources(model_set(aligned="tiny", tuned=started))
