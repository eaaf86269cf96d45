"""What does a chat template print behind an answer, and how many tokens of a row are that?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int32

from graddiag.encoding import Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER = "graddiag"  # an answer that no template prints of its own
_CONVERSATION = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}]


def closing_tokens(tokenizer: PreTrainedTokenizerBase) -> Int32[np.ndarray, " c"]:
    """The tokens that the template prints after an answer: the end of turn, and perhaps a newline. There may be none.

    They are targets of the loss and the same in every row: states there are not states of an answer.
    """
    text = str(tokenizer.apply_chat_template(_CONVERSATION, tokenize=False))
    _, _, closing = text.rpartition(_ANSWER)
    return np.array(tokenizer(closing, add_special_tokens=False)["input_ids"], dtype=np.int32)


def answer_length(row: Encoded, closing: Int32[np.ndarray, " c"]) -> int | None:
    """Tokens of the row's answer, without the closing behind it, at least 1.

    None where the row does not end in the closing, nor, if it was cut, in a beginning of it: the tokenizer merges
    answer and closing, and they cannot be told apart.
    """
    kept = max(len(closing) - row.n_cut, 0)
    n = row.n_targets - kept
    if n < 1 or not np.array_equal(row.tokens[row.start + n :], closing[:kept]):
        return None
    return n
