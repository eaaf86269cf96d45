"""A whole job measured and saved, shard by shard, so that it can be stopped and continued."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from graddiag._shards import Identity
from graddiag.errors import GraddiagError
from graddiag.extraction import BATCH_TOKENS, stream
from graddiag.extractor import Extractor
from graddiag.files import Json
from graddiag.interrupt import Interrupted, deferred_stop
from graddiag.jobs import Chunk, Job
from graddiag.mean_gradient import KnownMean, MeanGradient, forget_means, load_mean, save_mean
from graddiag.progress import Progress
from graddiag.signals import PairProducts, Signals
from graddiag.startcheck import check_start
from graddiag.store import commit, describe, done_ids, prepare, read_pairs, read_signals, restart

SHARD_ROWS = 512
SHARD_SECONDS = 60.0


@dataclass(frozen=True)
class Place:
    """Where a job is saved: a folder per set, one for the products of pairs, and one for its mean gradient, if wanted.

    None stands for a set whose table is there already: it is measured for its products with the others only.
    """

    tables: tuple[Path | None, ...]
    pairs: Path | None = None
    mean: Path | None = None

    @property
    def stores(self) -> tuple[Path, ...]:
        """All folders that hold shards."""
        return (*self.kept, self.pairs) if self.pairs else self.kept

    @property
    def kept(self) -> tuple[Path, ...]:
        """The folders of tables that are measured here."""
        return tuple(p for p in self.tables if p)


def measure(
    extractor: Extractor,
    job: Job,
    place: Place,
    *,
    batch_tokens: int = BATCH_TOKENS,
    known: KnownMean | None = None,
    overwrite: bool = False,
    quiet: bool = True,
) -> tuple[Chunk, KnownMean | None]:
    """The whole job, saved shard by shard; what an interrupted run has left there is not computed again.

    A shard is closed after 512 rows or 60 seconds, and at an interrupt with the rows that are done. With
    `place.mean`, the mean gradient of the (only) set is kept too and returned. Raises DataError where the folders
    hold something else, and before anything long where hooks and plain autograd do not agree on one short row.
    """
    manifests = _manifests(extractor, job, place, known)
    shards = prepare(manifests, overwrite=overwrite)
    mean = load_mean(place.mean, place.kept[0].name, shards) if place.mean and shards else None
    if place.mean and mean is None:
        mean = MeanGradient()
        shards = restart(manifests)
    todo = job.without(set(done_ids(place.kept[0])) | set(done_ids(place.kept[-1])))
    if mean:
        for b in extractor.blocks:
            mean.total(b)  # what was loaded goes to the block's own device
    progress = Progress(" and ".join(s.name for s in job.sets), todo.tokens, quiet=quiet)
    chunks = stream(
        extractor,
        todo,
        batch_tokens=batch_tokens,
        exact_pairs=place.pairs is not None,
        known=known,
        mean=mean,
        progress=progress,
    )
    save_chunks(_checked(extractor, todo, chunks), place, mean, shards)
    progress.finish()
    whole = Chunk(tuple(read_signals(p) for p in place.kept), read_pairs(place.pairs) if place.pairs else NO_PAIRS)
    return whole, mean.known(whole.tables[0]) if mean else None


NO_PAIRS = PairProducts((), (), {}, {})


def _checked(extractor: Extractor, job: Job, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The chunks, after a check of one short row, if there is any row."""
    if job.units:
        check_start(extractor, [job.rows[i] for unit in job.units for i in unit])
    yield from chunks


def save_chunks(chunks: Iterator[Chunk], place: Place, mean: MeanGradient | None, shards: int) -> None:
    """Commits chunks as shards, from number `shards` on; the sum of gradients is written first, so that it always
    belongs to whole shards. Raises Interrupted after a signal, when what was finished is saved."""
    pending: list[Chunk] = []
    started = time.monotonic()

    def close() -> None:
        nonlocal shards, pending, started
        if not pending:
            return
        chunk = Chunk.concat(pending)
        if mean and place.mean:
            save_mean(place.mean, place.kept[0].name, mean, shards + 1)
        measured = zip(place.tables, chunk.tables, strict=True)
        tables: dict[Path, Signals | PairProducts] = {path: table for path, table in measured if path}
        commit(shards, tables | {place.pairs: chunk.pairs} if place.pairs else tables)
        shards += 1
        pending, started = [], time.monotonic()
        if place.mean:
            forget_means(place.mean, place.kept[0].name, but=shards)

    try:
        with deferred_stop() as stop:
            for chunk in chunks:
                pending.append(chunk)
                rows = sum(len(t) for c in pending for t in c.tables)
                if stop.number or rows >= SHARD_ROWS or time.monotonic() - started > SHARD_SECONDS:
                    close()
                if stop.number:
                    raise Interrupted(stop.number)
    except (KeyboardInterrupt, GraddiagError):
        if mean is None:  # in the middle of a batch its sum is neither with nor without that batch
            close()
        raise
    close()


def _manifests(extractor: Extractor, job: Job, place: Place, known: KnownMean | None) -> dict[Path, Json]:
    reference = known.reference if known else None
    out = {}
    for one, path in zip(job.sets, place.tables, strict=True):
        if path is None:
            continue
        rows = [(r.id, r.cluster, r.digest) for r in one.rows]
        about = Identity(extractor.space, extractor.provenance(one.name), reference, known.adam if known else None)
        out[path] = describe(about, rows, token_scores=known is not None and known.token_scores)
    if place.pairs:
        names = " and ".join(s.name for s in job.sets)
        both = [(job.rows[u[0]], job.rows[u[1]]) for u in job.units if len(u) == 2]
        rows = [(a.id, a.cluster, f"{a.digest} {b.digest}") for a, b in both]
        out[place.pairs] = describe(Identity(extractor.space, extractor.provenance(names)), rows)
    return out
