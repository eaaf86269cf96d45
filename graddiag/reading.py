"""What does a model make of given rows, without any gradient: token losses, and hidden states at chosen sites."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graddiag.capture import untouched
from graddiag.closing import answer_length, closing_tokens
from graddiag.data import Source, read_set
from graddiag.decoder_layers import at_outputs, chosen_layers
from graddiag.encoding import Encoded, EncodedSet, batches, encode
from graddiag.errors import DataError
from graddiag.extraction import BATCH_TOKENS, MAX_NONFINITE, check_finite, provenance_of, row_length
from graddiag.extractor import FULL_LOGITS
from graddiag.forward import check_in_memory, collate, input_device, memory_named, shortest
from graddiag.head import Batch, SplitModel, head_agrees, loss_and_backward, split_model
from graddiag.measured import Array, Measured, numpy_of, wide_numpy
from graddiag.models import template_digest, tokenizer_digest
from graddiag.signals import ONLY_READ, Provenance, Signals, Space
from graddiag.sites import Site, check_position, first_tokens, parse_site, sites_of

FIRST_TOKENS = ("first:10",)  # the mean over so many answer tokens is what the paper's direction is read from


@dataclass(frozen=True)
class Reader:
    """A model made ready to be read at the sites of its space; `split` is None where the head cannot be run alone.

    `closing` are the tokens that the template prints behind an answer: they are in the loss, and in no state.
    """

    model: PreTrainedModel
    split: SplitModel | None
    closing: Array
    layers: Mapping[int, nn.Module]
    space: Space
    provenance: Provenance

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know about how it is done."""
        return () if self.split or split_model(self.model) is None else (FULL_LOGITS,)

    def read(self, rows: Sequence[Encoded]) -> Measured:
        """One batch. Raises ResourceError where memory runs out, DataError where a layer gave no states."""
        batch = collate(rows, input_device(self.model), whole=True)
        weights = self._weights(rows, batch)
        found: dict[int, Array] = {}

        def see(layer: int, states: Tensor) -> None:
            if states.shape[:2] != batch.tokens.shape:
                raise DataError(f"Decoder layer {layer} gave states {list(states.shape)} for {len(rows)} rows.")
            wide = states if states.dtype == torch.float64 else states.float()
            found[layer] = wide_numpy(torch.bmm(weights.to(wide.device, wide.dtype), wide))  # [b, position, d]

        with untouched(self.model), torch.no_grad(), memory_named(batch), at_outputs(self.layers, see):
            losses = loss_and_backward(self.model, self.split, batch, backward=False)
        silent = self.layers.keys() - found.keys()
        if silent:
            raise DataError(
                f"Decoder layer {min(silent)} took no part in the forward pass as a module. Pass the model as it was "
                "before torch.compile, or leave the layer out."
            )
        token_loss = tuple(numpy_of(x) for x in losses)
        states = {s.name: found[s.layer][:, self._positions.index(s.position)] for s in self._sites}
        return Measured(token_loss, {}, {}, {}, {}, {}, None, states=states)

    @property
    def _sites(self) -> tuple[Site, ...]:
        return tuple(parse_site(name) for name in self.space.states)

    @property
    def _positions(self) -> list[str]:
        return list(dict.fromkeys(s.position for s in self._sites))

    def _weights(self, rows: Sequence[Encoded], batch: Batch) -> Float[Tensor, "b p t"]:
        """The weight of every token in the mean at each position; the weights of a row sum to 1."""
        weights = torch.zeros(len(rows), len(self._positions), batch.tokens.shape[1], dtype=torch.float64)
        for i, row in enumerate(rows):
            for p, position in enumerate(self._positions):
                start, stop = span(row, self.closing, position)
                weights[i, p, start:stop] = 1 / (stop - start)
        return weights


def span(row: Encoded, closing: Array, position: str) -> tuple[int, int]:
    """The tokens of a row that a position means: from the first of them to the one behind the last."""
    n = answer_length(row, closing) or row.n_targets
    end = row.start + n
    if position == "last_prompt":
        return row.start - 1, row.start
    if position == "last_answer":
        return end - 1, end
    first = first_tokens(position)
    return row.start, end if first is None else min(end, row.start + first)


