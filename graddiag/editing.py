"""A set of examples whose prompts were edited; answers, ids and clusters stay, so that pairs do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from graddiag.data import Example, ExampleSet, Message
from graddiag.edits import Edit
from graddiag.errors import DataError, UsageError
from graddiag.text import visible

_USER = "user"
_SHOWN_ROWS, _SHOWN_END = 3, 80  # prompts, and characters of each, that the error about a missing text shows


def with_edits(sets: Mapping[str, ExampleSet], edits: Sequence[Edit]) -> dict[str, ExampleSet]:
    """The sets by role, and beside each side that is edited its edited copy.

    Raises UsageError where such a side is a table of saved signals, DataError as `edited` does.
    """
    for edit in edits:
        if edit.side not in sets:
            raise UsageError(
                f"The {edit.side} side cannot be edited: it is saved signals, whose prompts are not there. "
                "Give the set that they were measured from."
            )
    return dict(sets) | {edit.role: edited(sets[edit.side], edit) for edit in edits}


def edited(examples: ExampleSet, edit: Edit) -> ExampleSet:
    """The set with the edit made at the end of every row's last user turn; a note counts the rows that it does not fit.

    Such rows stay as they are: they have no user turn, or do not end in the text to strip. Raises DataError, with the
    end of a few prompts, where the edit fits no row.
    """
    rows = [_edited(e, edit) for e in examples.examples]
    n, left_alone = len(rows), sum(r is None for r in rows)
    if left_alone == n:
        raise _fits_no_row(examples, edit)
    kept = tuple(e if r is None else r for e, r in zip(examples.examples, rows, strict=True))
    note = f"{visible(examples.name)}: the edit ({edit.words()}) does not fit {left_alone} of {n} rows; they stay as "
    notes = (note + "they are in the edited comparison too.",) if left_alone else ()
    return ExampleSet(f"{examples.name} (edited)", kept, notes)


def _edited(example: Example, edit: Edit) -> Example | None:
    at = _last_user_turn(example)
    text = None if at is None else edit.of(example.messages[at].content)
    if at is None or text is None:
        return None
    turn = Message(example.messages[at].role, text)
    return replace(example, messages=(*example.messages[:at], turn, *example.messages[at + 1 :]))


def _last_user_turn(example: Example) -> int | None:
    return max((k for k, m in enumerate(example.messages) if m.role == _USER), default=None)


def _fits_no_row(examples: ExampleSet, edit: Edit) -> DataError:
    prompts = [(e.id, e.messages[at].content) for e in examples.examples if (at := _last_user_turn(e)) is not None]
    name = visible(examples.name)
    if not prompts:
        return DataError(f"{name}: no row has a user turn, so there is nothing to edit. Give a set that has.")
    ends = "\n".join(
        f"  {visible(i, limit=_SHOWN_END)}: ...{visible(repr(p[-_SHOWN_END:]))}" for i, p in prompts[:_SHOWN_ROWS]
    )
    return DataError(
        f"{name}: the last user turn of no row ends in {visible(repr(edit.strip))} (--strip-{edit.side}). "
        f"They end in:\n{ends}\nGive the end of the prompts as it stands there, letter by letter."
    )
