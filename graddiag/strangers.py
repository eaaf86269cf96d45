"""How good is the projection for rows that are no partners: exact products of a few, chosen by chance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from graddiag._shards import Identity
from graddiag.encoding import Encoded, EncodedSet
from graddiag.extraction import stream
from graddiag.extractor import Extractor
from graddiag.interrupt import Interrupted, deferred_stop
from graddiag.jobs import Chunk, Job
from graddiag.signals import PairProducts
from graddiag.store import commit, describe, prepare, read_pairs

MOST = 8  # pairs: enough for the size of an error, not for more digits of it
ROWS_PER_PAIR = 40  # of a run: two rows more for each forty are one in twenty

Pair = tuple[Encoded, Encoded]


def choose_strangers(left: EncodedSet, right: EncodedSet, *, seed: int = 0) -> tuple[Pair, ...]:
    """Left and right rows that are no partners, in turn of one cluster and of two, where there are such.

    One pair for each 40 rows of both sets, at least 1 and at most 8; no row is in two of them. `seed` draws them.
    """
    n = min(MOST, max(1, (len(left.rows) + len(right.rows)) // ROWS_PER_PAIR))
    rng = np.random.default_rng([seed, n])
    lefts, rights = ([side.rows[i] for i in rng.permutation(len(side.rows))] for side in (left, right))
    clusters = {r.id: r.cluster for r in right.rows} | {r.id: r.cluster for r in left.rows}
    chosen: list[Pair] = []
    for k in range(n):
        wanted, anyone = (_strangers(lefts, rights, clusters, same) for same in (k % 2 == 0, None))
        pair = next(wanted, None) or next(anyone, None)
        if pair is None:
            break
        chosen.append(pair)
        lefts, rights = [r for r in lefts if r is not pair[0]], [r for r in rights if r is not pair[1]]
    return tuple(chosen)


def _strangers(
    lefts: list[Encoded], rights: list[Encoded], clusters: dict[str, str], same_cluster: bool | None
) -> Iterator[Pair]:
    """Rows of different ids whose clusters (a paired right row has that of its partner) are the same or not."""
    by_cluster: dict[str, list[Encoded]] = {}
    for b in rights:
        by_cluster.setdefault(clusters[b.id], []).append(b)
    for a in lefts:
        mine = clusters[a.id]
        here = by_cluster.get(mine, []) if same_cluster is not False else []
        elsewhere = (b for c, rows in by_cluster.items() if c != mine for b in rows) if same_cluster is not True else ()
        yield from ((a, b) for b in (*here, *elsewhere) if a.id != b.id)


def measure_strangers(
    extractor: Extractor,
    left: EncodedSet,
    right: EncodedSet,
    folder: Path,
    *,
    batch_tokens: int,
    overwrite: bool = False,
) -> PairProducts | None:
    """Exact products of a few pairs of strangers, saved batch by batch; what is there already is not measured again.

    The projection's seed draws them. None where no two rows are strangers. Raises DataError where the folder holds
    something else.
    """
    pairs = choose_strangers(left, right, seed=extractor.projector.seed)
    if not pairs:
        return None
    names = f"strangers of {left.name} and {right.name}"
    rows = [(a.id, b.id, f"{a.digest} {b.digest}") for a, b in pairs]
    shards = prepare(
        {folder: describe(Identity(extractor.space, extractor.provenance(names)), rows)}, overwrite=overwrite
    )
    done = set(read_pairs(folder).left_ids) if shards else set()
    todo = _job(left, right, tuple(p for p in pairs if p[0].id not in done))
    with deferred_stop() as stop:
        for number, chunk in enumerate(_measured(extractor, todo, batch_tokens), start=shards):
            commit(number, {folder: chunk.pairs})
            if stop.number:
                raise Interrupted(stop.number)
    return read_pairs(folder)


def _job(left: EncodedSet, right: EncodedSet, pairs: tuple[Pair, ...]) -> Job:
    rows = tuple(row for pair in pairs for row in pair)
    units = tuple((2 * k, 2 * k + 1) for k in range(len(pairs)))
    sides = (replace(left, rows=rows[0::2]), replace(right, rows=rows[1::2]))
    return Job(sides, rows, (0, 1) * len(pairs), units)


def _measured(extractor: Extractor, job: Job, batch_tokens: int) -> Iterator[Chunk]:
    yield from stream(extractor, job, batch_tokens=batch_tokens) if job.units else ()