def reader(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[str] = FIRST_TOKENS,
    max_length: int | None = None,
    name: str | None = None,
    revision: str | None = None,
) -> Reader:
    """A reader of the states at these layers (all by default) and positions; `name` is the model's.

    Raises UsageError for a layer that the model lacks and for an unknown position, DataError for offloaded weights.
    """
    check_in_memory(model)
    chosen = chosen_layers(model, layers) if positions else {}
    sites = sites_of(list(chosen), [check_position(p) for p in positions])
    space = Space(
        tokenizer=tokenizer_digest(tokenizer),
        template=template_digest(tokenizer),
        target="answer",
        max_length=row_length(model, max_length),
        blocks=(),
        projection=ONLY_READ,
        dim=0,
        seed=0,
        probe="",
        dtype=str(model.dtype).removeprefix("torch."),
        states=tuple(s.name for s in sites),
    )
    about = provenance_of(model, name, revision)
    return Reader(model, split_model(model), closing_tokens(tokenizer), chosen, space, about)


def stream_states(
    of: Reader, one: EncodedSet, *, done: frozenset[str] = frozenset(), batch_tokens: int = BATCH_TOKENS
) -> Iterator[Signals]:
    """The rows that are not done yet, a batch at a time, rows of like length together, the longest first."""
    rows = [r for r in one.rows if r.id not in done]
    about = replace(of.provenance, data=one.name)
    for index in reversed(batches(rows, batch_tokens=batch_tokens)):  # too long a row fails at once
        batch = [rows[i] for i in index]
        yield of.read(batch).table(range(len(batch)), batch, of.space, about)


def read_rows(of: Reader, one: EncodedSet, *, batch_tokens: int = BATCH_TOKENS) -> Signals:
    """The whole set at once, its rows in the order given. Raises as `Reader.read`."""
    table = Signals.concat(stream_states(of, one, batch_tokens=batch_tokens))
    where = {i: k for k, i in enumerate(table.ids)}
    return table.take([where[r.id] for r in one.rows])


def checked_reader(of: Reader, rows: Sequence[Encoded]) -> Reader:
    """The reader, its head run apart only if that gives the model's own loss on the shortest of these rows."""
    if of.split is None or not rows:
        return of
    batch = shortest(collate([min(rows, key=lambda r: len(r.tokens))], input_device(of.model)))
    with untouched(of.model), torch.no_grad(), memory_named(batch):
        return of if head_agrees(of.model, of.split, batch) else replace(of, split=None)


def reading_notes(of: Reader, one: EncodedSet) -> tuple[str, ...]:
    """What a reader of the table must know of how the rows were read."""
    merged = sum(answer_length(r, of.closing) is None for r in one.rows)
    said = f"{one.name}: in {merged} of {len(one.rows)} rows the end of turn cannot be told apart from the answer; "
    return (*of.notes, *((said + "it counts as part of it.",) if merged else ()))


def read_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Source,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[str] = FIRST_TOKENS,
    max_length: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    name: str | None = None,
    skip_bad_rows: bool = False,
) -> Signals:
    """Token losses and hidden states of some examples, one row each, in the order given; no gradients.

    `layers` are decoder layers, counted from 0, all by default; `positions` as in `graddiag.sites.Site`, none for
    losses alone. `states["12/first:10"]` is [n, d], float32 (float64 of a float64 model); only what is asked for is
    kept. `name` is the set's. The model is left as it was.

    What was left out or cut is counted in a warning. Raises DataError for examples that cannot be used and for more
    than 1 % of rows without a finite loss and states; UsageError for an unknown layer or position; ResourceError where
    memory runs out.
    """
    read = read_set(examples, name=name, skip_bad_rows=skip_bad_rows)
    of = reader(model, tokenizer, layers=layers, positions=positions, max_length=max_length)
    one = encode(read, tokenizer, max_length=of.space.max_length, skip_bad_rows=skip_bad_rows)
    of = checked_reader(of, one.rows)
    table = read_rows(of, one, batch_tokens=batch_tokens)
    check_finite(table, MAX_NONFINITE)
    for note in (*read.notes, *one.notes, *table.warnings, *reading_notes(of, one)):
        warnings.warn(note, stacklevel=2)
    return table
