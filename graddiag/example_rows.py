"""What a row of a data set must hold, and the conversation that it is."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from numbers import Number

from graddiag._sources import Row, Unreadable
from graddiag.text import visible

ROLES = ("system", "developer", "user", "assistant", "tool")
TARGET_ROLE = "assistant"
_USED = ("role", "content")
_QUOTE = 60  # characters of a data set's text that an error message shows
_COLUMNS = 20  # column names that an error message lists
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """One conversation; its last message is the assistant's answer, and something comes before it."""

    id: str
    cluster: str
    messages: tuple[Message, ...]


class BadRow(Exception):
    """One row cannot be used. The text continues "row 3 ..."; `advice` is what to do, a sentence."""

    def __init__(self, reason: str, advice: str = "Mend or remove the row.") -> None:
        super().__init__(reason)
        self.advice = advice


@dataclass(frozen=True)
class ReadRow:
    """An example, and what was not in its row or not used of it."""

    example: Example
    has_id: bool
    has_cluster: bool
    unused: frozenset[str]


def read_row(row: Row | Unreadable, number: int, column: str | None, modulus: int | None) -> ReadRow:
    """The example of a row. Raises BadRow where it cannot be used."""
    if isinstance(row, Unreadable):
        raise BadRow(row.reason)
    if not isinstance(row, Mapping):
        raise BadRow(f"is of type {type(row).__name__}, not a mapping of columns")
    given = _label(row, "id")
    own = str(number) if given is None else given
    group = str(number % modulus) if modulus else _label(row, column or "cluster")
    if group is None and column is not None:
        raise BadRow(
            f"has nothing in the cluster column {shown(column)}; {_columns(row)}", "Name a column that is there."
        )
    turns = _turns(row)
    messages = tuple(_message(turn, k) for k, turn in enumerate(turns))
    _check_answer(messages)
    unused = frozenset(k for turn in turns if isinstance(turn, Mapping) for k in _unused(turn))
    example = Example(own, own if group is None else group, messages)
    return ReadRow(example, given is not None, group is not None, unused)


def _unused(turn: Row) -> list[str]:
    """Keys of a message that hold something and are not read."""
    held = {k: v for k, v in turn.items() if k not in _USED and v is not None}
    return [str(k) for k, v in held.items() if not isinstance(v, Sized) or len(v)]


def _label(row: Row, column: str) -> str | None:
    """The text or number in a column as text; None where there is nothing in it."""
    value = row.get(column)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, (str, Number)):
        raise BadRow(f"has {column!r} of type {type(value).__name__}; it must be a text or a number")
    _check_text(str(value), f"its {column!r}")
    return str(value) or None


def _turns(row: Row) -> Sequence[object]:
    """The row's messages, not checked yet."""
    if row.get("messages") is not None:
        return _list(_unpacked(row["messages"]), "messages")
    prompt, completion = row.get("prompt"), row.get("completion")
    if prompt is None or completion is None:
        raise BadRow(
            f"has neither 'messages' nor both 'prompt' and 'completion'; {_columns(row)}",
            "Rename the columns, or build the messages.",
        )
    if isinstance(prompt, str) and isinstance(completion, str):
        return [{"role": "user", "content": prompt}, {"role": TARGET_ROLE, "content": completion}]
    if isinstance(prompt, str) or isinstance(completion, str):
        raise BadRow(
            "has a text and a list as 'prompt' and 'completion'; both must be texts, or both lists of messages"
        )
    return [*_list(prompt, "prompt"), *_list(completion, "completion")]


def _unpacked(messages: object) -> object:
    """The messages, out of their JSON string if they come in one."""
    if not isinstance(messages, str):
        return messages
    try:
        return json.loads(messages)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"has 'messages' that are a text and not valid JSON ({error}): {shown(messages)}") from error


def _list(value: object, column: str) -> list[object]:
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise BadRow(f"has {column!r} of type {type(value).__name__}, not a list of {{'role', 'content'}}")
    return list(value)


def _columns(row: Row, kind: str = "columns") -> str:
    names = [visible(str(k), limit=_QUOTE) for k in row]
    rest = f" and {len(names) - _COLUMNS} more" if len(names) > _COLUMNS else ""
    return f"the {kind} there are {', '.join(names[:_COLUMNS])}{rest}" if names else f"there are no {kind}"


def _message(turn: object, number: int) -> Message:
    where = f"message {number}"
    if not isinstance(turn, Mapping):
        raise BadRow(f"has a {where} of type {type(turn).__name__}, not {{'role', 'content'}}")
    role, content = turn.get("role"), turn.get("content")
    if role is None or content is None:
        missing = "role" if role is None else "content"
        raise BadRow(f"has a {where} without {missing!r}; {_columns(turn, 'keys')}")
    if not isinstance(content, str):
        raise BadRow(f"has a {where} whose content is of type {type(content).__name__}; it must be a text")
    if role not in ROLES:
        raise BadRow(f"has a {where} of the unknown role {shown(role)}; allowed are {', '.join(ROLES)}")
    _check_text(content, f"the content of {where}")
    return Message(str(role), content)


def _check_text(text: str, what: str) -> None:
    if "\0" in text:
        raise BadRow(f"has a NUL character in {what}, at {_around(text, text.index(chr(0)))}")
    lone = _SURROGATE.search(text)
    if lone:
        raise BadRow(
            f"has the lone surrogate {shown(lone[0])} in {what}, which is no valid Unicode text",
            "Mend or remove the row; a file must be saved as UTF-8.",
        )


def _around(text: str, at: int) -> str:
    return shown(text[max(at - 10, 0) : at + 11])


def _check_answer(messages: Sequence[Message]) -> None:
    if not messages:
        raise BadRow("has no messages")
    if messages[-1].role != TARGET_ROLE:
        raise BadRow(f"has no answer: its last message is of role {messages[-1].role!r}, not {TARGET_ROLE!r}")
    if not messages[-1].content.strip():
        raise BadRow("has an empty answer")
    if len(messages) == 1:
        raise BadRow("has an answer but no message before it")


def shown(value: object) -> str:
    """A value from a data set as an error message may show it: quoted, short, nothing invisible in it."""
    return visible(repr(value), limit=_QUOTE)
