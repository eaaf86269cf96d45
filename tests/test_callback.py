"""The monitor inside the Hugging Face Trainer: right rows, the same training, alarms and where they go."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from architectures import build, with_lora
from loops import SAFETY, TEXTS, exact_model, tiny
from trainers import callback, check_by_id, same_weights, trainer
from transformers import TrainerCallback

import graddiag
from graddiag.alarms import AlarmRaised, Limits
from graddiag.errors import UsageError

ROUNDING = 1e-5  # float32, in which transformers computes its own loss


@pytest.fixture(scope="module")
def tokenizer():
    return tiny()[1]


def test_rows_of_an_accumulated_step_are_those_of_each_example_alone(tokenizer, tmp_path):
    model = exact_model(tokenizer)
    before = copy.deepcopy(model)
    watched = callback(every=1)
    trainer(model, tokenizer, tmp_path, watched, max_steps=1).train()
    (probe,) = watched.monitor.probes
    check_by_id(probe, before, tokenizer, TEXTS, ROUNDING)
    assert probe.update is not None
