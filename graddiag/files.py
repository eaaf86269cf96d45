"""Files that are either whole or absent: written under a temporary name, flushed, renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from graddiag.errors import DataError, ResourceError, UsageError

Json = Mapping[str, object]
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)


def write_atomically(path: Path, write: Callable[[Path], object]) -> str:
    """Writes a file under a temporary name, flushes it to disk, renames it; the sha256 of what was written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as f:
            os.fsync(f.fileno())
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return digest


def strict(value: object) -> object:
    """The value with None in the place of every number that is not finite, also inside lists and mappings: JSON has no
    NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: strict(v) for k, v in value.items()}
    return [strict(v) for v in value] if isinstance(value, (list, tuple)) else value


def write_json(path: Path, content: Json) -> None:
    """Writes strict JSON atomically."""
    text = json.dumps(content, allow_nan=False, indent=1) + "\n"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


@contextmanager
def disk_named(path: Path) -> Iterator[None]:
    """Turns a full disk into an error that says what was kept."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            raise UsageError(f"{path} cannot be written ({error.strerror}). Choose another --out.") from error
        if not full and "No space left" not in str(error):  # safetensors reports the system's words only
            raise
        raise ResourceError(
            f"The disk is full while writing to {path}. All finished shards are kept: make room and "
            "give the same command again."
        ) from error


def read_json(path: Path) -> Json:
    """The content of a JSON file. Raises DataError where it cannot be read."""
    try:
        content: Json = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}). Restore it or extract the set again.") from error
    return content


def check_sums(sidecar: Path) -> None:
    """Raises DataError where a file that a sidecar lists is missing or is not what was written."""
    wanted = read_json(sidecar)["sha256"]
    assert isinstance(wanted, dict)
    again = f"Delete {sidecar.name} beside it and give the same command again: its rows are computed anew."
    for name, written in wanted.items():
        file = sidecar.parent / name
        if not file.is_file():
            raise DataError(f"{file} is missing. {again}")
        with file.open("rb") as f:
            found = hashlib.file_digest(f, "sha256").hexdigest()
        if found != written:
            raise DataError(f"{file} is broken: its sha256 is {found[:12]}..., written was {written[:12]}.... {again}")
