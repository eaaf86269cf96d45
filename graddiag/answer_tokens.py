"""Do models with different tokenizers read the same answers as the same tokens? Asked before any is loaded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import zip_longest

from transformers import PreTrainedTokenizerBase

from graddiag._digests import rules_digest, tokenizer_digest
from graddiag.data import ExampleSet
from graddiag.encoding import Encoded, encode
from graddiag.errors import DataError
from graddiag.example_rows import shown
from graddiag.model_set import ModelSet
from graddiag.outline import Outline


def check_same_answers(
    models: ModelSet, sets: Sequence[ExampleSet], *, max_length: int | None, skip_bad_rows: bool = False
) -> None:
    """Raises DataError unless all models' tokenizers cut every answer into the same pieces of text, under the same ids.

    Rows are matched by these pieces, so prompts may be tokenized otherwise, and a tokenizer may have tokens that no
    answer contains. Of answers that were cut, what both have is compared. Tokenizers with one digest are not asked.
    """
    (first, a), *others = models.models.items()
    for role, b in others:
        if tokenizer_digest(a.tokenizer) == tokenizer_digest(b.tokenizer):
            continue
        for one in sets:
            x, y = (
                {
                    r.id: r
                    for r in encode(one, t, max_length=max_length or sys.maxsize, skip_bad_rows=skip_bad_rows).rows
                }
                for t in (a.tokenizer, b.tokenizer)
            )
            for i in (i for i in x if i in y):
                at = _first_difference(x[i], a.tokenizer, y[i], b.tokenizer)
                if at is not None:
                    where = f"token {at} of the answer of row {shown(i)} in {one.name}"
                    raise DataError(_refusal(f"{first} ({a.name})", a, f"{role} ({b.name})", b, where))


def _first_difference(
    a: Encoded, of_a: PreTrainedTokenizerBase, b: Encoded, of_b: PreTrainedTokenizerBase
) -> int | None:
    """The number of the first target token, from 0, whose id or text is not the same; None where there is none."""
    pieces = _pieces(a, of_a), _pieces(b, of_b)
    both = zip(*pieces, strict=False) if a.n_cut or b.n_cut else zip_longest(*pieces)
    return next((k for k, (x, y) in enumerate(both) if x != y), None)


def _pieces(row: Encoded, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, str]]:
    ids = row.tokens[row.start :].tolist()
    return list(zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True))


def _refusal(first: str, a: Outline, second: str, b: Outline, where: str) -> str:
    alike = rules_digest(a.tokenizer) == rules_digest(b.tokenizer)
    how = "have other begin or end tokens" if alike else "turn text into different tokens"
    advice = (
        "--lend-template gives a base the tokenizer of the aligned model." if alike else "Give models of one family."
    )
    return (
        f"The tokenizers of {first} and {second} {how}: {where} is not the same under both, so rows cannot be matched. "
        f"{advice}"
    )
