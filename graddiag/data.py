"""What a set of examples is, and how one is read from a name, a file, the hub or the caller's rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from graddiag._sources import BUILT_IN_SETS, BuiltInSet, Row, Source, Unreadable, open_source
from graddiag.errors import DataError, UsageError
from graddiag.example_rows import TARGET_ROLE, BadRow, Example, Message, ReadRow, read_row, shown
from graddiag.text import visible

__all__ = ["BUILT_IN_SETS", "BuiltInSet", "Example", "ExampleSet", "Message", "Source", "read_set"]

_EXAMPLES_OF_SKIPS = 3
_MODULUS = re.compile(r"mod:(.*)", re.DOTALL)


@dataclass(frozen=True)
class ExampleSet:
    """The examples of a set in the order of their source; `notes` say what was left out or not used, counted."""

    name: str
    examples: tuple[Example, ...]
    notes: tuple[str, ...] = ()


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


def _read_all(rows: Iterable[Row | Unreadable], cluster: str | None, bad: BadRows, start: int) -> list[ReadRow]:
    modulus = _modulus(cluster)
    column = None if modulus else cluster
    read: list[ReadRow] = []
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


def _notes(name: str, rows: Sequence[ReadRow]) -> tuple[str, ...]:
    several = sum(sum(m.role == TARGET_ROLE for m in r.example.messages) > 1 for r in rows)
    no_id, no_cluster = sum(not r.has_id for r in rows), sum(not r.has_cluster for r in rows)
    fields = sorted({f for r in rows for f in r.unused})
    said = [
        (several, "have several assistant turns: the last is the target"),
        (sum(bool(r.unused) for r in rows), f"have parts of messages that are not used: {visible(', '.join(fields))}"),
        (no_id % len(rows), "have no id: their row numbers are used"),
        (no_cluster % len(rows), "have no cluster: each is one of its own"),
    ]
    return tuple(f"{visible(name)}: {count} of {len(rows)} rows {what}." for count, what in said if count)
