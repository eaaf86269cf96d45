"""The page of a run: it runs and fetches nothing, and says what the terminal says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from findings import findings_of
from tables import RECIPE
from written import parsed

from graddiag.exhibits import NAMES
from graddiag.findings import Findings
from graddiag.page import MOST_COLUMNS, MOST_ROWS, shorten
from graddiag.publishing import write_report
from graddiag.signals import Signals
from graddiag.tables import Table

HOSTILE = "<script>alert(1)</script>\x1b[31m"


def _hostile(signals: Signals) -> Signals:
    return replace(
        signals,
        ids=tuple(f"{HOSTILE}{i}" for i in signals.ids),
        clusters=tuple(f"{HOSTILE}{c}" for c in signals.clusters),
        provenance=replace(signals.provenance, data=f"{HOSTILE}{signals.provenance.data}"),
    )


def test_the_page_runs_nothing_and_fetches_nothing(run: Path) -> None:
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "http://" not in html
    assert "https://" not in html
    elements = parsed(html)
    assert not {"script", "iframe", "object", "embed", "link", "form", "base"} & set(elements.names)
    assert all(a.startswith(("data:image/svg+xml;base64,", "#")) for a in elements.addresses)
    assert elements.names.count("img") == len(NAMES)
    assert "prefers-color-scheme: dark" in html


def test_the_page_says_what_the_terminal_says(found: Findings, run: Path, tmp_path: Path) -> None:
    html = (run / "report.html").read_text(encoding="utf-8")
    report = write_report(found, tmp_path, figures=False)
    for line in report.verdict:
        assert line.replace("'", "&#39;").replace("<", "&lt;").replace(">", "&gt;") in html
    assert html.index("What the numbers say") < html.index("<figure>")
    for word in ("conflict", "opposed", "not measurable", "confounded"):
        assert f"<td>{word}</td>" in html
    for fact in ("graddiag compare left right", found.comparison.left.rows, "logra"):
        assert fact in html


def test_text_from_data_is_never_markup_or_a_command(tmp_path: Path) -> None:
    found = findings_of(change=_hostile)
    found = replace(found, controls={HOSTILE: found.controls["benign"]}, command=HOSTILE, warnings=(HOSTILE,))
    report = write_report(found, tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "script" not in parsed(html).names
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m" in html
    for text in (html, *report.verdict, *report.warnings, (tmp_path / "report.json").read_text(encoding="utf-8")):
        assert "\x1b" not in text


def test_the_page_shows_so_many_rows_and_says_where_the_rest_is(tmp_path: Path) -> None:
    write_report(findings_of(replace(RECIPE, n=MOST_ROWS + 10)), tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"The first {MOST_ROWS} of {MOST_ROWS + 10} rows; all are in tables/pairs.csv." in html
    assert max(part.count("<tr>") for part in html.split("<tbody>")) <= MOST_ROWS + 1
    wide = Table("w", tuple(f"c{k}" for k in range(30)), ((1.0,) * 30,) * (MOST_ROWS + 1))
    shown = shorten(wide)
    assert (len(shown.header), len(shown.rows)) == (MOST_COLUMNS, MOST_ROWS)
    assert (
        shown.left_out
        == f"The first {MOST_ROWS} of {MOST_ROWS + 1} rows and 12 of 30 columns; all are in tables/w.csv."
    )
    assert shorten(Table("s", ("c",), ((1.0,),))).left_out == ""
