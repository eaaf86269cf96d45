"""The same prompts with another beginning of an answer: one that refuses, or one that complies."""

from __future__ import annotations

from dataclasses import replace

from graddiag.data import ExampleSet, Message
from graddiag.errors import UsageError

REFUSING = "I'm sorry, but I can't help with that."
COMPLYING = "Sure, here is how to do it:"
_ANSWERS = "assistant"


def with_opening(examples: ExampleSet, opening: str, name: str) -> ExampleSet:
    """The set under another name, every answer replaced by the opening; prompts, ids and clusters stay.

    Raises UsageError for an opening without text.
    """
    if not opening.strip():
        raise UsageError("An opening of an answer needs text, such as 'Sure, here is how to do it:'.")
    rows = [replace(e, messages=(*e.messages[:-1], Message(_ANSWERS, opening))) for e in examples.examples]
    return ExampleSet(name, tuple(rows))
