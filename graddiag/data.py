"""What a set of examples is, and how one is read from a name, a file, the hub or the caller's rows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import islice
from numbers import Number

from graddiag._sources import BUILT_IN_SETS, BuiltInSet, Row, Source, Unreadable, open_source
from graddiag.errors import DataError, UsageError
from graddiag.text import visible

__all__ = ["BUILT_IN_SETS", "BuiltInSet", "Example", "ExampleSet", "Message", "Source", "read_set"]

ROLES = ("system", "developer", "user", "assistant", "tool")
_TARGET_ROLE = "assistant"
_USED = ("role", "content")
_QUOTE = 60  # characters of a data set's text that an error message shows
_COLUMNS = 20  # column names that an error message lists
_EXAMPLES_OF_SKIPS = 3
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_MODULUS = re.compile(r"mod:(.*)", re.DOTALL)


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


@dataclass(frozen=True)
class ExampleSet:
    """The examples of a set in the order of their source; `notes` say what was left out or not used, counted."""

    name: str
    examples: tuple[Example, ...]
    notes: tuple[str, ...] = ()


class BadRow(Exception):
    """One row cannot be used. The text continues "row 3 ..."; `advice` is what to do, a sentence."""

    def __init__(self, reason: str, advice: str = "Mend or remove the row.") -> None:
        super().__init__(reason)
        self.advice = advice


@dataclass
class BadRows:
    """The unusable rows of a set: the first one is an error, or all are counted where they may be skipped."""

    name: str
    skip: bool
    found: list[str] = field(default_factory=list)

    def add(self, place: str, why: BadRow) -> None:
        """Counts a row; raises DataError with the reason unless rows may be skipped."""
        if not self.skip:
            raise DataError(
                f"{visible(self.name)}: {place} {why}. {why.advice} "
                "Or leave unusable rows out with --skip-bad-rows (in Python, skip_bad_rows=True)."
            ) from why
        self.found.append(f"{place} {why}")

    def notes(self, kept: int) -> tuple[str, ...]:
        """How many rows were left out, and why the first three were; raises DataError where none was kept."""
        n = kept + len(self.found)
        rest = len(self.found) - _EXAMPLES_OF_SKIPS
        first = "; ".join(self.found[:_EXAMPLES_OF_SKIPS]) + (f"; and {rest} more" if rest > 0 else "")
        if not kept:
            why = f"none of its {n} rows can be used: {first}" if n else "it has no rows"
            raise DataError(f"{visible(self.name)}: {why}. A set needs at least one usable row.")
        return (f"{visible(self.name)}: {len(self.found)} of {n} rows were left out: {first}.",) if self.found else ()


def shown(value: object) -> str:
    """A value from a data set as an error message may show it: quoted, short, nothing invisible in it."""
    return visible(repr(value), limit=_QUOTE)


@dataclass(frozen=True)
class _Read:
    """An example, and what was not in its row or not used of it."""

    example: Example
    has_id: bool
    has_cluster: bool
    unused: frozenset[str]


def read_set(
    source: Source,
    *,
    name: str | None = None,
    limit: int | None = None,
    cluster: str | None = None,
    skip_bad_rows: bool = False,
    first: int = 0,
) -> ExampleSet:
    """The examples of a built-in set, a file, a hub dataset, a `datasets.Dataset` or an iterable of rows.

    A row is `{"messages": [{"role", "content"}, ...]}` (a JSON string will do; it wins where both forms are there) or
    `{"prompt", "completion"}`, two texts or two lists of messages. Its id is its `id`, else its number in the source,
    counted from 0. Its cluster is its `cluster`, else its id; `cluster="COLUMN"` takes another column and
    `cluster="mod:N"` the row number modulo N. `limit` keeps
    the first rows of the source, before bad ones are skipped. `first` is the number of the first row.

    Raises DataError for the first row that cannot be used (with `skip_bad_rows` they are left out, and a note counts
    them) and for a set without usable rows; UsageError for an unknown source and an impossible limit or modulus.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: a set needs at least one row. Give a number above 0, or no limit.")
    opened = open_source(source)
    bad = BadRows(name or opened.name, skip_bad_rows)
    rows = _read_all(islice(opened.rows, limit), cluster, bad, first)
    return ExampleSet(bad.name, tuple(r.example for r in rows), bad.notes(len(rows)) + _notes(bad.name, rows))


def _read_all(rows: Iterable[Row | Unreadable], cluster: str | None, bad: BadRows, start: int) -> list[_Read]:
    modulus = _modulus(cluster)
    column = None if modulus else cluster
    read: list[_Read] = []
    number_of: dict[str, int] = {}
    for number, row in enumerate(rows, start):
        try:
            one = read_row(row, number, column, modulus)
            first = number_of.setdefault(one.example.id, number)
            if first != number:
                raise BadRow(f"has the same id as row {first}", "Make ids unique: pairs go by them.")
            read.append(one)
        except BadRow as why:
            bad.add(_place(number, row), why)
    return read


def _modulus(cluster: str | None) -> int | None:
    """The N of "mod:N"; None where the option is no such rule."""
    found = _MODULUS.fullmatch(cluster or "")
    if found is None:
        return None
    if not re.fullmatch("0*[1-9][0-9]{0,8}", found[1]):
        raise UsageError(f"--cluster {shown(cluster)}: after 'mod:' comes a whole number above 0, as in mod:30.")
    return int(found[1])


def _place(number: int, row: Row | Unreadable) -> str:
    given = row.get("id") if isinstance(row, Mapping) else None
    return f"row {number}" if given is None else f"row {number} (id {shown(given)})"


def read_row(row: Row | Unreadable, number: int, column: str | None, modulus: int | None) -> _Read:
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
    return _Read(example, given is not None, group is not None, unused)


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
        return [{"role": "user", "content": prompt}, {"role": _TARGET_ROLE, "content": completion}]
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
    if messages[-1].role != _TARGET_ROLE:
        raise BadRow(f"has no answer: its last message is of role {messages[-1].role!r}, not {_TARGET_ROLE!r}")
    if not messages[-1].content.strip():
        raise BadRow("has an empty answer")
    if len(messages) == 1:
        raise BadRow("has an answer but no message before it")


def _notes(name: str, rows: Sequence[_Read]) -> tuple[str, ...]:
    several = sum(sum(m.role == _TARGET_ROLE for m in r.example.messages) > 1 for r in rows)
    no_id, no_cluster = sum(not r.has_id for r in rows), sum(not r.has_cluster for r in rows)
    fields = sorted({f for r in rows for f in r.unused})
    said = [
        (several, "have several assistant turns: the last is the target"),
        (sum(bool(r.unused) for r in rows), f"have parts of messages that are not used: {visible(', '.join(fields))}"),
        (no_id % len(rows), "have no id: their row numbers are used"),
        (no_cluster % len(rows), "have no cluster: each is one of its own"),
    ]
    return tuple(f"{visible(name)}: {count} of {len(rows)} rows {what}." for count, what in said if count)
