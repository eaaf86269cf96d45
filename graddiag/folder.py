"""The folder that a report is written into: every file complete or absent, and errors that say what was kept."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from graddiag.errors import ResourceError, UsageError
from graddiag.files import write_atomically

FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Folder:
    """A folder whose files are complete or absent, and which knows what it has."""

    path: Path
    kept: list[str] = field(default_factory=list)

    def write(self, name: str, content: bytes | str) -> Path:
        """Writes one file and gives its path. Raises ResourceError, UsageError."""
        raw = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
        path = self.path / name
        with self._named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda p: p.write_bytes(raw))
        self.kept.append(name)
        return path

    def remove(self, names: list[str]) -> None:
        """Removes the files of these names that are there."""
        for name in names:
            with self._named(self.path / name):
                (self.path / name).unlink(missing_ok=True)

    @contextmanager
    def _named(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise ResourceError(
                    f"The disk is full: {path} could not be written. Kept: {', '.join(self.kept) or 'nothing'}. "
                    f"Make room, then: graddiag report {self.path}"
                ) from error
            raise UsageError(
                f"{path} cannot be written ({error.strerror}). Choose another folder with --out."
            ) from error
