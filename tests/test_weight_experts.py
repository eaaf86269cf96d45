"""Experts: what files hold a tensor each and the model one for all is read, and compared as loaded models are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import build
from read_weights import check_same
from safetensors.torch import load_file, save_file
from three_tiny import noise
from tiny_models import save

from graddiag import weight_sources as sources
from graddiag.errors import DataError
from graddiag.model_set import model_set
from graddiag.models import load_model
from graddiag.weight_changes import compare_weights

KINDS = ("mixtral", "qwen3-moe")


def made(kind: str, folder: Path, seed: int) -> Path:
    """A small model of the kind with noise, and tiny's tokenizer, in a folder as `save_pretrained` makes it."""
    tokenizer = load_model("tiny", device="cpu")[1]
    model = build(kind, vocabulary=len(tokenizer), context=256).float()
    noise(0.1, seed)(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 3:
                p.add_(0.02 * torch.randn(p.shape, generator=generator))
    return save((model, tokenizer), folder)


@pytest.fixture(scope="module", params=KINDS)
def folders(request, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp(request.param)
    return {role: made(request.param, root / role, seed) for seed, role in enumerate(("base", "aligned", "tuned"))}


def test_files_have_a_tensor_for_each_expert_and_every_parameter_is_read(folders: dict[str, Path]) -> None:
    assert any(".experts.0." in name for name in load_file(folders["aligned"] / "model.safetensors"))
    check_same(folders)


def test_the_comparison_from_files_is_that_of_loaded_models_and_has_the_experts(folders: dict[str, Path]) -> None:
    found = sources.weight_sources(model_set(**folders))
    loaded = {role: load_model(folder, device="cpu")[0] for role, folder in folders.items()}
    one, other = (compare_weights(m["tuned"], m["aligned"], base=m["base"]) for m in (found, loaded))
    assert one.summary() == other.summary()
    assert one.block_summary() == other.block_summary()
    assert sum(name.endswith(("experts.gate_up_proj", "experts.down_proj")) for name in one.blocks) == 2 * 2


def test_a_stack_of_experts_is_as_one_vector_what_its_matrices_are() -> None:
    generator = torch.Generator().manual_seed(0)
    models = [torch.randn(3, 4, 6, generator=generator, dtype=torch.float64) for _ in range(4)]
    name = "layers.0.experts.up"
    tuned, aligned, base, safety = ({name: m} for m in models)
    apart = [{f"layers.0.experts.{k}.up": m[k] for k in range(3)} for m in models]
    whole = compare_weights(tuned, aligned, base=base, safety=safety)
    each = compare_weights(apart[0], apart[1], base=apart[2], safety=apart[3])
    for key, value in each.overall.keys().items():
        assert whole.overall.keys()[key] == (value if value is None else pytest.approx(value, rel=1e-12)), key
        assert whole.blocks[name].keys()[key] == whole.overall.keys()[key]
    update = (models[0] - models[1]).numpy()
    assert whole.overall.norm == pytest.approx(np.sqrt((update**2).sum()), rel=1e-12)


def test_files_that_lack_an_expert_are_refused_by_name(tmp_path: Path) -> None:
    folder = made("mixtral", tmp_path, 0)
    file = folder / "model.safetensors"
    held = load_file(file)
    lost = next(n for n in held if ".experts.3." in n and "layers.1" in n)
    save_file({k: v for k, v in held.items() if k != lost}, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"hold no 'model.layers.1.mlp.experts.*stored in another layout"):
        sources.weight_sources(model_set(aligned=folder))
