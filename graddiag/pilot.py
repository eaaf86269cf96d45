"""Which projection is fine enough for this run: the cheapest that keeps the cosines of a few rows' mean gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from jaxtyping import Float
from torch import Tensor

from graddiag.encoding import Encoded, EncodedSet, batches
from graddiag.errors import DataError
from graddiag.extractor import Extractor
from graddiag.files import disk_named, read_json, write_json
from graddiag.gradients import Dense
from graddiag.mean_gradient import MeanGradient
from graddiag.projection import make_projector
from graddiag.signals import Block, digest_of
from graddiag.store import MANIFEST, is_store

FILE = "projection.json"
ROLES = ("left", "right", "safety")
MOST_ROWS, SHARE = 8, 0.1  # of each set: enough for a mean with the rank of a mean, and a small part of the run
MOST_ERROR = 0.02  # cosine; the size of effects that fine-tuning sets show
FREE_SHARE = 0.25  # of the free memory that the pilot's means may take: the run itself needs the rest


@dataclass(frozen=True)
class Candidate:
    """A kind of projection and how many numbers a row has in one block."""

    kind: str
    dim: int

    @property
    def row_bytes(self) -> int:
        """Of one row in one block, on disk and in memory."""
        return 4 * self.dim


# From cheap to dear: by the bytes of a row, and of two equal ones first the one that forms no gradient.
CANDIDATES = (
    Candidate("logra", 256),  #   1 KiB
    Candidate("logra", 576),  #   2.25 KiB
    Candidate("logra", 1024),  #  4 KiB
    Candidate("sjlt", 1024),  #   4 KiB
    Candidate("sjlt", 2048),  #   8 KiB
    Candidate("logra", 2304),  #  9 KiB
    Candidate("logra", 4096),  # 16 KiB
    Candidate("sjlt", 4096),  #  16 KiB
)


@dataclass(frozen=True)
class Choice:
    """The projection of a run; `error` is the root mean square, over blocks, of projected minus exact cosines between
    the pilot's means, NaN where there was none. `note` is what a reader must know: that it is coarse, or tried on some
    of the blocks only, or on none."""

    kind: str
    dim: int
    error: float = math.nan
    note: str = ""

    @property
    def sentence(self) -> str:
        """What was chosen and how good it was."""
        found = "not tried" if math.isnan(self.error) else f"{self.error:.3f} in the pilot"
        return f"chosen: {self.kind}, {self.dim} numbers per row and block; error of block means {found}"


def choose(
    extractor: Extractor,
    encoded: Mapping[str, EncodedSet],
    *,
    batch_tokens: int,
    candidates: Sequence[Candidate] = CANDIDATES,
    free_memory: int | None = None,
) -> Choice:
    """The first candidate whose error is below 0.02, else the best, with a note; the same for the same inputs.

    Up to 8 rows of left, right and safety, at most a tenth of each but at least 2, are measured once for their exact
    means. Where those would take more than a quarter of the free memory, only some blocks, drawn at random, are tried;
    where not one fits, the first candidate is taken. Both with a note.
    """
    free = _free(extractor.blocks[0].parameter.device) if free_memory is None else free_memory
    fitting = _fitting([b.block for b in extractor.blocks], len(_roles(encoded)), int(FREE_SHARE * free))
    if not fitting:
        first = candidates[0]
        note = (
            f"The projection was not chosen by a pilot, whose means of one block would take more than {FREE_SHARE:.0%} "
            f"of the {free:,} bytes that are free. Taken: {first.kind}, {first.dim}."
        )
        return Choice(first.kind, first.dim, note=note)
    some = len(fitting) < len(extractor.blocks)
    tried_on = extractor.only(fitting) if some else extractor
    choice = _best(tried_on, _means(tried_on, encoded, batch_tokens=batch_tokens), candidates)
    if not some:
        return choice
    note = f"The pilot tried projections on {len(fitting)} of {len(extractor.blocks)} blocks: more would not fit."
    return replace(choice, note=f"{note} {choice.note}".rstrip())


def _best(extractor: Extractor, means: Mapping[str, MeanGradient], candidates: Sequence[Candidate]) -> Choice:
    tried: list[Choice] = []
    for c in candidates:
        tried.append(Choice(c.kind, c.dim, _error(extractor, means, c)))
        if tried[-1].error < MOST_ERROR:
            return tried[-1]
    best = min(tried, key=lambda c: math.inf if math.isnan(c.error) else c.error)
    return Choice(best.kind, best.dim, best.error, _too_coarse(best))


def _fitting(blocks: Sequence[Block], n_means: int, budget: int) -> list[str]:
    """All blocks, or as many as fit into `budget` bytes, in an order drawn once: evenly spaced ones could all be of one
    kind."""
    names, taken = [], 0
    for k in np.random.default_rng(0).permutation(len(blocks)):
        taken += n_means * 4 * math.prod(blocks[k].shape)
        if taken > budget:
            break
        names.append(blocks[k].name)
    return names


def _too_coarse(best: Choice) -> str:
    if math.isnan(best.error):
        return f"The projection was not chosen by a pilot: its means have no cosine. Taken: {best.kind}, {best.dim}."
    return (
        f"No projection that was tried keeps the error of block means below {MOST_ERROR}; the best, "
        f"{best.kind} {best.dim}, has {best.error:.3f}. What that does to a number is in its projection_se; "
        "--projection exact has none."
    )


def kept_choice(
    folder: Path,
    extractor: Extractor,
    encoded: Mapping[str, EncodedSet],
    *,
    batch_tokens: int,
    overwrite: bool = False,
) -> Choice:
    """The choice of a run: what it was begun with, else a new one, which is kept in the folder.

    With `overwrite`, that of other inputs is not taken over.
    """
    wanted = _digest(extractor, encoded)
    path = folder / FILE
    if path.is_file():
        content = read_json(path)
        if content.get("inputs") == wanted or not overwrite:
            return _read(content, path)
    elif begun := _begun_with(folder, encoded):
        return begun
    choice = choose(extractor, encoded, batch_tokens=batch_tokens)
    error = None if math.isnan(choice.error) else choice.error
    with disk_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {**asdict(choice), "error": error, "inputs": wanted})
    return choice


def _read(content: Mapping[str, object], path: Path) -> Choice:
    match content:
        case {"kind": str(kind), "dim": int(dim), "error": float() | int() | None as error, "note": str(note)}:
            return Choice(kind, dim, math.nan if error is None else float(error), note)
    raise DataError(f"{path} does not say which projection the run has. Delete it, or give --projection and --dim.")


def _begun_with(folder: Path, encoded: Mapping[str, EncodedSet]) -> Choice | None:
    """The projection of the signals that are in the folder already."""
    for role in encoded:
        if is_store(folder / role):
            match read_json(folder / role / MANIFEST):
                case {"space": {"projection": str(kind), "dim": int(dim)}}:
                    return Choice(kind, dim)
    return None


def _roles(encoded: Mapping[str, EncodedSet]) -> list[str]:
    return [role for role in ROLES if role in encoded]


def pilot_rows(encoded: Mapping[str, EncodedSet], role: str) -> tuple[Encoded, ...]:
    """Evenly spaced rows of a set; of left and right those that have a partner, where there are such."""
    rows = encoded[role].rows
    other = {"left": "right", "right": "left"}.get(role, "")
    if other in encoded:
        ids = {r.id for r in encoded[other].rows}
        rows = tuple(r for r in rows if r.id in ids) or rows
    n = min(len(rows), MOST_ROWS, max(2, math.ceil(SHARE * len(rows))))
    return tuple(rows[k * len(rows) // n] for k in range(n))


def _digest(extractor: Extractor, encoded: Mapping[str, EncodedSet]) -> str:
    rows = [r.digest for role in _roles(encoded) for r in pilot_rows(encoded, role)]
    return digest_of([repr(extractor.space), extractor.provenance("").weights, *rows])


def _means(extractor: Extractor, encoded: Mapping[str, EncodedSet], *, batch_tokens: int) -> dict[str, MeanGradient]:
    out: dict[str, MeanGradient] = {}
    for role in _roles(encoded):
        rows, out[role] = pilot_rows(encoded, role), MeanGradient()
        for batch in reversed(batches(rows, batch_tokens=batch_tokens)):
            extractor.measure([rows[i] for i in batch], mean=out[role])
    return out


def _error(extractor: Extractor, means: Mapping[str, MeanGradient], candidate: Candidate) -> float:
    """Root mean square over blocks, of the cosine of left and right and of that of their difference with safety."""
    projector = make_projector(candidate.kind, candidate.dim, extractor.space.seed)
    squares: list[float] = []
    for b in extractor.blocks:
        exact = _stacked(means.values(), b.block)
        short = projector.rows(b.block, Dense(exact)).double()
        errors = _cosines(short) - _cosines(exact.flatten(1))
        squares += (errors[torch.isfinite(errors)] ** 2).tolist()
    return math.sqrt(sum(squares) / len(squares)) if squares else math.nan


def _stacked(means: Iterable[MeanGradient], block: Block) -> Float[Tensor, "*_"]:
    return torch.stack([m.totals[block.name].double() / m.counts[block.name] for m in means])


def _cosines(rows: Float[Tensor, "m k"]) -> Float[Tensor, " c"]:
    """Of the first two rows, and of their difference with the third if there is one."""
    pairs = [(rows[0], rows[1])] if len(rows) > 1 else []
    pairs += [(rows[0] - rows[1], rows[2])] if len(rows) > 2 else []
    return torch.stack([x @ y / x.norm() / y.norm() for x, y in pairs]) if pairs else rows.new_zeros(0)


def _free(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else int(psutil.virtual_memory().available)
