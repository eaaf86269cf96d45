"""What tests read of a report that was written: tables, and the elements of a page."""

from __future__ import annotations

import csv
from html.parser import HTMLParser
from pathlib import Path


def csv_rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


class Elements(HTMLParser):
    """Names of the elements of a page, and the addresses in them."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in {"src", "href", "action", "srcset", "data"}]
        assert not [key for key, _ in attrs if key.startswith("on")]


def parsed(html: str) -> Elements:
    elements = Elements()
    elements.feed(html)
    return elements
