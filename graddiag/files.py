"""Files that are either whole or absent: written under a temporary name, flushed, renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from graddiag.errors import DataError, ResourceError

Json = Mapping[str, object]


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
