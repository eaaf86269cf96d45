"""The folder of a run: strict JSON, tables that come back as they were, a page that runs and fetches nothing."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from findings import alone, conclude, findings_of, zeroed
from tables import RECIPE, compared, four_tables

from graddiag.errors import ResourceError, UsageError
from graddiag.exhibits import NAMES
from graddiag.findings import Findings
from graddiag.page import MOST_COLUMNS, MOST_ROWS, shorten
from graddiag.publishing import write_report
from graddiag.setting import setting_of
from graddiag.signals import Signals
from graddiag.tables import Table, summary_table, to_csv, unit

HOSTILE = "<script>alert(1)</script>\x1b[31m"
KEYS = (
    "pairs/n", "pairs/identical", "pairs/clusters", "loss/left", "loss/right", "loss_gap/mean", "loss_gap/low",
    "loss_gap/high", "loss_gap/p", "loss_gap/effect_size", "loss_gap/wilcoxon_p", "conflict/paired_cosine",
    "conflict/low", "conflict/high", "conflict/p", "conflict/negative_fraction", "conflict/within_left",
    "conflict/within_right", "conflict/across", "conflict/same_cluster", "conflict/mean_gradient_cosine",
    "conflict/mean_gradient_cosine_corrected", "framing/consistency", "framing/p", "framing/safety_cosine",
    "framing/safety_cosine/low", "framing/safety_cosine/high", "alignment/left", "alignment/right",
    "alignment/difference", "alignment/difference/low", "alignment/difference/high", "alignment/difference/p",
    "alignment/control:benign", "projection/error",
)  # fmt: skip


def _refuse(token: str) -> float:
    raise ValueError(f"{token} is not JSON")


def _json(folder: Path, part: str) -> dict[str, object]:
    """One part of report.json, read strictly."""
    read = json.loads((folder / "report.json").read_text(encoding="utf-8"), parse_constant=_refuse)
    assert set(read) == {"schema", "provenance", "verdict", "summary", "kinds", "blocks", "warnings"}
    assert read["schema"] == 1
    chosen: dict[str, object] = read[part]
    return chosen


def _rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def _hostile(signals: Signals) -> Signals:
    return replace(
        signals,
        ids=tuple(f"{HOSTILE}{i}" for i in signals.ids),
        clusters=tuple(f"{HOSTILE}{c}" for c in signals.clusters),
        provenance=replace(signals.provenance, data=f"{HOSTILE}{signals.provenance.data}"),
    )


class _Elements(HTMLParser):
    """Names of the elements of a page, and the addresses in them."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in {"src", "href", "action", "srcset", "data"}]
        assert not [key for key, _ in attrs if key.startswith("on")]


def _parsed(html: str) -> _Elements:
    elements = _Elements()
    elements.feed(html)
    return elements


@pytest.fixture(scope="module")
def found() -> Findings:
    return findings_of()


