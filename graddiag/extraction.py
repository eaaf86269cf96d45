"""From a model and sets of examples to Signals, in memory or shard by shard on disk."""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graddiag.blocks import select_blocks
from graddiag.data import Source, read_set
from graddiag.encoding import Encoded, EncodedSet, batches, encode
from graddiag.errors import DataError, UsageError
from graddiag.extractor import Extractor
from graddiag.mean_gradient import KnownMean, MeanGradient
from graddiag.models import default_max_length, model_context, model_digest, template_digest, tokenizer_digest
from graddiag.progress import Progress
from graddiag.projection import make_projector, probe_digest
from graddiag.signals import PairProducts, Provenance, Signals, Space

BATCH_TOKENS = 2048  # padded tokens per batch: larger ones were not faster on a CPU and need more memory
SHARD_ROWS = 512
SHARD_SECONDS = 60.0
MAX_NONFINITE = 0.01  # share of rows without a finite loss and gradient above which a set is refused
VERSIONS_OF = ("graddiag", "torch", "transformers")


@dataclass(frozen=True)
class Job:
    """Rows to be measured together: of one set, or of two whose pairs share a batch. `side[i]` is the set of row i."""

    sets: tuple[EncodedSet, ...]
    rows: tuple[Encoded, ...]
    side: tuple[int, ...]
    units: tuple[tuple[int, ...], ...]

    @staticmethod
    def single(one: EncodedSet) -> Job:
        """Every row for itself."""
        return Job((one,), one.rows, (0,) * len(one.rows), tuple((i,) for i in range(len(one.rows))))

    @staticmethod
    def paired(left: EncodedSet, right: EncodedSet) -> Job:
        """Rows of the same id are a unit (left, right); rows without a partner are units of their own."""
        partner = {r.id: len(left.rows) + k for k, r in enumerate(right.rows)}
        units = [(i, partner.pop(r.id)) if r.id in partner else (i,) for i, r in enumerate(left.rows)]
        units += [(j,) for j in partner.values()]
        side = (0,) * len(left.rows) + (1,) * len(right.rows)
        return Job((left, right), (*left.rows, *right.rows), side, tuple(units))

    @property
    def tokens(self) -> int:
        """All tokens of all rows."""
        return sum(len(r.tokens) for r in self.rows)

    def without(self, ids: set[str]) -> Job:
        """The units that are not done yet."""
        return Job(self.sets, self.rows, self.side, tuple(u for u in self.units if self.rows[u[0]].id not in ids))


@dataclass(frozen=True)
class Chunk:
    """Some finished rows: one table per set of the job, and the exact products of the pairs among them."""

    tables: tuple[Signals, ...]
    pairs: PairProducts

    @staticmethod
    def concat(chunks: Sequence[Chunk]) -> Chunk:
        """The chunks one after the other."""
        tables = tuple(Signals.concat(t) for t in zip(*(c.tables for c in chunks), strict=True))
        return Chunk(tables, PairProducts.concat([c.pairs for c in chunks]))


def extract(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Source,
    *,
    blocks: Sequence[str] | None = None,
    projection: str = "logra",
    dim: int = 256,
    seed: int = 0,
    target: str = "answer",
    max_length: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    name: str | None = None,
    skip_bad_rows: bool = False,
    max_nonfinite: float = MAX_NONFINITE,
) -> Signals:
    """Per-example losses, exact gradient norms and gradients of some examples, one row each, in the order given.

    `blocks` are patterns on parameter or module names, default every linear weight inside the decoder layers. With
    `projection="exact"`, `gradients[block]` is the flattened gradient; otherwise a row of at most `dim` numbers. The
    loss of a row is the mean over its own target tokens, nats per token. The model is left as it was, no `.grad` is
    written.

    What was left out or cut is counted in a warning. Raises DataError for examples that cannot be used and for more
    than `max_nonfinite` rows without a finite loss and
    gradient; UsageError for an unknown block, projection or target; ResourceError where memory runs out.
    """
    read = read_set(examples, name=name, skip_bad_rows=skip_bad_rows)
    extractor = ready(
        model, tokenizer, blocks=blocks, projection=projection, dim=dim, seed=seed, target=target, max_length=max_length
    )
    encoded = encode(read, tokenizer, target=target, max_length=extractor.space.max_length, skip_bad_rows=skip_bad_rows)
    chunk = Chunk.concat(list(stream(extractor, Job.single(encoded), batch_tokens=batch_tokens)))
    signals = chunk.tables[0].take(_positions(chunk.tables[0].ids, [r.id for r in encoded.rows]))
    check_finite(signals, max_nonfinite)
    for note in (*read.notes, *encoded.notes, *signals.warnings, *extractor.notes):
        warnings.warn(note, stacklevel=2)
    return signals


