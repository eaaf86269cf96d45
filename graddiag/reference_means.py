"""The mean gradients that a set is screened with: those of the halves of the safety set, and of harmful answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from graddiag.answers import by_answer
from graddiag.encoding import EncodedSet
from graddiag.errors import ResourceError
from graddiag.extraction import check_finite
from graddiag.extractor import Extractor
from graddiag.jobs import Job
from graddiag.mean_gradient import KnownMean
from graddiag.measurement import Place, measure
from graddiag.projection import Toward
from graddiag.ranking import Means
from graddiag.running import memory_for_means
from graddiag.signals import digest_of


@dataclass(frozen=True)
class Known:
    """An extractor whose rows are exact products with some mean gradients, what these are, and what must be said."""

    extractor: Extractor
    means: Means
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Saving:
    """How measured rows are saved: as in `measurement.measure`."""

    batch_tokens: int
    overwrite: bool
    quiet: bool


def measure_references(
    extractor: Extractor, sets: Mapping[str, EncodedSet], folder: Path, saving: Saving, *, max_nonfinite: float
) -> Known:
    """The means of the halves of each set ("safety", "harmful"), saved in the folder, which a later call continues.

    Raises ResourceError where they do not fit into memory, DataError where rows are not finite or the folder holds
    something else.
    """
    only_means = without_rows(extractor)
    parts = {role: halves(one) for role, one in sets.items()}
    _check_memory(extractor, sum(len(p) for p in parts.values()))
    found: list[KnownMean] = []
    places: dict[str, tuple[int, ...]] = {}
    notes: list[str] = []
    for role, some in parts.items():
        places[role] = tuple(range(len(found), len(found) + len(some)))
        for k, one in enumerate(some, start=1):
            place = Place((folder / f"{role}-{k}",), mean=folder / "means")
            chunk, known = measure(only_means, Job.single(one), place, **vars(saving))
            check_finite(chunk.tables[0], max_nonfinite)
            notes += chunk.tables[0].warnings
            assert known is not None
            found.append(known)
    means = Means(_gram(found), tuple(k.reference.n for k in found), places["safety"], places.get("harmful", ()))
    return Known(_toward(only_means, found), means, tuple(notes))


def halves(one: EncodedSet) -> tuple[EncodedSet, ...]:
    """The set in two halves that share no cluster, the next cluster always to the smaller; whole where it has one.

    Where no clusters are named, rows of one answer (target tokens) are one.
    """
    ids, clusters = [r.id for r in one.rows], [r.cluster for r in one.rows]
    if clusters == ids:
        clusters = list(by_answer(ids, [r.tokens[r.start :].tobytes() for r in one.rows]))
    members: dict[str, list[int]] = {}
    for i, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(i)
    if len(members) < 2:
        return (one,)
    sides: tuple[list[int], list[int]] = ([], [])
    for rows in members.values():
        min(sides, key=len).extend(rows)
    return tuple(replace(one, rows=tuple(one.rows[i] for i in sorted(side))) for side in sides)


def without_rows(extractor: Extractor) -> Extractor:
    """The extractor whose rows hold no numbers: it is used for their mean."""
    return _with(extractor, Toward(), "")


def _with(extractor: Extractor, projector: Toward, probe: str) -> Extractor:
    space = replace(extractor.space, projection=projector.kind, dim=projector.dim, seed=0, probe=probe)
    made = Extractor(extractor.model, extractor.blocks, projector, space, extractor.provenance(""))
    made.checked = extractor.checked
    return made


def _toward(extractor: Extractor, known: Sequence[KnownMean]) -> Extractor:
    """The extractor whose rows are products with the known means; other means are another space."""
    probe = digest_of(f"{k.reference.rows} {k.reference.weights}" for k in known)
    made = _with(extractor, Toward(tuple(k.means for k in known)), probe)
    made.notes += [n for n in extractor.notes if n not in made.notes]
    return made


def _gram(known: Sequence[KnownMean]) -> Float[np.ndarray, "r r"]:
    """`<M_r, M_s>` over all blocks, in double precision."""
    gram = np.zeros((len(known), len(known)))
    for r, a in enumerate(known):
        for s, b in enumerate(known[: r + 1]):
            gram[r, s] = gram[s, r] = sum(float((m.double() * b.means[k].double()).sum()) for k, m in a.means.items())
    return gram


def _check_memory(extractor: Extractor, means: int) -> None:
    """Raises ResourceError where the means, and one sum, do not fit into half of the free memory."""
    number = 8 if extractor.model.dtype == torch.float64 else 4  # bytes
    needed = number * (means + 1) * sum(math.prod(b.block.shape) for b in extractor.blocks)
    free = memory_for_means(extractor.blocks[0].parameter.device)
    if needed > free:
        raise ResourceError(
            f"{means} mean gradients of {len(extractor.blocks)} blocks take {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB may be used (half of what is free). Choose fewer blocks with --blocks."
        )
