"""The report as one page: no script, nothing fetched, every text from data escaped."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from graddiag.alarms import RULES as ALARM_RULES
from graddiag.besides import BesideView
from graddiag.caveats import LIMITS
from graddiag.erosion_rules import MOVED_RULES, SHARED_RULES, WAY_RULES
from graddiag.exhibits import Exhibit
from graddiag.pair_view import PairView
from graddiag.picture import Picture
from graddiag.removal_rules import REMOVED_RULES
from graddiag.rules import RULES
from graddiag.sample_views import SampleView, TokensView
from graddiag.tables import Cell, Table
from graddiag.text import visible

MOST_ROWS = 80  # of a table on the page, enough for every key of a run with two controls; the CSV has all
MOST_COLUMNS = 12  # more than fit beside each other
PIXELS_PER_POINT = 1.65  # letters of a figure are then about as large as those of the page
TEXT_LENGTH = 120  # characters of a cell


@dataclass(frozen=True)
class Page:
    """What the page shows; `images` are the exhibits' figures (SVG) by name, `besides` the comparisons that stand
    beside the first, `pair` one pair."""

    title: str
    verdict: Sequence[str]
    warnings: Sequence[str]
    exhibits: Sequence[Exhibit]
    images: Mapping[str, bytes]
    tables: Mapping[str, Table]
    origins: Table
    facts: Mapping[str, str]
    besides: Sequence[BesideView] = ()
    pair: PairView | None = None


@dataclass(frozen=True)
class PicturePage:
    """What the page of a monitored run, or of three models, shows; `images` are the figures (SVG) by name, `samples`
    what the models answered, `next_tokens` the tokens that they expect first."""

    title: str
    verdict: Sequence[str]
    warnings: Sequence[str]
    exhibits: Sequence[Picture]
    images: Mapping[str, bytes]
    tables: Mapping[str, Table]
    facts: Mapping[str, str]
    samples: SampleView | None = None
    next_tokens: Sequence[TokensView] = ()


def render_page(page: Page) -> str:
    """The page as HTML."""
    return _environment().get_template("report.html.j2").render(page=page, rules=RULES, limits=LIMITS)


def render_training_page(page: PicturePage) -> str:
    """The page of a monitored run as HTML."""
    return _environment().get_template("training.html.j2").render(page=page, rules=ALARM_RULES)


def render_erosion_page(page: PicturePage) -> str:
    """The page of three models as HTML."""
    tables_of_rules = (MOVED_RULES, SHARED_RULES, REMOVED_RULES, WAY_RULES)
    return _environment().get_template("erosion.html.j2").render(page=page, tables_of_rules=tables_of_rules)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("graddiag", "templates"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(shorten=shorten, embedded=embedded, width=width)
    return environment


def embedded(svg: bytes) -> str:
    """An SVG as the address of an image: inside the page, and nothing in it can run or be fetched."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")


def width(svg: bytes) -> int:
    """The width of an SVG on the page in pixels, so that letters are of one size in all figures."""
    found = re.search(rb'<svg[^>]* width="([0-9.]+)pt"', svg)
    assert found is not None
    return round(float(found[1]) * PIXELS_PER_POINT)


@dataclass(frozen=True)
class Shortened:
    """What the page shows of a table, and a line that says what it leaves out."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left_out: str


def shorten(table: Table) -> Shortened:
    """At most 40 rows and 12 columns of a table."""
    rows, columns = len(table.rows), len(table.header)
    parts = [f"{MOST_ROWS} of {rows} rows"] if rows > MOST_ROWS else []
    parts += [f"{MOST_COLUMNS} of {columns} columns"] if columns > MOST_COLUMNS else []
    left_out = f"The first {' and '.join(parts)}; all are in tables/{table.name}.csv." if parts else ""
    kept = tuple(tuple(_short(c) for c in row[:MOST_COLUMNS]) for row in table.rows[:MOST_ROWS])
    return Shortened(table.header[:MOST_COLUMNS], kept, left_out)


def _short(cell: Cell) -> Cell:
    return visible(cell, limit=TEXT_LENGTH) if isinstance(cell, str) else cell


def _shown(value: object) -> object:
    """Every value that enters the page: numbers to four digits, control characters visible."""
    if isinstance(value, Markup):  # what a macro has built: its values were shown when they entered
        return value
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return visible(value) if isinstance(value, str) else value
