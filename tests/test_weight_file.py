"""What fine-tuning did to the weights comes back from disk as it was."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from graddiag.errors import DataError
from graddiag.weight_changes import compare_weights
from graddiag.weight_file import KeptWeights, read_weights, save_weights
from graddiag.weight_table import WeightChange, WeightChanges


def _changes(*, base: bool, safety: bool) -> WeightChanges:
    generator = torch.Generator().manual_seed(0)
    shapes = {"layers.0.up.weight": (4, 6), "layers.1.down.weight": (6, 3), "norm.weight": (6,)}
    models = [{n: torch.randn(s, generator=generator) for n, s in shapes.items()} for _ in range(4)]
    blocks = ["layers.*.weight"]
    return compare_weights(
        models[0], models[1], base=models[2] if base else None, safety=models[3] if safety else None, blocks=blocks
    )


@pytest.mark.parametrize(("base", "safety"), [(True, True), (True, False), (False, True), (False, False)])
def test_reading_what_was_written_gives_every_number_to_the_last_bit(tmp_path: Path, base: bool, safety: bool) -> None:
    written = _changes(base=base, safety=safety)
    save_weights(tmp_path / "weights.npz", KeptWeights(written, ("aligned 1", "tuned 2"), ("A note.",), "rows"))
    kept = read_weights(tmp_path / "weights.npz")
    assert (kept.models, kept.notes, kept.safety) == (("aligned 1", "tuned 2"), ("A note.",), "rows")
    read = kept.changes
    assert (list(read.blocks), read.left_out) == (list(written.blocks), written.left_out)
    for a, b in zip([read.overall, *read.blocks.values()], [written.overall, *written.blocks.values()], strict=True):
        np.testing.assert_array_equal(a.shares, b.shares)
        for one in fields(WeightChange):
            if one.name != "shares":
                assert getattr(a, one.name) == getattr(b, one.name), one.name


def test_no_update_and_no_block_can_be_written(tmp_path: Path) -> None:
    same = {"layers.0.up.weight": torch.ones(2, 3)}
    for changes in (compare_weights(same, same), WeightChanges(WeightChange(0.0, 0.0), {}, ())):
        save_weights(tmp_path / "weights.npz", KeptWeights(changes))
        assert read_weights(tmp_path / "weights.npz").changes.summary() == changes.summary()


def test_a_file_that_is_broken_missing_or_of_another_kind_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    with pytest.raises(DataError, match=r"weights.npz cannot be read .*Delete it"):
        read_weights(path)
    save_weights(path, KeptWeights(_changes(base=True, safety=False)))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"weights.npz cannot be read .*Delete it"):
        read_weights(path)
    np.savez(path, numbers=np.zeros((1, 3)))
    with pytest.raises(DataError, match="cannot be read"):
        read_weights(path)
