"""Which way would lower the loss on safe answers? The mean safety gradient under a run's aligned model, on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from graddiag.encoding import EncodedSet
from graddiag.erosion_setting import ALIGNED
from graddiag.erosion_weights import Gradient
from graddiag.errors import UsageError
from graddiag.extraction import ready
from graddiag.extractor import Extractor
from graddiag.model_set import Turn
from graddiag.preparation import model_name
from graddiag.reference_means import without_rows
from graddiag.running import Run, turns_for
from graddiag.weight_reading import Entry, in_layer, plain_name, weight_entries

GRADIENT_FOLDER = "safety-gradient"


def check_gradient(asked: bool, parts: Sequence[str], *, weights: bool) -> None:
    """Raises UsageError where there is no set to take a gradient on, or no update to hold it against."""
    if asked and not ("safety" in parts and weights):
        lacking = "the weights, and they are left out" if "safety" in parts else "a safety set, and there is none"
        raise UsageError(f"--safety-gradient needs {lacking}. Give both, or leave the gradient out.")


@dataclass
class SafetyGradient:
    """The mean gradient of the set called `name`, measured while the aligned model is loaded: of every matrix inside
    its layers, the blocks whose update is compared.

    Blocks whose means do not fit into `mean_memory` take turns, each a pass over the set; sums are on disk, rows are
    not kept, and what an interrupted run has left is not measured again.
    """

    name: str
    run: Path
    batch_tokens: int
    max_nonfinite: float
    mean_memory: str | int | None
    overwrite: bool
    quiet: bool
    notes: list[str] = field(default_factory=list)
    rows: str = ""
    turns: int = 0

    @property
    def folder(self) -> Path:
        """Where everything of it is."""
        return self.run / GRADIENT_FOLDER

    def read(self, turn: Turn, encoded: Sequence[EncodedSet]) -> None:
        """Measures it, if it is the aligned model's turn. Raises as every extraction."""
        if turn.role == ALIGNED:
            (one,) = (e for e in encoded if e.name == self.name)
            extractor = without_rows(_extractor(turn, one.max_length))
            turns = turns_for(extractor, self.folder, self.mean_memory, safety=True, optimizer=False)
            how = Run(
                extractor, self.folder, self.batch_tokens, self.overwrite, self.quiet, self.max_nonfinite, turns=turns
            )
            table = how.all({"safety": one}, exact_pairs=False).tables["safety"]
            self.rows, self.turns = table.rows, len(turns)
            self.notes += [f"Safety gradient: {n}" for n in (*table.warnings, *extractor.notes)]

    def kept(self) -> Gradient:
        """The mean, to be read block by block; what other turns have left in the folder is none of it."""
        parts = [self.folder] if self.turns < 2 else [self.folder / f"turn-{k}" for k in range(1, self.turns + 1)]
        files = [file for part in parts for file in (part / "means").glob("safety-*.safetensors")]
        return Gradient(self.rows, {name: entry for file in files for name, entry in _means(file).items()})


def _extractor(turn: Turn, max_length: int) -> Extractor:
    """For the matrices inside the layers, by the names that they have under an adapter too."""
    wanted = {n for n, e in weight_entries(turn.model, turn.role).items() if in_layer(n, e.shape)}
    names = [n for n, _ in turn.model.named_parameters() if plain_name(n) in wanted]
    return ready(
        turn.model, turn.tokenizer, blocks=names, projection="exact", dim=1, seed=0, target="answer",
        max_length=max_length, name=model_name(turn.name),
    )  # fmt: skip


def _means(file: Path) -> dict[str, Entry]:
    with safe_open(file, framework="pt") as opened:
        counts: dict[str, int] = json.loads(opened.metadata()["counts"])
        return {
            name: Entry(tuple(opened.get_slice(name).get_shape()), partial(_mean, file, name, n))
            for name, n in counts.items()
        }


def _mean(file: Path, name: str, n: int) -> Tensor:
    with safe_open(file, framework="pt") as opened:
        total: Tensor = opened.get_tensor(name)
    return total / n