def ready(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    blocks: Sequence[str] | None,
    projection: str,
    dim: int,
    seed: int,
    target: str,
    max_length: int | None,
    name: str | None = None,
    revision: str | None = None,
) -> Extractor:
    """An extractor for the chosen blocks, with the space in which its rows live; `name` is the model's, as the user
    gave it."""
    chosen = select_blocks(model, blocks)
    projector = make_projector(projection, dim, seed)
    space = Space(
        tokenizer=tokenizer_digest(tokenizer),
        template=template_digest(tokenizer),
        target=target,
        max_length=_length(model, max_length),
        blocks=tuple(b.block for b in chosen),
        projection=projector.kind,
        dim=projector.dim,
        seed=projector.seed,
        probe=probe_digest(projector),
        dtype=str(model.dtype).removeprefix("torch."),
    )
    provenance = Provenance(
        model=name or model.config.name_or_path or type(model).__name__,
        revision=revision or "",
        weights=model_digest(model),
        data="",
        versions=tuple((v, importlib.metadata.version(v)) for v in VERSIONS_OF),
    )
    return Extractor(model, chosen, projector, space, provenance)


def _length(model: PreTrainedModel, asked: int | None) -> int:
    """The greatest number of tokens of a row. Raises UsageError where the model's context does not hold it."""
    if asked is None:
        return default_max_length(model)
    try:
        context = model_context(model)
    except UsageError:  # it does not state one: what the user says must do
        context = sys.maxsize
    if not 2 <= asked <= context:
        raise UsageError(f"--max-length {asked}: this model takes 2 to {context} tokens.")
    return asked


def stream(
    extractor: Extractor,
    job: Job,
    *,
    batch_tokens: int = BATCH_TOKENS,
    exact_pairs: bool = True,
    known: KnownMean | None = None,
    mean: MeanGradient | None = None,
    progress: Progress | None = None,
) -> Iterator[Chunk]:
    """The job's rows, a batch at a time, rows of like length together; both members of a pair are in one batch."""
    partner = {u[0]: u[1] for u in job.units if len(u) == 2} if exact_pairs else {}
    for batch in reversed(
        batches(job.rows, batch_tokens=batch_tokens, units=job.units)
    ):  # too long a row fails at once
        rows = [job.rows[i] for i in batch]
        position = {i: k for k, i in enumerate(batch)}
        firsts = [i for i in batch if i in partner]
        pairs = [(position[i], position[partner[i]]) for i in firsts]
        measured = extractor.measure(rows, pairs=pairs, known=known, mean=mean)
        tables = []
        for s, one in enumerate(job.sets):
            index = [k for k, i in enumerate(batch) if job.side[i] == s]
            tables.append(measured.table(index, rows, extractor.space, extractor.provenance(one.name)))
        left_ids, right_ids = ([job.rows[i].id for i in side] for side in (firsts, [partner[i] for i in firsts]))
        yield Chunk(tuple(tables), measured.pairs(left_ids, right_ids))
        if progress:
            progress.advance(sum(len(r.tokens) for r in rows))


def check_finite(signals: Signals, allowed: float) -> None:
    """Raises DataError where more than a share `allowed` of the rows has no finite loss and gradient, or none has."""
    bad = [i for i, ok in zip(signals.ids, signals.finite, strict=True) if not ok]
    if len(bad) == len(signals) or len(bad) > allowed * len(signals):
        raise DataError(
            f"{signals.provenance.data}: {len(bad)} of {len(signals)} rows have a loss or gradient that is not finite "
            f"(ids {', '.join(bad[:5])}); at most {allowed:.0%} may (--max-nonfinite). Try --dtype "
            "float32, or look at these rows."
        )


def _positions(have: Sequence[str], wanted: Sequence[str]) -> list[int]:
    where = {i: k for k, i in enumerate(have)}
    return [where[i] for i in wanted]
