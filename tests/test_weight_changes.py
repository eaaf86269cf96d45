"""Updates of weights whose relation to base, aligned model and safety gradient is known."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_adapter
from torch import Tensor, nn
from transformers import PreTrainedModel

from graddiag.errors import DataError, UsageError
from graddiag.models import load_model
from graddiag.weight_changes import compare_weights

NAMES = ("layers.0.up.weight", "layers.1.down.weight")
SHAPES = ((12, 20), (20, 12))


def _weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    matrices = {n: draw(s) for n, s in zip(NAMES, SHAPES, strict=True)}
    return {"embed.weight": draw((5, 12)), **matrices, "layers.1.norm.weight": draw((12,))}


def _plus(a: dict[str, Tensor], b: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {k: v + factor * b[k] for k, v in a.items()}


def test_identical_models_have_no_update() -> None:
    a = _weights(0)
    found = compare_weights(a, a, base=_weights(1), safety=_weights(2))
    assert found.left_out == ()
    values = {k: v for k, v in found.summary().items() if v is not None}
    assert values == {
        "weights/norm": 0.0,
        "weights/relative": 0.0,
        "weights/along_alignment": 0.0,
        "weights/safety_change": 0.0,
        "weights/blocks": 2.0,
        "weights/changed_outside": 0.0,
    }


@pytest.mark.parametrize("a", [0.25, 1.0, -0.5])
def test_weights_interpolated_towards_the_base_go_back_exactly_so_far(a: float) -> None:
    base, aligned = _weights(0), _weights(1)
    way = _plus(aligned, base, -1.0)
    found = compare_weights(_plus(aligned, way, -a), aligned, base=base)
    for change in (found.overall, *found.blocks.values()):
        assert change.back == pytest.approx(-a, rel=1e-12)
        assert change.alignment is not None
        assert change.alignment.cosine == pytest.approx(-np.sign(a), rel=1e-12)
    assert found.left_out == ("embed.weight", "layers.1.norm.weight")


def test_a_step_down_the_safety_gradient_has_cosine_one_and_other_numbers_follow_from_their_definitions() -> None:
    aligned, gradient = _weights(1), _weights(2)
    found = compare_weights(_plus(aligned, gradient, -0.1), aligned, safety=gradient)
    assert found.overall.safety is not None
    assert found.overall.safety.cosine == pytest.approx(1.0, rel=1e-12)
    for name, change in found.blocks.items():
        update = 0.1 * gradient[name].numpy()
        values = np.linalg.svd(update, compute_uv=False)
        assert change.norm == pytest.approx(np.linalg.norm(update))
        assert change.relative == pytest.approx(np.linalg.norm(update) / np.linalg.norm(aligned[name].numpy()))
        np.testing.assert_allclose(change.shares, values**2 / (values**2).sum(), rtol=1e-9)
        assert change.stable_rank == pytest.approx((values**2).sum() / values[0] ** 2)
    assert found.overall.norm == pytest.approx(np.sqrt(sum(c.norm**2 for c in found.blocks.values())))


def test_safe_lora_is_the_cosine_with_the_projected_update() -> None:
    base, aligned, tuned = (_weights(k) for k in range(3))
    found = compare_weights(tuned, aligned, base=base)
    updates, moved = [], []
    for name in NAMES:
        update, way = (tuned[name] - aligned[name]).numpy(), (aligned[name] - base[name]).numpy()
        projected = way @ way.T @ update / np.linalg.norm(way)
        expected = (update * projected).sum() / np.linalg.norm(update) / np.linalg.norm(projected)
        product = found.blocks[name].safe_lora
        assert product is not None
        assert product.cosine == pytest.approx(expected, rel=1e-12)
        updates.append(update.ravel())
        moved.append(projected.ravel())
    x, y = np.concatenate(updates), np.concatenate(moved)
    assert found.overall.safe_lora is not None
    assert found.overall.safe_lora.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-12)


def _frame(rng: np.random.Generator, size: int) -> np.ndarray:
    """Two directions at right angles, drawn alike in all directions; QR alone fixes the sign of a coordinate."""
    return np.asarray(np.linalg.qr(rng.normal(size=(size, 2)))[0] * rng.choice([-1, 1], 2))


def test_the_chance_of_each_cosine_is_that_of_updates_turned_at_random() -> None:
    """Updates of rank 2 in random directions: mean and spread of both cosines as they are claimed."""
    rng, draws = np.random.default_rng(0), 1500
    base, aligned, gradient = ({n: v for n, v in _weights(k).items() if n in NAMES} for k in range(3))
    safe, with_safety = [], []
    for _ in range(draws):
        tuned = {}
        for name, (m, n) in zip(NAMES, SHAPES, strict=True):
            left, right = (_frame(rng, size) for size in (m, n))
            tuned[name] = aligned[name] + torch.from_numpy(left @ np.diag([3.0, 1.0]) @ right.T)
        found = compare_weights(tuned, aligned, base=base, safety=gradient).overall
        assert found.safe_lora is not None
        assert found.safety is not None
        safe.append(found.safe_lora.cosine)
        with_safety.append(found.safety.cosine)
    mean_error = 4 / np.sqrt(draws)  # standard errors of a mean, in standard deviations
    assert abs(np.mean(with_safety)) < mean_error * found.safety.chance_sd
    assert np.std(with_safety) == pytest.approx(found.safety.chance_sd, rel=0.1)
    assert np.mean(safe) == pytest.approx(found.safe_lora.chance, abs=0.02)  # a ratio of means is no mean of ratios
    assert np.std(safe) == pytest.approx(found.safe_lora.chance_sd, rel=0.25)  # to first order only


def test_an_adapter_counts_as_merged_and_stays_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    aligned, _ = load_model("tiny", device="cpu")
    adapted, _ = load_model(save_adapter(tmp_path / "adapter"), device="cpu")
    before = {k: v.clone() for k, v in adapted.state_dict().items()}
    found = compare_weights(adapted, aligned)
    merged = copy.deepcopy(adapted).merge_and_unload()
    expected = compare_weights(merged, aligned)
    assert found.summary() == expected.summary()
    assert found.block_summary() == expected.block_summary()
    changed = {b for b, c in found.blocks.items() if c.norm > 0}
    assert changed == {b for b in found.blocks if "q_proj" in b or "down_proj" in b}
    assert all(torch.equal(v, before[k]) for k, v in adapted.state_dict().items())
    gradients = {f"base_model.model.{b}": torch.ones(merged.get_parameter(b).shape) for b in found.blocks}
    assert compare_weights(adapted, aligned, safety=gradients).overall.safety is not None
    with adapted.disable_adapter():
        assert compare_weights(adapted, aligned).overall.norm == 0.0
    with pytest.raises(DataError, match="tuned model hold an adapter that is not merged"):
        compare_weights(adapted.state_dict(), aligned)


def test_a_model_and_its_state_dict_are_the_same(make_llama: Callable[..., PreTrainedModel]) -> None:
    aligned = make_llama()
    tuned = copy.deepcopy(aligned)
    with torch.no_grad():
        nn.init.zeros_(tuned.get_parameter("model.layers.1.mlp.up_proj.weight"))
    found = compare_weights(tuned, aligned)
    assert compare_weights(tuned.state_dict(), aligned.state_dict()).block_summary() == found.block_summary()
    (changed,) = (b for b, c in found.blocks.items() if c.norm > 0)
    assert changed == "model.layers.1.mlp.up_proj.weight"
    assert found.blocks[changed].relative == pytest.approx(1.0)
    chosen = compare_weights(tuned, aligned, blocks=["*.o_proj", "model.norm.weight"])
    assert len(chosen.blocks) == 4
    assert chosen.left_out == (changed,)
    assert chosen.blocks["model.norm.weight"].keys()["weights/stable_rank"] is None


def test_other_shapes_and_names_are_refused() -> None:
    a = _weights(0)
    with pytest.raises(DataError, match=r"layers.0.up.weight' is \[12, 20\] in the aligned .* \[12, 3\] in the tuned"):
        compare_weights({**a, NAMES[0]: a[NAMES[0]][:, :3]}, a)
    with pytest.raises(DataError, match=r"The base model has no 'layers.1.down.weight' \(1 of 2 blocks"):
        compare_weights(a, a, base={k: v for k, v in a.items() if k != NAMES[1]})
    with pytest.raises(DataError, match=r"no safety gradient of 'layers.1.down.weight'"):
        compare_weights(a, a, safety={NAMES[0]: a[NAMES[0]]})
    with pytest.raises(DataError, match="Measure it on the aligned model, whole"):
        compare_weights(a, a, safety={k: v[:2] for k, v in a.items()})
    with pytest.raises(UsageError, match=r"No block matches '\*.uq'. Closest: .*layers.0.up.weight"):
        compare_weights(a, a, blocks=["*.uq"])
    with pytest.raises(UsageError, match="no matrices inside numbered layers"):
        compare_weights({"embed.weight": a["embed.weight"]}, {"embed.weight": a["embed.weight"]})
