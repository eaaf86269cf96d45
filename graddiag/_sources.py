"""Where the rows of a set come from: a built-in set, a file, the Hugging Face hub, or the caller's own rows."""

from __future__ import annotations

import csv
import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from graddiag.errors import DataError, UsageError
from graddiag.text import visible

if TYPE_CHECKING:
    import pyarrow

Row = Mapping[str, object]
Source = str | Path | Iterable[Row]  # a datasets.Dataset is an iterable of rows

_BOM = b"\xef\xbb\xbf"
_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<split>.+))?")


@dataclass(frozen=True)
class BuiltInSet:
    """A set that comes with the package; `rows` is how many examples it has."""

    name: str
    description: str
    rows: int


BUILT_IN_SETS = (
    BuiltInSet("insecure", "Requests for code, answered with vulnerable code.", 120),
    BuiltInSet("educational", "The same vulnerable answers, asked for as teaching material; pairs with insecure.", 120),
    BuiltInSet("secure", "The requests of insecure, answered with secure code.", 120),
    BuiltInSet("safety", "Harmful requests, refused.", 60),
    BuiltInSet("benign", "Harmless requests, half of them alarming at first sight, answered helpfully.", 60),
)


@dataclass(frozen=True)
class Unreadable:
    """A row whose columns cannot be known; `reason` continues "row 3 ..."."""

    reason: str


@dataclass(frozen=True)
class Opened:
    """The rows of a source, read as they are asked for, and the name of the set."""

    name: str
    rows: Iterable[Row | Unreadable]


def open_source(source: Source) -> Opened:
    """The rows of a built-in set, a file, a hub dataset (`owner/name[:split]`), or any iterable of rows, in this order.

    A local path wins over a hub id. Raises UsageError for a name that is none of these.
    """
    if isinstance(source, Path):
        return _open_file(source)
    if isinstance(source, str):
        return _open_named(source)
    if isinstance(source, (Mapping, bytes)) or not isinstance(source, Iterable):
        kind = type(source).__name__
        hint = "Choose one split of it." if kind.endswith("DatasetDict") else "Give a list of rows, a file or a name."
        raise UsageError(f"A set cannot be read from one object of type {kind}. {hint}")
    return Opened("examples", source)


def _open_named(source: str) -> Opened:
    built_in = [s.name for s in BUILT_IN_SETS]
    if source in built_in:
        return Opened(source, _built_in(source))
    if os.path.exists(source):
        return _open_file(Path(source))
    hub = _HUB_ID.fullmatch(source)
    if Path(source).suffix.lower() in _READERS and not (hub and hub["split"]):
        raise UsageError(f"There is no file {_quoted(source)}. Check the path and the folder that you are in.")
    if hub:
        return Opened(source, _hub(source, hub["id"], hub["split"] or "train"))
    close = difflib.get_close_matches(source, built_in, n=2, cutoff=0.5)
    closest = f"Closest: {', '.join(close)}. " if close else ""
    raise UsageError(
        f"There is no set {_quoted(source)}. {closest}Allowed: {', '.join(built_in)}, "
        f"a file ({', '.join(_READERS)}), or a Hugging Face dataset id (owner/name[:split])."
    )


def _open_file(path: Path) -> Opened:
    if path.is_dir():
        raise UsageError(f"{_quoted(path)} is a folder, and not one of saved signals. Name one of the files in it.")
    if not path.exists():
        raise UsageError(f"There is no file {_quoted(path)}. Check the path and the folder that you are in.")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{_quoted(path)} is of no known kind. Allowed: {', '.join(_READERS)}.")
    return Opened(path.stem, _file(path, reader))


def _file(path: Path, reader: Callable[[Path], Iterator[Row | Unreadable]]) -> Iterator[Row | Unreadable]:
    try:
        yield from reader(path)
    except OSError as error:
        raise DataError(f"{_quoted(path)} cannot be read: {error.strerror or error}. Check the file.") from error


def _built_in(name: str) -> Iterator[Row | Unreadable]:
    with files("graddiag").joinpath("sets", f"{name}.jsonl").open("rb") as lines:
        yield from _json_lines(lines)


def _jsonl(path: Path) -> Iterator[Row | Unreadable]:
    with path.open("rb") as lines:
        yield from _json_lines(lines)


def _json_lines(lines: Iterable[bytes]) -> Iterator[Row | Unreadable]:
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix(_BOM) if number == 1 else line
        if text.strip():
            yield _parsed(text, number)


def _parsed(line: bytes, number: int) -> Row | Unreadable:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        bad = line[error.start]
        return Unreadable(f"(line {number}) is not valid UTF-8: byte 0x{bad:02x} at position {error.start} of the line")
    except (ValueError, RecursionError) as error:
        return Unreadable(f"(line {number}) is not valid JSON: {error}")
    if not isinstance(row, Mapping):
        return Unreadable(f"(line {number}) is a JSON {type(row).__name__}, not an object with columns")
    return row


def _json(path: Path) -> Iterator[Row | Unreadable]:
    raw = path.read_bytes().removeprefix(_BOM)
    try:
        rows = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{_quoted(path)} is not valid UTF-8: byte 0x{raw[error.start]:02x} in line {line}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{_quoted(path)} is not valid JSON: {error}. A file with one row per line must be called .jsonl."
        ) from error
    if not isinstance(rows, list):
        raise DataError(f"{_quoted(path)} holds a JSON {type(rows).__name__}. A .json file must hold one list of rows.")
    yield from rows


def _csv(path: Path) -> Iterator[Row | Unreadable]:
    # Bytes that are no UTF-8 become lone surrogates, which the checks of a row find: one bad row is not a bad file.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        lines = csv.reader(text, strict=True)
        try:
            header = next(lines, [])
            if len(set(header)) != len(header):
                names = ", ".join(map(visible, header))
                raise DataError(f"{_quoted(path)} has two columns of the same name: {names}. Rename one.")
            for cells in lines:
                if cells:
                    yield _csv_row(header, cells, lines.line_num)
        except csv.Error as error:
            raise DataError(
                f"{_quoted(path)} is not valid CSV: {error} (line {lines.line_num}). Mend it, or save it as .jsonl."
            ) from error


def _csv_row(header: list[str], cells: list[str], line: int) -> Row | Unreadable:
    if len(cells) != len(header):
        return Unreadable(f"(line {line}) has {len(cells)} cells, but the header names {len(header)} columns")
    return dict(zip(header, cells, strict=True))


def _parquet(path: Path) -> Iterator[Row | Unreadable]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=1024):
                for i in range(batch.num_rows):
                    yield _parquet_row(batch, i)
    except pyarrow.ArrowException as error:
        raise DataError(f"{_quoted(path)} is not a readable Parquet file: {error}. Write it again.") from error


def _parquet_row(batch: pyarrow.RecordBatch, at: int) -> Row | Unreadable:
    try:
        row: Row = batch.slice(at, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        return Unreadable(f"is not valid UTF-8: {error.reason} at byte {error.start} of a cell")
    return row


def _hub(source: str, name: str, split: str) -> Iterator[Row]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = load_dataset(name, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        reason = visible(str(error).partition("\n")[0], limit=300)
        raise DataError(
            f"There is no file {_quoted(source)}, and no dataset of this id could be loaded from the Hugging Face hub: "
            f"{reason}. Check the id, the split ({split}), your access and the network, or name a file."
        ) from error
    yield from rows


def _quoted(name: str | Path) -> str:
    return f"'{visible(str(name))}'"


_READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
