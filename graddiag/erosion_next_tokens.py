"""The first token of an answer to some prompts, under every model of a run: one short forward pass each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from graddiag.encoding import EncodedSet
from graddiag.erosion_sets import ErosionSets
from graddiag.erosion_setting import ASKED
from graddiag.errors import UsageError
from graddiag.expected_tokens import AfterPrompt, Expected
from graddiag.model_set import Turn
from graddiag.next_tokens import next_log_probabilities, next_token_table
from graddiag.reading import Reader, checked_reader

PROMPTS = 3  # of each set: enough to see what kind of answer begins
TOP = 5  # tokens of each model


@dataclass
class NextTokens:
    """Log-probabilities of the first token after the first `n` prompts of safety and benign, model by model.

    They are read anew whenever a run is continued: the ranks of one model's tokens under another need both whole.
    """

    sets: ErosionSets
    n: int
    found: dict[tuple[str, str], dict[str, Float[np.ndarray, " v"]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.n < 0:
            raise UsageError(f"--next-tokens {self.n}: give the number of prompts of each set, or 0 for none.")

    def read(self, turn: Turn, of: Reader, encoded: Sequence[EncodedSet]) -> None:
        """One pass for every prompt."""
        rows = {e.name: {r.id: r for r in e.rows} for e in encoded}
        for part, i, _ in self._prompts():
            row = rows[self.sets.parts[part]].get(i)
            if row is not None:
                found = next_log_probabilities(checked_reader(of, [row]), row)
                self.found.setdefault((part, i), {})[turn.role] = found

    def tables(self, tokenizer: PreTrainedTokenizerBase, roles: Sequence[str]) -> tuple[AfterPrompt, ...]:
        """The first 5 tokens of each model after every prompt that all models could read.

        Where vocabularies are padded to different sizes, tokens that some model lacks are left out.
        """
        out = []
        for part, i, messages in self._prompts():
            of = self.found.get((part, i), {})
            if of.keys() >= set(roles):
                size = min(len(of[r]) for r in roles)
                table = next_token_table({r: of[r][:size] for r in roles}, tokenizer, k=TOP)
                tokens = tuple(Expected(t.id, t.text, t.log_probability, t.rank) for t in table)
                out.append(AfterPrompt(part, i, messages, tokens))
        return tuple(out)

    def _prompts(self) -> list[tuple[str, str, tuple[tuple[str, str], ...]]]:
        by_name = {s.name: s.examples for s in self.sets.own}
        return [
            (part, e.id, tuple((m.role, m.content) for m in e.messages[:-1]))
            for part in ASKED
            if part in self.sets.parts
            for e in by_name[self.sets.parts[part]][: self.n]
        ]
