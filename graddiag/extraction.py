"""From a model and sets of examples to Signals, in memory."""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graddiag.adam import OptimizerState
from graddiag.bases import Given, first_kind, measured_bases, on_bases, read_reference
from graddiag.blocks import select_blocks
from graddiag.data import ExampleSet, Source, read_set
from graddiag.encoding import EncodedSet, batches, encode
from graddiag.errors import DataError, UsageError
from graddiag.extractor import Extractor
from graddiag.forward import check_in_memory
from graddiag.heap import give_back
from graddiag.jobs import Chunk, Job
from graddiag.mean_gradient import KnownMean, MeanGradient
from graddiag.models import default_max_length, model_context, model_digest, template_digest, tokenizer_digest
from graddiag.optimizer_state import read_optimizer
from graddiag.progress import Progress
from graddiag.projection import Bases, make_projector, probe_digest
from graddiag.signals import Provenance, Signals, Space

BATCH_TOKENS = 2048  # padded tokens per batch: larger ones were not faster on a CPU and need more memory
MAX_NONFINITE = 0.01  # share of rows without a finite loss and gradient above which a set is refused
VERSIONS_OF = ("graddiag", "torch", "transformers")


def extract(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Source,
    *,
    blocks: Sequence[str] | None = None,
    projection: str = "logra",
    dim: int = 256,
    seed: int = 0,
    reference: Given = None,
    target: str = "answer",
    max_length: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    name: str | None = None,
    skip_bad_rows: bool = False,
    max_nonfinite: float = MAX_NONFINITE,
    safety: Source | None = None,
    token_scores: bool = False,
    optimizer: Optimizer | str | Path | None = None,
) -> Signals:
    """Per-example losses, exact gradient norms and gradients of some examples, one row each, in the order given.

    `blocks` are patterns on parameter or module names, default every linear weight inside the decoder layers. With
    `projection="exact"`, `gradients[block]` is the flattened gradient; otherwise a row of at most `dim` numbers;
    `"lowrank"` needs a `reference`: examples whose mean gradient says where to look, the folder of a run, or bases. The
    loss of a row is the mean over its own target tokens, nats per token. The model is left as it was, no `.grad` is
    written.

    With a `safety` set, rows also have their exact products with its mean gradient (`reference_dot`), and with
    `token_scores` these by position (`token_alignment`: through which position, never which token caused it). With an
    `optimizer` too (live, or where its state is saved), also the exact products of what each row would add to Adam's
    next step (`adam_dot`, `adam_norm`, `adam_step_norm`).

    What was left out or cut is counted in a warning. Raises DataError for examples that cannot be used and where more
    than a share `max_nonfinite` of the rows has no finite loss and gradient; UsageError for an unknown block,
    projection or target, and for what needs a safety set without one; ResourceError where memory runs out.
    """
    check_safety_given(safety is not None, token_scores=token_scores, optimizer=optimizer is not None)
    read, known_reference = read_set(examples, name=name, skip_bad_rows=skip_bad_rows), read_reference(reference)
    bases = known_reference if isinstance(known_reference, Bases) else None
    extractor = ready(
        model,
        tokenizer,
        blocks=blocks,
        projection=projection if known_reference is None else first_kind(projection, dim, seed, bases or reference),
        dim=dim,
        seed=seed,
        target=target,
        max_length=max_length,
        bases=bases,
    )
    length = extractor.space.max_length
    tokens_of = partial(encode, tokenizer=tokenizer, target=target, max_length=length, skip_bad_rows=skip_bad_rows)
    encoded = tokens_of(read)
    if isinstance(known_reference, ExampleSet):
        rows = tokens_of(known_reference).rows
        extractor = on_bases(extractor, measured_bases(extractor, rows, batch_tokens=batch_tokens))
    known = None
    if safety is not None:
        safe, state = tokens_of(read_set(safety, skip_bad_rows=skip_bad_rows)), state_for(extractor, optimizer)
        at_hand = state.at_hand(extractor.blocks) if state else None
        mean = _mean_of(extractor, safe, batch_tokens=batch_tokens, max_nonfinite=max_nonfinite)
        known = mean.wanting(token_scores=token_scores, optimizer=at_hand)
    signals = _in_memory(extractor, encoded, batch_tokens=batch_tokens, known=known)
    check_finite(signals, max_nonfinite)
    for note in (*read.notes, *encoded.notes, *signals.warnings, *extractor.notes):
        warnings.warn(note, stacklevel=2)
    return signals


def check_safety_given(given: bool, *, token_scores: bool, optimizer: bool) -> None:
    """Raises UsageError where something is asked for that needs the mean gradient of a safety set, and there is
    none."""
    asked = [name for name, on in (("--token-scores", token_scores), ("--optimizer", optimizer)) if on]
    if asked and not given:
        raise UsageError(
            f"{' and '.join(asked)} needs the mean safety gradient: give the safety set too (--safety), by its name or "
            "as rows. Saved signals do not hold the mean."
        )


def state_for(extractor: Extractor, optimizer: Optimizer | str | Path | None) -> OptimizerState | None:
    """The state of an optimizer for the extractor's blocks; what must be said of it is noted there."""
    if optimizer is None:
        return None
    state = read_optimizer(optimizer, extractor.model, extractor.blocks)
    extractor.notes += state.notes
    return state


def _mean_of(extractor: Extractor, safe: EncodedSet, *, batch_tokens: int, max_nonfinite: float) -> KnownMean:
    """The mean gradient of the safety set."""
    mean = MeanGradient()
    table = _in_memory(extractor, safe, batch_tokens=batch_tokens, mean=mean)
    check_finite(table, max_nonfinite)
    return mean.known(table)


def _in_memory(
    extractor: Extractor,
    encoded: EncodedSet,
    *,
    batch_tokens: int,
    known: KnownMean | None = None,
    mean: MeanGradient | None = None,
) -> Signals:
    """A whole set at once, its rows in the order given."""
    chunks = list(stream(extractor, Job.single(encoded), batch_tokens=batch_tokens, known=known, mean=mean))
    table = Chunk.concat(chunks).tables[0]
    return table.take(_positions(table.ids, [r.id for r in encoded.rows]))


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
    bases: Bases | None = None,
) -> Extractor:
    """An extractor for the chosen blocks, with the space in which its rows live; `name` is the model's, as the user
    gave it, `bases` are for the projection `lowrank`."""
    check_in_memory(model)
    chosen = select_blocks(model, blocks)
    projector = make_projector(projection, dim, seed, blocks=[b.block for b in chosen], bases=bases)
    space = Space(
        tokenizer=tokenizer_digest(tokenizer),
        template=template_digest(tokenizer),
        target=target,
        max_length=row_length(model, max_length),
        blocks=tuple(b.block for b in chosen),
        projection=projector.kind,
        dim=projector.dim,
        seed=projector.seed,
        probe=probe_digest(projector),
        dtype=str(model.dtype).removeprefix("torch."),
    )
    return Extractor(model, chosen, projector, space, provenance_of(model, name, revision))


def provenance_of(model: PreTrainedModel, name: str | None, revision: str | None) -> Provenance:
    """Where tables of a model come from, but for their data; `name` is the model's, as the user gave it."""
    return Provenance(
        model=name or model.config.name_or_path or type(model).__name__,
        revision=revision or "",
        weights=model_digest(model),
        data="",
        versions=tuple((v, importlib.metadata.version(v)) for v in VERSIONS_OF),
    )


def row_length(model: PreTrainedModel, asked: int | None) -> int:
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
        give_back()
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
