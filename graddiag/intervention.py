"""What changes when a subspace is removed from a model's residual stream, or a direction is added to it?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from graddiag.decoder_layers import at_outputs, chosen_layers
from graddiag.encoding import EncodedSet
from graddiag.errors import DataError
from graddiag.extraction import BATCH_TOKENS
from graddiag.head import inner_model
from graddiag.reading import Reader, read_rows
from graddiag.signals import Signals, digest_of

_RANK = (
    1e-6  # smallest singular value over the largest: below it float32 vectors are no basis, one is made of the others
)


@dataclass(frozen=True, eq=False)
class Intervention:
    """A change of the residual stream behind decoder layers, by layer, at every token, in prompt and answer.

    `remove[layer]` are k vectors [k, d]: the orthogonal projection of the state onto their span is taken off, so that
    only the span counts, not the basis. `add[layer]` is a vector [d] put on top, after that, as it is: its length says
    how much. An empty intervention changes nothing.

    Raises DataError for vectors that are not finite, or that are no basis of as many dimensions.
    """

    remove: Mapping[int, Float[np.ndarray, "_ _"]] = field(default_factory=dict)
    add: Mapping[int, Float[np.ndarray, " _"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for layer, x in (*self.remove.items(), *self.add.items()):
            if not np.isfinite(x).all():
                raise DataError(f"The vectors for layer {layer} are not finite; nothing can be removed or added.")
        for layer, x in self.remove.items():
            if x.ndim != 2 or not len(x):
                raise DataError(f"A subspace is an array [k, d] with k at least 1; layer {layer} has {list(x.shape)}.")
            found = np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)
            if len(found) < len(x) or found[-1] <= _RANK * found[0]:
                raise DataError(
                    f"The {len(x)} vectors for layer {layer} span fewer than {len(x)} dimensions. Give a basis."
                )
        wrong = [layer for layer, x in self.add.items() if x.ndim != 1]
        if wrong:
            raise DataError(f"A direction is an array [d]; layer {wrong[0]} has {list(self.add[wrong[0]].shape)}.")

    def __str__(self) -> str:
        said = [f"without {len(x)} dimensions at layer {k}" for k, x in sorted(self.remove.items())]
        said += [f"with a vector of length {np.linalg.norm(x):.3g} at layer {k}" for k, x in sorted(self.add.items())]
        return ", ".join(said) or "unchanged"

    @property
    def digest(self) -> str:
        """Equal exactly where the vectors are."""
        parts = [(kind, k, x) for kind, of in (("-", self.remove), ("+", self.add)) for k, x in sorted(of.items())]
        return digest_of(f"{kind}{k} {x.shape} {np.asarray(x, np.float64).tobytes().hex()}" for kind, k, x in parts)


def random_like(intervention: Intervention, *, seed: int) -> Intervention:
    """The control: random subspaces of the same sizes, and random directions of the same lengths, at the same layers.

    Spans of Gaussian vectors, which are uniform among all subspaces of their dimension.
    """
    rng = np.random.default_rng(seed)
    remove = {layer: rng.normal(size=x.shape) for layer, x in sorted(intervention.remove.items())}
    drawn = {layer: rng.normal(size=x.shape) for layer, x in sorted(intervention.add.items())}
    add = {k: v * (np.linalg.norm(intervention.add[k]) / np.linalg.norm(v)) for k, v in drawn.items()}
    return Intervention(remove, add)


@contextmanager
def intervened(model: nn.Module, intervention: Intervention) -> Iterator[None]:
    """The model with the change, for as long as the block lasts; its weights are not touched.

    Raises UsageError for a layer that the model lacks, DataError for vectors of another width than the model's, before
    anything runs.
    """
    changed = sorted({*intervention.remove, *intervention.add})
    layers = chosen_layers(model, changed) if changed else {}
    width = inner_model(model).config.get_text_config(decoder=True).hidden_size
    for layer, x in (*intervention.remove.items(), *intervention.add.items()):
        if x.shape[-1] != width:
            raise DataError(
                f"The vectors for layer {layer} have {x.shape[-1]} numbers, and the model's states {width}. Take them "
                "from tables of a model of this width."
            )
    bases = {k: torch.from_numpy(np.linalg.qr(np.asarray(x, np.float64).T)[0]) for k, x in intervention.remove.items()}
    added = {k: torch.from_numpy(np.asarray(x, np.float64)) for k, x in intervention.add.items()}

    def change(layer: int, states: Tensor) -> Tensor:
        wide = states if states.dtype == torch.float64 else states.float()
        if layer in bases:
            basis = bases[layer].to(wide.device, wide.dtype)  # [d, k], orthonormal columns
            wide = wide - (wide @ basis) @ basis.T
        if layer in added:
            wide = wide + added[layer].to(wide.device, wide.dtype)
        return wide.to(states.dtype)

    with at_outputs(layers, change):
        yield


def read_intervened(
    of: Reader, one: EncodedSet, intervention: Intervention, *, batch_tokens: int = BATCH_TOKENS
) -> Signals:
    """Token losses, and states at the reader's sites, of the rows under the changed model, in the order of the set.

    The table's provenance says what was changed, so that it does not pass for one of the model itself; a `Comparison`
    with the table of the unchanged model gives the change in loss. Raises as `intervened` and `Reader.read`.
    """
    about = replace(
        of.provenance,
        model=f"{of.provenance.model}, {intervention}",
        weights=digest_of([of.provenance.weights, intervention.digest]),
    )
    with intervened(of.model, intervention):
        return read_rows(replace(of, provenance=about), one, batch_tokens=batch_tokens)