@pytest.fixture(scope="module")
def run(found: Findings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_report(found, folder)
    return folder


def test_a_run_has_its_report_figures_and_tables(found: Findings, run: Path) -> None:
    report = write_report(found, run)
    assert report.json == run / "report.json"
    assert report.html == run / "report.html"
    assert report.summary == found.summary()
    assert {p.name for p in (run / "figures").iterdir()} == {f"{n}.{form}" for n in NAMES for form in ("svg", "png")}
    tables = {p.stem for p in (run / "tables").iterdir()}
    assert tables == {*NAMES, "summary", "blocks", "token_positions", "pairs", "rows"}
    assert not [p for p in run.rglob("*") if p.name.startswith(".")]


def test_the_json_is_strict_and_complete(found: Findings, run: Path) -> None:
    summary, kinds = _json(run, "summary"), _json(run, "kinds")
    assert set(KEYS) <= set(summary)
    assert summary == found.summary()
    assert set(kinds) == set(summary)
    assert set(kinds.values()) <= {"exact", "projected", "loss"}
    assert list(_json(run, "blocks")) == list(found.comparison.left.blocks)
    origin = _json(run, "provenance")
    assert origin["command"] == "graddiag compare left right"
    assert isinstance(origin["sets"], dict)
    assert set(origin["sets"]) == {"left", "right", "safety", "control:benign"}


@pytest.mark.parametrize("change", [zeroed, alone])
def test_a_key_that_is_undefined_is_null_and_there(change: Callable[[Signals], Signals], tmp_path: Path) -> None:
    write_report(findings_of(exact=False, change=change), tmp_path)
    summary = _json(tmp_path, "summary")
    assert set(KEYS) <= set(summary)
    assert summary["conflict/paired_cosine"] is None
    assert summary["framing/safety_cosine"] is None


def test_without_a_safety_set_its_keys_are_undefined_and_its_figures_left_out(tmp_path: Path) -> None:
    write_report(findings_of(), tmp_path)
    write_report(findings_of(safety=False), tmp_path)
    summary = _json(tmp_path, "summary")
    about = {k: v for k, v in summary.items() if k.startswith("alignment/") or "safety_cosine" in k}
    assert {"alignment/left", "alignment/difference/p", "framing/safety_cosine/low"} <= about.keys()
    assert set(about.values()) == {None}
    left = {p.stem for folder in ("figures", "tables") for p in (tmp_path / folder).iterdir()}
    assert not left & {"framing", "alignment"}


def test_without_figures_there_is_no_page_and_no_older_one_either(found: Findings, tmp_path: Path) -> None:
    write_report(found, tmp_path)
    report = write_report(found, tmp_path, figures=False)
    assert report.html is None
    assert not (tmp_path / "report.html").exists()
    assert list((tmp_path / "figures").iterdir()) == []
    assert _json(tmp_path, "summary") == found.summary()
    assert len(_rows(tmp_path, "pairs")) == found.comparison.n_pairs


def test_the_page_runs_nothing_and_fetches_nothing(run: Path) -> None:
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "http://" not in html
    assert "https://" not in html
    elements = _parsed(html)
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
    assert "script" not in _parsed(html).names
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m" in html
    for text in (html, *report.verdict, *report.warnings, (tmp_path / "report.json").read_text(encoding="utf-8")):
        assert "\x1b" not in text


def test_text_that_is_no_unicode_can_be_written(tmp_path: Path) -> None:
    def broken(signals: Signals) -> Signals:
        return replace(signals, ids=tuple(f"\ud800{i}\x00\r\n" for i in signals.ids))

    write_report(findings_of(change=broken), tmp_path)
    for path in tmp_path.rglob("*"):
        if path.suffix in {".csv", ".json", ".html"}:
            path.read_text(encoding="utf-8")


def test_a_csv_comes_back_as_it_was(tmp_path: Path) -> None:
    table = Table(
        "t", ("id", "x", "n", "u"), (('a,"b"\n<c>\x1b', 0.1 + 0.2, 3, None), ("=1", 1e-300, -1, float("nan")))
    )
    path = tmp_path / "t.csv"
    path.write_text(to_csv(table), encoding="utf-8", newline="")
    with path.open(encoding="utf-8", newline="") as f:
        back = list(csv.reader(f))
    assert tuple(back[0]) == table.header
    assert [(i, float(x), int(n), u) for i, x, n, u in back[1:]] == [
        ('a,"b"\n<c>\x1b', 0.1 + 0.2, 3, ""),
        ("=1", 1e-300, -1, ""),
    ]


def test_tables_hold_the_numbers_of_the_results(found: Findings, run: Path) -> None:
    pairs = _rows(run, "pairs")
    assert [r["id"] for r in pairs] == list(found.loss_gap.ids)
    np.testing.assert_array_equal([float(r["loss_gap"]) for r in pairs], found.loss_gap.gap)
    np.testing.assert_array_equal([float(r["paired_cosine"]) for r in pairs], found.conflict.paired)
    matrix = _rows(run, "matrix")
    names = list(matrix[0])[3:]
    np.testing.assert_array_equal([[float(r[n]) for n in names] for r in matrix], found.matrix.values)
    rows = _rows(run, "rows")
    assert len(rows) == sum(len(t) for t in found.tables().values())
    left = found.comparison.left
    norm = np.sqrt(sum(n**2 for n in left.norms.values()))
    np.testing.assert_allclose([float(r["gradient_norm"]) for r in rows if r["role"] == "left"], norm, rtol=1e-12)
    blocks = _rows(run, "blocks")
    assert [r["block"] for r in blocks] == list(left.blocks)
    expected = found.conflict.blocks[left.blocks[0]].paired.value
    assert float(blocks[0]["conflict/paired_cosine"]) == expected
    assert float(_rows(run, "conflict")[0]["cosine"]) == expected


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


def test_every_number_of_the_summary_stands_in_its_table(found: Findings) -> None:
    table = summary_table(found.summary(), found.kinds())
    shown = {cell for row in table.rows for cell in row if isinstance(cell, float)}
    assert {v for v in found.summary().values() if isinstance(v, float)} <= shown
    assert len(table.rows) <= MOST_ROWS
    assert unit("loss_gap/mean") == "nats/token"
    assert unit("loss_gap/wilcoxon_p") == "probability"
    assert unit("alignment/control:benign") == "cosine"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_what_was_kept(
    number: int, found: Findings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).suffix == ".csv":
            raise OSError(number, os.strerror(number))
        rename(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ResourceError, match=r"disk is full: .*loss_gap\.csv.*Kept: report\.json\..*graddiag report"):
        write_report(found, tmp_path)
    assert _json(tmp_path, "summary") == found.summary()
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["report.json"]


def test_a_folder_that_cannot_be_written_is_refused(found: Findings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written .*--out"):
        write_report(found, tmp_path / "file")


def test_equal_findings_give_equal_files(found: Findings, run: Path, tmp_path: Path) -> None:
    write_report(found, tmp_path)
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / path.relative_to(run)).read_bytes(), path.name


def test_the_setting_tells_models_apart() -> None:
    tables = four_tables(exact=False)
    right = tables["right"].signals
    other = replace(right.provenance, data="left", model="tuned", weights="other")
    comparison = replace(compared(tables["left"], tables["right"]), right=replace(right, provenance=other))
    setting = setting_of(conclude(comparison, tables))
    assert (setting.left, setting.right) == ("left (model)", "left (tuned)")
    assert setting.other_model == ("right",)
    assert setting.differs == ("data", "model")


def test_that_data_and_model_both_differ_is_said_once(tmp_path: Path) -> None:
    tables = four_tables(exact=False)
    right = tables["right"].signals
    tuned = replace(right, provenance=replace(right.provenance, model="tuned", weights="other"))
    report = write_report(conclude(replace(compared(tables["left"], tables["right"]), right=tuned), tables), tmp_path)
    said = [line for line in (*report.verdict, *report.warnings) if "both data and model" in line]
    assert said == ["The two sides differ in both data and model: no difference can be put down to either alone."]
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count(said[0]) == 1
    assert "confounded" in next(line for line in report.verdict if line.startswith("Loss of"))


def test_files_and_folders_of_others_stay(found: Findings, tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    for name in ("notes.txt", "figures/mine.svg"):
        (tmp_path / name).write_text("mine")
    write_report(found, tmp_path, figures=False)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "figures" / "mine.svg").read_text() == "mine"
