"""Every set of a run read under one model after the other, saved; what must be known of it gathers on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from graddiag.closing import answer_length
from graddiag.data import ExampleSet
from graddiag.encoding import EncodedSet, encode
from graddiag.erosion_generation import Asking
from graddiag.erosion_next_tokens import NextTokens
from graddiag.erosion_safety import SafetyGradient
from graddiag.erosion_sets import ErosionSets
from graddiag.erosion_setting import ALIGNED, FIRST, MODELS, PROMPT, TUNED, ErosionSetting, table_folder
from graddiag.errors import DataError
from graddiag.model_set import Turn
from graddiag.preparation import model_name
from graddiag.reading import Reader, reader, reading_notes
from graddiag.saved_states import store_states
from graddiag.signals import Space, check_same_space


@dataclass
class Reading:
    """Every set read under one model after the other; what must be known of it gathers here."""

    sets: ErosionSets
    folder: Path
    layers: Sequence[int] | None
    max_length: int | None
    batch_tokens: int
    max_nonfinite: float
    skip_bad_rows: bool
    overwrite: bool
    quiet: bool
    ask: Asking | None
    next: NextTokens
    gradient: SafetyGradient | None
    names: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    endings: dict[str, int] = field(default_factory=dict)
    space: Space | None = None

    def read(self, turn: Turn) -> None:
        """All sets under one model, saved. Raises DataError where a row cannot be encoded before any is read."""
        self.names[turn.role] = model_name(turn.name)
        whole = self._reader(turn, (FIRST, PROMPT))
        self.digests[turn.role] = whole.provenance.weights
        self._check_space(whole)
        losses = self._reader(turn, ())
        rows = [(whole, self._encoded(s, turn.tokenizer, whole)) for s in self.sets.own]
        openings = [(losses, self._encoded(s, turn.tokenizer, losses)) for s in self.sets.opened]
        if openings:
            self.endings[turn.role] = _ending([e for _, e in openings], losses)
            self._check_endings()
        for of, one in (*rows, *openings):
            self._store(of, one, turn.role)
        self.next.read(turn, losses, [one for _, one in rows])
        if self.gradient is not None:
            self.gradient.read(turn, [one for _, one in rows])
        if self.ask is not None:
            self.ask.read(turn, [one for _, one in rows], weights=whole.provenance.weights)

    def losses(self, turn: Turn) -> tuple[Reader, dict[str, EncodedSet]]:
        """A reader of losses alone, and every set with its own answers, by name."""
        of = self._reader(turn, ())
        return of, {s.name: self._encoded(s, turn.tokenizer, of) for s in self.sets.own}

    def setting(self, openings: tuple[str, str]) -> ErosionSetting:
        """What must be kept of the models and sets that were read, so that the report needs neither."""
        return ErosionSetting(
            models={role: self.names[role] for role in MODELS if role in self.names},
            parts=self.sets.parts,
            controls=self.sets.controls,
            openings=openings if self.sets.opened else ("", ""),
            ending=self.ending,
            notes=tuple(dict.fromkeys((*self.sets.notes, *self.notes))),
            generation=self.ask.generation if self.ask else None,
        )

    def _check_space(self, of: Reader) -> None:
        """Raises DataError where this model's tables could not be compared with the first one's; a model may have a
        chat template or a tokenizer of its own."""
        self.space = self.space or of.space
        first, last = next(iter(self.names)), next(reversed(self.names))
        own = replace(of.space, template=self.space.template, tokenizer=self.space.tokenizer)
        check_same_space(self.space, own, f"The {first} model's tables", f"the {last} model's")

    def _store(self, of: Reader, one: EncodedSet, role: str) -> None:
        table = store_states(
            of,
            one,
            table_folder(self.folder, role, one.name),
            batch_tokens=self.batch_tokens,
            overwrite=self.overwrite,
            quiet=self.quiet,
            max_nonfinite=self.max_nonfinite,
        )
        self.notes += [*one.notes, *reading_notes(of, one), *table.warnings]

    def _reader(self, turn: Turn, positions: tuple[str, ...]) -> Reader:
        return reader(
            turn.model,
            turn.tokenizer,
            layers=self.layers,
            positions=positions,
            max_length=self.max_length,
            name=model_name(turn.name),
        )

    def _encoded(self, one: ExampleSet, tokenizer: PreTrainedTokenizerBase, of: Reader) -> EncodedSet:
        return encode(one, tokenizer, max_length=of.space.max_length, skip_bad_rows=self.skip_bad_rows)

    def _check_endings(self) -> None:
        known = {self.endings[r] for r in (TUNED, ALIGNED) if r in self.endings}
        if len(known) > 1:
            raise DataError(
                f"The chat templates of the aligned and the tuned model print {self.endings[ALIGNED]} and "
                f"{self.endings[TUNED]} tokens behind an answer: openings cannot be compared. Give both models one "
                "chat template."
            )

    @property
    def ending(self) -> int | None:
        """How many tokens the template prints behind an opening; None where no openings were read."""
        return self.endings.get(ALIGNED)


def _ending(openings: Sequence[EncodedSet], of: Reader) -> int:
    """Tokens behind an opening that are the template's; 0 where they cannot be told apart from it."""
    rows = [r for one in openings for r in one.rows]
    return len(of.closing) if all(answer_length(r, of.closing) is not None for r in rows) else 0
