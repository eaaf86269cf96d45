"""What a single token looks like."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from graddiag.encoding import EncodedSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANCHOR = "a"  # a token before the one that is decoded: some tokenizers drop the space of the first


def target_texts(sets: Iterable[EncodedSet], tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The text of every token that is a target in one of the sets, by its id; special tokens by their name.

    Part of a character that takes several tokens is shown as the replacement character.
    """
    return texts_of({int(i) for one in sets for row in one.rows for i in row.tokens[row.start :]}, tokenizer)


def texts_of(tokens: Iterable[int], tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The text of each of these tokens, as `target_texts` shows it, by its id in rising order."""
    ids = sorted(set(tokens))
    anchor = list(tokenizer(_ANCHOR, add_special_tokens=False)["input_ids"])
    start = _text(tokenizer, anchor)
    return {i: _after(start, _text(tokenizer, [*anchor, i]), _text(tokenizer, [i])) for i in ids}


def _after(start: str, whole: str, alone: str) -> str:
    return whole.removeprefix(start) if whole.startswith(start) else alone


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
