"""A small real step changes the safety loss as predicted, and leaves no trace: the experiment, in short, on tiny."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.optim import SGD


@pytest.fixture(scope="module")
def experiment() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "experiments" / "predicted_vs_measured.py"
    spec = importlib.util.spec_from_file_location("predicted_vs_measured", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("optimizer", "small", "large"), [("SGD", 1e-4, 1.0), ("AdamW", 1e-7, 1e-2)])
def test_small_steps_are_predicted_large_ones_are_not_and_the_parameters_come_back_bit_for_bit(
    experiment: ModuleType, optimizer: str, small: float, large: float
) -> None:
    on = experiment.bench("tiny", experiment.Scale(2, 2, 1024, ("*.mlp.down_proj", "*.self_attn.q_proj")))
    chosen = SGD(on.parameters, lr=1.0) if optimizer == "SGD" else experiment.warmed(on)
    before = [p.detach().clone() for p in on.model.parameters()]
    little, much = experiment.steps(on, chosen, (small, large))
    assert all(torch.equal(a, b) for a, b in zip(before, on.model.parameters(), strict=True))
    assert little.slope == pytest.approx(1, abs=0.01)
    assert little.rank >= 0.95
    assert np.array(little.measured) == pytest.approx(np.array(little.predicted), rel=0.05)
    assert not much.holds
