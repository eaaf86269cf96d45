"""The folder of a run: strict JSON, complete or absent, nothing of an earlier report or of others touched."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from findings import alone, conclude, findings_of, zeroed
from tables import compared, four_tables
from written import csv_rows

from graddiag.errors import ResourceError, UsageError
from graddiag.exhibits import NAMES
from graddiag.findings import Findings
from graddiag.publishing import write_report
from graddiag.setting import setting_of
from graddiag.signals import Signals

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
    assert len(csv_rows(tmp_path, "pairs")) == found.comparison.n_pairs


def test_text_that_is_no_unicode_can_be_written(tmp_path: Path) -> None:
    def broken(signals: Signals) -> Signals:
        return replace(signals, ids=tuple(f"\ud800{i}\x00\r\n" for i in signals.ids))

    write_report(findings_of(change=broken), tmp_path)
    for path in tmp_path.rglob("*"):
        if path.suffix in {".csv", ".json", ".html"}:
            path.read_text(encoding="utf-8")


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
