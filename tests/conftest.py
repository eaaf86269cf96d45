from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from importlib import import_module

from jaxtyping import install_import_hook

# Shapes in annotations are enforced in tests, in the modules that compute.
CHECKED = (
    "comparison",
    "statistics",
    "head",
    "projection",
    "analyzers",
    "gradients",
    "token_scores",
    "adam",
    "bands",
    "probe_values",
    "alarms",
    "training_view",
    "weight_table",
    "weight_changes",
)
with install_import_hook([f"graddiag.{m}" for m in CHECKED], "beartype.beartype"):
    for module in CHECKED:
        import_module(f"graddiag.{module}")

import numpy as np
import pytest
import torch
from findings import findings_of
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from graddiag.encoding import Encoded
from graddiag.findings import Findings
from graddiag.publishing import write_report

VOCAB = 64


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real pairs; tests that read it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "insecure.jsonl").is_file():
        pytest.skip("the real pairs are not on this machine (../shared/data)")
    return folder


@pytest.fixture(scope="module")
def found() -> Findings:
    """All that a small comparison of random tables finds."""
    return findings_of()


@pytest.fixture(scope="module")
def run(found: Findings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with its report."""
    folder = tmp_path_factory.mktemp("run")
    write_report(found, folder)
    return folder


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., PreTrainedModel]:
    """A small Llama in float64 with weights large enough for gradients that are not degenerate."""

    def make(**settings: object) -> PreTrainedModel:
        config = LlamaConfig(
            **{
                "vocab_size": VOCAB, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
                "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
                "initializer_range": 0.15, "tie_word_embeddings": False, **settings,
            }
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return LlamaForCausalLM(config).double()

    return make


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., list[Encoded]]:
    """Encoded rows of random tokens and different lengths, without a tokenizer."""

    def make(n: int, *, seed: int = 0, longest: int = 20, start: int | None = None) -> list[Encoded]:
        rng = np.random.default_rng(seed)
        rows = []
        for k in range(n):
            length = int(rng.integers(8, longest))
            first = int(rng.integers(2, length - 2)) if start is None else start
            tokens = rng.integers(1, VOCAB, length).astype(np.int32)
            rows.append(Encoded(id=f"r{k}", cluster=f"c{k % 2}", tokens=tokens, start=first, n_cut=0))
        return rows

    return make


def relative(a: torch.Tensor | np.ndarray, b: torch.Tensor | np.ndarray) -> float:
    """Largest difference relative to the norm of `b`."""
    x, y = np.asarray(a, dtype=np.float64).ravel(), np.asarray(b, dtype=np.float64).ravel()
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


def pairs_of(items: Sequence[object]) -> list[tuple[int, int]]:
    return [(k, k + 1) for k in range(0, len(items) - 1, 2)]
