"""The same rows measured in two ways: by graddiag's hooks, and by plain autograd on the model's own logits."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from graddiag.blocks import Selected
from graddiag.capture import untouched
from graddiag.encoding import Encoded
from graddiag.extractor import Extractor
from graddiag.head import inner_model
from graddiag.projection import Exact, Projector
from graddiag.signals import Provenance, Space

Array = np.ndarray
# Of the whole gradient's norm: below it a block's own norm is no scale for rounding (OPT's key bias has gradient 0, and
# what rounding makes of it in half precision is a thousandth of the whole).
_SMALL = 1e-2
_NAT = 1.0  # scale of a row's losses: those of a row that is known by heart are rounding


@dataclass(frozen=True)
class Reading:
    """One row: token losses, nats; and per block the flattened gradient of the row's mean loss, and its norm."""

    losses: Array
    gradients: Mapping[str, Array]
    norms: Mapping[str, float]


Read = Callable[[PreTrainedModel, Sequence[Selected], Sequence[Encoded]], list[Reading]]


@dataclass(frozen=True)
class Gap:
    """The largest relative difference between two readings of the same rows: in what (loss, gradient, norm), and in
    which block, if it is one's."""

    size: float
    what: str
    block: str = ""

    def __str__(self) -> str:
        return f"{self.what} of {self.block}" if self.block else self.what


def by_hooks(model: PreTrainedModel, blocks: Sequence[Selected], rows: Sequence[Encoded]) -> list[Reading]:
    """The rows in one batch, measured as `extract` measures them, nothing projected. Raises as `Extractor.measure`."""
    found = bare_extractor(model, blocks, Exact()).measure(rows)
    return [
        Reading(
            found.token_loss[i],
            {n: g[i] for n, g in found.gradients.items()},
            {n: float(v[i]) for n, v in found.norms.items()},
        )
        for i in range(len(rows))
    ]


def bare_extractor(model: PreTrainedModel, blocks: Sequence[Selected], projector: Projector) -> Extractor:
    """An extractor whose rows are looked at and never kept: its space and provenance say nothing."""
    p, names = projector, tuple(b.block for b in blocks)
    space = Space("", "", "answer", 0, names, p.kind, p.dim, p.seed, "", str(model.dtype))
    return Extractor(model, blocks, p, space, Provenance("", "", "", ""))


def by_autograd(model: PreTrainedModel, blocks: Sequence[Selected], rows: Sequence[Encoded]) -> list[Reading]:
    """The rows in one batch, padded on the left, with attention mask and positions; one backward pass per row.

    A single row is not padded: this is then the plain way to a gradient, with nothing of graddiag in it.
    """
    parameters = list({id(b.parameter): b.parameter for b in blocks}.values())
    out = []
    with untouched(model):
        for p in parameters:
            p.requires_grad_(True)
        for losses in _token_losses(model, rows):
            grads = torch.autograd.grad(losses.mean(), parameters, retain_graph=True, allow_unused=True)
            of = {id(p): torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)}
            shares = {b.block.name: _numpy(_share(of[id(b.parameter)], b)) for b in blocks}
            out.append(Reading(_numpy(losses), shares, {n: float(np.linalg.norm(g)) for n, g in shares.items()}))
    return out


def alone(read: Read, model: PreTrainedModel, blocks: Sequence[Selected], rows: Sequence[Encoded]) -> list[Reading]:
    """`by_hooks` or `by_autograd` of each row for itself."""
    return [reading for row in rows for reading in read(model, blocks, [row])]


def largest_gap(found: Sequence[Reading], wanted: Sequence[Reading]) -> Gap:
    """The worst of all rows: losses by their norm; gradients and norms by that of the block, or 1e-2 of the whole
    gradient's where that is larger. NaN, wherever it is, is the worst."""
    gaps = [g for f, w in zip(found, wanted, strict=True) for g in _gaps(f, w)]
    undefined = [g for g in gaps if math.isnan(g.size)]
    return undefined[0] if undefined else max(gaps, key=lambda g: g.size)


def difference(a: Reading, b: Reading) -> float:
    """`||g_a - g_b||`, all blocks as one vector."""
    return math.sqrt(sum(float(_squared(a.gradients[n], b.gradients[n])) for n in a.gradients))


def length(a: Reading) -> float:
    """`||g_a||`, all blocks as one vector."""
    return math.sqrt(sum(n * n for n in a.norms.values()))


def _gaps(found: Reading, wanted: Reading) -> Iterator[Gap]:
    yield Gap(_relative(found.losses, wanted.losses, _NAT), "loss")
    floor = _SMALL * length(wanted)
    for name, gradient in wanted.gradients.items():
        yield Gap(_relative(found.gradients[name], gradient, floor), "gradient", name)
        yield Gap(_relative(np.array(found.norms[name]), np.array(wanted.norms[name]), floor), "norm", name)


def _relative(found: Array, wanted: Array, floor: float) -> float:
    scale = max(float(np.linalg.norm(wanted)), floor)
    distance = math.sqrt(_squared(found, wanted))
    return distance / scale if scale else (0.0 if distance == 0 else math.inf)


def _squared(a: Array, b: Array) -> float:
    return float(np.square(np.asarray(a, np.float64) - b).sum())


def _token_losses(model: PreTrainedModel, rows: Sequence[Encoded]) -> list[Tensor]:
    """`-log p` of each target of each row, from the model's full logits."""
    inner = inner_model(model)
    ids, mask = _left_padded(rows)
    device = next(inner.get_input_embeddings().parameters()).device
    given = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    if "position_ids" in inspect.signature(type(inner).forward).parameters:
        given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0).to(device)
    logits: Tensor = inner(**given, use_cache=False, return_dict=True).logits
    out = []
    for k, row in enumerate(rows):
        first = ids.shape[1] - (len(row.tokens) - 1)
        wide = logits[k, first + row.start - 1 :]
        log_p = (wide if wide.dtype == torch.float64 else wide.float()).log_softmax(-1)
        targets = torch.from_numpy(row.tokens[row.start :].astype(np.int64)).to(log_p.device)
        out.append(-log_p.gather(1, targets.unsqueeze(1)).squeeze(1))
    return out


def _left_padded(rows: Sequence[Encoded]) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    """Token ids without the last one, and the attention mask; what pads is token 0, which the mask hides."""
    width = max(len(r.tokens) for r in rows) - 1
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for k, r in enumerate(rows):
        at = slice(width - (len(r.tokens) - 1), width)
        ids[k, at] = torch.from_numpy(r.tokens[:-1].astype(np.int64))
        mask[k, at] = 1
    return ids, mask


def _share(x: Tensor, b: Selected) -> Tensor:
    return x.narrow(b.part.dim, b.part.start, b.part.stop - b.part.start) if b.part else x


def _numpy(x: Tensor) -> Array:
    wide = x.detach() if x.dtype == torch.float64 else x.detach().float()
    return wide.flatten().cpu().numpy()
