"""A figure of a report with what belongs to it: how it is read, its numbers, its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from graddiag.files import strict
from graddiag.folder import Folder
from graddiag.plotting import render
from graddiag.tables import Table


@dataclass(frozen=True)
class Picture:
    """A figure of the page under the name of its files, with one sentence on how to read it and its numbers."""

    name: str
    title: str
    reading: str
    draw: Callable[[], Figure]
    table: Table

    def write(self, folder: Folder) -> bytes:
        """Writes the figure as SVG and PNG, with its numbers beside it, and gives the SVG.

        Raises ResourceError where the disk is full, UsageError where the folder cannot be written.
        """
        figure, table = self.draw(), self.table
        svg = render(figure, "svg")
        folder.write(f"figures/{self.name}.svg", svg)
        folder.write(f"figures/{self.name}.png", render(figure, "png"))
        numbers = {"title": self.title, "reading": self.reading, "columns": table.header, "rows": table.rows}
        folder.write(f"figures/{self.name}.json", json.dumps(strict(numbers), allow_nan=False, indent=1) + "\n")
        return svg
