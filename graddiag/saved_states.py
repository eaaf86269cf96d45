"""Hidden states and losses of a set, saved shard by shard, so that reading can be stopped and continued."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from graddiag._shards import Identity
from graddiag.encoding import EncodedSet
from graddiag.extraction import BATCH_TOKENS, MAX_NONFINITE, check_finite
from graddiag.jobs import Chunk
from graddiag.measurement import NO_PAIRS, Place, save_chunks
from graddiag.progress import Progress
from graddiag.reading import Reader, checked_reader, stream_states
from graddiag.signals import Signals
from graddiag.store import describe, done_ids, prepare, read_signals


def store_states(
    of: Reader,
    one: EncodedSet,
    folder: Path,
    *,
    batch_tokens: int = BATCH_TOKENS,
    overwrite: bool = False,
    quiet: bool = True,
    max_nonfinite: float = MAX_NONFINITE,
) -> Signals:
    """The whole set read and saved in the folder; rows that an interrupted run has left there are not read again.

    Raises DataError where the folder holds something else (with `overwrite` it is replaced), and for more than
    `max_nonfinite` rows without a finite loss and states; Interrupted after a signal, when finished rows are saved.
    """
    rows = [(r.id, r.cluster, r.digest) for r in one.rows]
    shards = prepare(
        {folder: describe(Identity(of.space, replace(of.provenance, data=one.name)), rows)}, overwrite=overwrite
    )
    done = frozenset(done_ids(folder))
    todo = [r for r in one.rows if r.id not in done]
    progress = Progress(one.name, sum(len(r.tokens) for r in todo), quiet=quiet)
    of = checked_reader(of, todo)

    def chunks() -> Iterator[Chunk]:
        for table in stream_states(of, one, done=done, batch_tokens=batch_tokens):
            yield Chunk((table,), NO_PAIRS)
            progress.advance(int(table.length.sum()))

    save_chunks(chunks(), Place((folder,)), None, shards)
    progress.finish()
    whole = read_signals(folder)
    check_finite(whole, max_nonfinite)
    return whole
