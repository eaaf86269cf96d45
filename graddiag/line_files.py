"""Files of one JSON document a line, to which a run appends: a line is there wholly, or is not read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from graddiag.errors import DataError
from graddiag.files import write_atomically

Json = Mapping[str, object]


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Appends the lines, each by one write; a piece of a line that a crash left at the end is removed first."""
    if not lines:
        return
    with path.open("ab+", buffering=0) as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        for line in lines:
            raw = line.encode() + b"\n"
            while raw:
                raw = raw[file.write(raw) :]


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Writes a file of these lines, whole or not at all."""
    text = "".join(f"{line}\n" for line in lines)
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def whole_lines(path: Path) -> list[str]:
    """The lines of a file, without a last one that was cut off; none where there is no file."""
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []


def read_line(path: Path, line: str) -> Json:
    """The document of a line. Raises DataError where it is none."""
    try:
        content: Json = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path} has a line that is no JSON ({error}). Remove that line.") from error
    return content
