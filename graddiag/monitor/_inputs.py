"""What one forward pass of a training loop was about: its examples, their target tokens, and their ids."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from graddiag.encoding import tail_digest
from graddiag.errors import DataError
from graddiag.monitor._segments import Marks, Segment, find_segments

IGNORED = -100  # the label of a position that is no target
_MASK_OF_ROWS = 2  # dimensions of an attention mask that says which tokens are there

Given = Mapping[str, object]


@dataclass(frozen=True, eq=False)
class Inputs:
    """The examples of one forward pass, in the order of the batch, those without a target left out.

    `tokens` and `targets` are [r, t]: at each position the token, and the next one if it is a target, else -100.
    `without_target` counts examples of more than one token that nothing is learnt from. `items` is the number that the
    model's own loss divides by, where it was given one.
    """

    tokens: Int[np.ndarray, "r t"]
    targets: Int[np.ndarray, "r t"]
    used: Bool[np.ndarray, "r t"]
    segments: tuple[Segment, ...]
    without_target: int
    items: float | None

    @property
    def counts(self) -> Int[np.ndarray, " n"]:
        """Target tokens of each example."""
        return np.array([np.count_nonzero(self.targets[s.at] != IGNORED) for s in self.segments], dtype=np.int64)

    @property
    def example_of_target(self) -> Int[np.ndarray, " m"]:
        """For each target of the batch, in the order of its positions, the number of its example."""
        owner: np.ndarray = np.full(self.targets.shape, -1, dtype=np.int64)
        for k, s in enumerate(self.segments):
            owner[s.at] = k
        of_target: np.ndarray = owner[self.targets != IGNORED]
        return of_target

    @property
    def ids(self) -> tuple[str, ...]:
        """A digest of each example's tokens and of which of them are targets; that of `Encoded` where these are its
        end."""
        return tuple(self._id(s) for s in self.segments)

    def _id(self, s: Segment) -> str:
        used = self.used[s.at]
        tokens = self.tokens[s.at][used].astype(np.int32)
        is_target = np.concatenate([[False], self.targets[s.at][:-1] != IGNORED])[used]
        start = int(is_target.argmax())
        if is_target[start:].all() and 0 < start < len(tokens):
            return tail_digest(tokens, start)
        raw = tokens.astype("<i4").tobytes() + b"targets" + is_target.tobytes()
        return hashlib.sha256(raw).hexdigest()[:32]


def arguments(model: nn.Module, args: tuple[object, ...], kwargs: Given, batch: Given) -> Given:
    """The arguments of a forward pass by name, those of the batch where the pass has none of that name."""
    named = inspect.signature(model.forward).bind_partial(*args).arguments if args else {}
    return {**batch, **{k: v for k, v in {**named, **kwargs}.items() if v is not None}}


def read_inputs(given: Given, batch: Given) -> Inputs:
    """The examples of a pass. Raises DataError where tokens or labels are missing, or where nothing tells the examples
    of a row apart although there are several."""
    tokens = _array(given, "input_ids")
    if tokens is None or tokens.ndim != 2:
        raise DataError(
            f"The monitor needs input_ids of shape [rows, tokens], and the model was given {sorted(given)}. Pass the "
            "batch to monitor.step(batch) with its input_ids."
        )
    targets = _targets(given, tokens)
    used = _used(given, tokens)
    # Padding that is a target all the same is part of what is trained.
    marks = Marks(
        used | (targets != IGNORED),
        _rows(given, "seq_idx", tokens),
        _array(given, "cu_seq_lens_q"),
        _positions(given, tokens),
    )
    _check_told(given, batch, marks)
    found = find_segments(marks)
    taught = tuple(s for s in found if (targets[s.at] != IGNORED).any())
    empty = sum(s.stop - s.start > 1 for s in found if s not in set(taught))
    return Inputs(tokens, targets, used, taught, empty, _items(given))


def _targets(given: Given, tokens: Int[np.ndarray, "r t"]) -> Int[np.ndarray, "r t"]:
    shifted = _array(given, "shift_labels")
    if shifted is not None:
        return shifted.reshape(tokens.shape)
    labels = _array(given, "labels")
    if labels is None or labels.shape != tokens.shape:
        raise DataError(
            f"The monitor needs labels of the shape of input_ids, {list(tokens.shape)}, and the model was given "
            f"{sorted(given)}. Pass the batch to monitor.step(batch) with its labels; where they are -100 nothing is "
            "learnt."
        )
    return np.concatenate([labels[:, 1:], np.full((len(labels), 1), IGNORED)], axis=1)


def _used(given: Given, tokens: Int[np.ndarray, "r t"]) -> Bool[np.ndarray, "r t"]:
    """Positions that the attention mask shows; without one, all."""
    mask = _array(given, "attention_mask")
    if mask is not None and mask.ndim == _MASK_OF_ROWS and mask.shape == tokens.shape:
        shown: np.ndarray = mask != 0
        return shown
    return np.ones(tokens.shape, dtype=bool)


def _positions(given: Given, tokens: Int[np.ndarray, "r t"]) -> Int[np.ndarray, "r t"] | None:
    found = _array(given, "position_ids")
    if found is None or found.ndim != 2 or found.shape[1] != tokens.shape[1]:  # images have three rows of positions
        return None
    return np.broadcast_to(found, tokens.shape)


def _rows(given: Given, name: str, tokens: Int[np.ndarray, "r t"]) -> Int[np.ndarray, "r t"] | None:
    found = _array(given, name)
    return None if found is None else np.broadcast_to(found, tokens.shape)


def _check_told(given: Given, batch: Given, marks: Marks) -> None:
    """Raises DataError where rows may hold several examples and nothing says where one ends."""
    if any(m is not None for m in (marks.seq_idx, marks.cu_seq_lens, marks.position_ids)):
        return
    mask, wanted = given.get("attention_mask"), batch.get("input_ids")
    rows = marks.used.shape[0]
    ways = "Give the model seq_idx, cu_seq_lens_q, or position_ids that begin again with each example."
    if isinstance(mask, Tensor) and mask.dim() > _MASK_OF_ROWS:
        raise DataError(
            f"The attention mask has shape {list(mask.shape)}, so a row may hold several examples, and nothing says "
            f"where one ends. {ways}"
        )
    if isinstance(wanted, Tensor) and wanted.dim() == 2 and len(wanted) != rows:
        raise DataError(
            f"The batch has {len(wanted)} rows and the model was given {rows}, and nothing says where an example ends. "
            f"{ways}"
        )


def _items(given: Given) -> float | None:
    found = given.get("num_items_in_batch")
    if found is None:
        return None
    return float(found.sum().item()) if isinstance(found, Tensor) else float(found)  # type: ignore[arg-type]


def _array(given: Given, name: str) -> np.ndarray | None:
    found = given.get(name)
    if found is None:
        return None
    array: np.ndarray = torch.as_tensor(found).detach().cpu().numpy()
    return array
