"""A set some rows at a time, for sets that need not fit into memory; and the same rows again, as they came."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice

from graddiag._sources import Source, open_source
from graddiag.data import ExampleSet, read_set
from graddiag.errors import UsageError
from graddiag.example_rows import BadRow, read_row

PART_ROWS = 1024  # examples in memory at a time: some megabytes of text


def check_source(source: Source) -> None:
    """Raises UsageError for an iterator: rows are read twice, once to be measured and once to be copied."""
    if isinstance(source, Iterator):
        raise UsageError(
            f"A set cannot be screened from one object of type {type(source).__name__}: its rows are read twice, and "
            "an iterator can be read once. Give a list of rows, a file or a name."
        )


def set_name(source: Source) -> str:
    """What the set is called. Raises UsageError for an unknown source."""
    return open_source(source).name


def read_parts(
    source: Source,
    *,
    rows: int = PART_ROWS,
    limit: int | None = None,
    cluster: str | None = None,
    skip_bad_rows: bool = False,
) -> Iterator[ExampleSet]:
    """The set of `read_set`, at most `rows` rows of its source at a time.

    Raises what `read_set` raises, when it gets there; ids that occur in two parts are not seen here.
    """
    opened = open_source(source)
    coming = iter(opened.rows)
    start = 0
    while limit is None or start == 0 or start < limit:
        some = list(islice(coming, rows))
        if not some and start:
            return
        rest = None if limit is None else limit - start
        yield read_set(
            some,  # type: ignore[arg-type]  # rows that cannot be read are said to be so by read_set
            name=opened.name, limit=rest, cluster=cluster, skip_bad_rows=skip_bad_rows, first=start
        )  # fmt: skip
        start += rows


def rows_as_json(source: Source, limit: int | None = None) -> Iterator[tuple[str, str]]:
    """The id of each usable row of the source, and the row as one line of JSON, in order.

    What JSON has no form for is written as text, and a number that is not finite as null.
    """
    for number, row in enumerate(islice(open_source(source).rows, limit)):
        with suppress(BadRow):
            name = read_row(row, number, None, None).example.id
            yield name, json.dumps(_strict(row), ensure_ascii=False, allow_nan=False)


def _strict(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)
