"""Models from folders: saved ones come back the same, and damaged ones are refused by what is wrong with them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import CHAT, TINY_DIGEST, Loaded, change_weight, edit_json, logits_of, save, save_adapter, text_of

from graddiag.errors import DataError, UsageError
from graddiag.models import default_max_length, load_model, template_digest, tokenizer_digest, weights_digest


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return load_model("tiny", device="cpu")


@pytest.fixture
def folder(tiny: Loaded, tmp_path: Path) -> Path:
    return save(tiny, tmp_path / "model")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter")


def parameter_names(model: torch.nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def test_a_saved_model_comes_back_the_same(tiny: Loaded, folder: Path) -> None:
    model, tokenizer = load_model(str(folder))
    assert weights_digest(model) == weights_digest(tiny[0])
    assert tokenizer_digest(tokenizer) == tokenizer_digest(tiny[1])
    assert template_digest(tokenizer) == template_digest(tiny[1])
    assert not model.training


def test_a_path_is_a_folder_even_if_a_built_in_model_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_model("tiny")
    change_weight(model)
    save((model, tokenizer), tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    assert weights_digest(load_model(Path("tiny"))[0]) == weights_digest(model) != TINY_DIGEST
    assert weights_digest(load_model("tiny")[0]) == TINY_DIGEST


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("config.json", r"has no config\.json\. A model has config\.json"),
        ("model.safetensors", r"has no safetensors weights\. A model has"),
        ("tokenizer.json", r"has no tokenizer\. A model has"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused_by_that_part(folder: Path, gone: str, message: str) -> None:
    (folder / gone).unlink()
    with pytest.raises(DataError, match=message):
        load_model(folder)


def test_pickled_weights_are_refused(folder: Path, tiny: Loaded) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tiny[0].state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"no safetensors weights \(its \.bin files are pickles"):
        load_model(folder)


def test_weights_that_the_file_lacks_are_refused_not_drawn(folder: Path) -> None:
    edit_json(folder / "config.json", {"num_hidden_layers": 5})
    with pytest.raises(DataError, match=r"no values for 9 of its weights, the first is 'model\.layers\.4"):
        load_model(folder)


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50_000])


def set_config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", changes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(cut_weights, "header", id="weights cut off"),
        pytest.param(lambda f: (f / "config.json").write_text("{"), "not a valid JSON", id="config is no JSON"),
        pytest.param(lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be loaded", id="tokenizer is empty"),
        pytest.param(set_config(model_type="unheard-of"), "unheard-of", id="unknown type"),
        pytest.param(set_config(model_type="vit"), "ViTConfig", id="no language model"),
        pytest.param(set_config(intermediate_size=64), "mismatched_sizes", id="config of another size"),
    ],
)
def test_damaged_files_give_one_short_message_that_names_the_folder(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(folder))


def test_code_in_a_folder_is_not_run(folder: Path) -> None:
    ran = folder / "ran"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')")
    auto_map = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    edit_json(folder / "config.json", {"model_type": "unheard-of", "auto_map": auto_map})
    with pytest.raises(UsageError, match="code of its own, which is not run"):
        load_model(folder)
    assert not ran.exists()


def test_an_adapter_goes_on_the_built_in_model_it_names(adapter: Path, tiny: Loaded) -> None:
    loaded = load_model(adapter, device="cpu")
    model, tokenizer = loaded
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert not any(m.training for m in model.modules())
    text = text_of(tokenizer, CHAT)
    assert not torch.equal(logits_of(loaded, text), logits_of(tiny, text))
    assert tokenizer_digest(tokenizer) == tokenizer_digest(tiny[1])
    lora = [n for n in parameter_names(model) if "lora_" in n]
    assert len(lora) == 2 * 2 * 4  # A and B of two modules in four layers
    assert len(parameter_names(model)) == len(parameter_names(tiny[0])) + len(lora)
    assert default_max_length(model) == 1024


def test_an_adapter_on_a_folder_computes_what_it_does_on_the_built_in_model(adapter: Path, folder: Path) -> None:
    on_name = load_model(adapter, device="cpu")
    edit_json(adapter / "adapter_config.json", {"base_model_name_or_path": str(folder), "revision": "main"})
    on_folder = load_model(adapter, device="cpu")
    text = text_of(on_name[1], CHAT)
    assert torch.equal(logits_of(on_folder, text), logits_of(on_name, text))


def test_an_adapter_brings_its_own_tokenizer_if_it_has_one(adapter: Path, tiny: Loaded) -> None:
    _, own = load_model("tiny")
    own.chat_template = "{{ messages[0]['content'] }}"
    own.save_pretrained(adapter)
    _, tokenizer = load_model(adapter)
    assert template_digest(tokenizer) == template_digest(own) != template_digest(tiny[1])


def test_an_adapter_whose_base_is_not_there_says_where_that_is_written(adapter: Path) -> None:
    config = adapter / "adapter_config.json"
    edit_json(config, {"base_model_name_or_path": "/no/such/base"})
    with pytest.raises(DataError, match=r"'/no/such/base'.*base_model_name_or_path in .*adapter_config\.json"):
        load_model(adapter)
    edit_json(config, {"base_model_name_or_path": None})
    with pytest.raises(DataError, match="does not say which model it goes on"):
        load_model(adapter)
    config.write_text("[]")
    with pytest.raises(DataError, match="is not a PEFT config"):
        load_model(adapter)


def test_an_adapter_on_an_adapter_is_refused(adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", {"base_model_name_or_path": str(adapter)})
    with pytest.raises(DataError, match="itself an adapter"):
        load_model(adapter)


def test_an_adapter_without_all_of_its_weights_is_refused(adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", {"target_modules": ["q_proj", "down_proj", "up_proj"]})
    with pytest.raises(DataError, match=r"missing adapter keys.*Was the adapter trained on this model\?"):
        load_model(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(DataError, match=r"has no adapter_model\.safetensors"):
        load_model(adapter)


def test_an_adapter_without_peft_says_what_to_install(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"pip install 'graddiag\[peft\]'"):
        load_model(adapter)


def test_loading_an_adapter_warns_of_nothing_and_prints_nothing(
    adapter: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    capfd.readouterr()
    recwarn.clear()
    load_model(adapter)
    assert capfd.readouterr() == ("", "")
    assert recwarn.list == []
