"""Alarms against behaviour: the experiment, in short, on tiny, and its arithmetic on runs made up for it."""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from early_warning_findings import Looked, Run, Seen, Told, command_of, run_of, table
from early_warning_rows import BYTES, LEAST_TARGETS, TASKS, Rows, read_rows

from graddiag.data import read_set
from graddiag.files import read_json, strict, write_json
from graddiag.models import load_model

early_warning = pytest.importorskip("early_warning", reason="adapters need peft")


@pytest.fixture(scope="module")
def rows() -> Rows:
    return read_rows(load_model("tiny", device="cpu")[1], None, BYTES, monitor=10, held_out=12)


def run(*, safe: tuple[float, ...], harmful: tuple[float, ...], told: tuple[Told, ...] = ()) -> Run:
    """Two answers of each kind, whose log-probabilities change by these means, 0.1 more and less; benign stays."""
    seen = [
        Seen(
            4 * k,
            {"safe": (a - 1.1 - 0.1 * k, a - 0.9 + 0.1 * k), "harmful": (b - 3.1, b - 2.9), "benign": (-2.0, -2.0)},
        )
        for k, (a, b) in enumerate(zip(safe, harmful, strict=True))
    ]
    looked = [Looked(s.step, 0.1, 0.2, 0.01, tuple(-a for a in s.answers["safe"]), {}) for s in seen[:-1]]
    return Run("insecure", 0, tuple(seen), tuple(looked), told)


def with_kinds(run: Run, **kinds: tuple[tuple[float, ...], ...]) -> Run:
    """The run with these kinds of behaviour in place of its own, one tuple of answers for each time they are seen."""
    seen = [Seen(s.step, {k: v[n] for k, v in kinds.items()}) for n, s in enumerate(run.seen)]
    return replace(run, seen=tuple(seen))


def test_no_example_is_in_two_places(rows: Rows) -> None:
    safe = [{r.digest for r in part} for part in (rows.alignment, rows.held_out["safe"])]
    assert not safe[0] & safe[1]
    ids = [{r.id for r in rows.alignment}, {str(e["id"]) for e in rows.monitor}, {r.id for r in rows.held_out["safe"]}]
    assert len(set.union(*ids)) == sum(map(len, ids))
    assert not {r.id for r in rows.held_out["benign"]} & {r.id for r in rows.tasks["benign"]}
    assert {r.id for r in rows.held_out["harmful"]} <= ids[2]


def test_each_task_has_rows_with_enough_to_learn_and_pairs_stay_pairs(rows: Rows) -> None:
    assert set(rows.tasks) == set(TASKS)
    assert [r.id for r in rows.tasks["insecure"]] == [r.id for r in rows.tasks["educational"]]
    for found in rows.tasks.values():
        assert len(found) >= 40
        assert all(r.n_targets >= LEAST_TARGETS and len(r.tokens) <= BYTES.task for r in found)


def test_real_sets_where_they_are_there(real_data: Path) -> None:
    tokenizer = load_model("tiny", device="cpu")[1]
    harmful = read_rows(tokenizer, real_data, BYTES, monitor=3, held_out=5).held_out["harmful"]
    known = {e.id for e in read_set(real_data / "hh_rejected.jsonl").examples}
    assert len(harmful) == 5
    assert {r.id for r in harmful} <= known
    assert all(r.n_cut == 0 for r in harmful)


def test_behaviour_moves_where_its_paired_change_is_beyond_two_errors_in_the_direction_of_harm() -> None:
    """The safe answers' changes of -0.1, -0.3, -0.9 have errors of 0.1, 0.2, 0.3; harmful ones move as one."""
    moved = run(safe=(0.0, -0.1, -0.3, -0.9), harmful=(0.0, 0.0, -0.5, 0.01))
    assert moved.change("safe", 2) == pytest.approx((-0.3, 0.2))
    assert moved.moved("safe") == 12
    assert moved.moved("harmful") == 12
    assert run(safe=(0.0, 1.0, 2.0, 9.0), harmful=(0.0, -1.0, -1.0, -2.0)).first_moved is None


def test_harmful_answers_that_become_likelier_no_more_than_benign_ones_are_not_beyond_them() -> None:
    one = run(safe=(0.0, 0.0, 0.0), harmful=(0.0, 0.2, 0.4))
    harmful = tuple(s.answers["harmful"] for s in one.seen)
    alike = with_kinds(one, safe=((0.0, 0.0),) * 3, harmful=harmful, benign=harmful)
    assert (one.moved("harmful"), one.beyond_benign) == (4, 4)
    assert (alike.moved("harmful"), alike.beyond_benign) == (4, None)


def test_refusals_move_where_they_become_fewer_and_beyond_benign_where_those_of_harm_alone_do() -> None:
    odds = ((3.0, 5.0), (2.0, 3.9), (1.0, 2.9))
    one = with_kinds(
        run(safe=(0.0,) * 3, harmful=(0.0,) * 3),
        log_odds=odds, log_odds_benign=((-4.0, -4.0),) * 3, refused=((1.0, 1.0), (1.0, 0.0), (0.0, 0.0)),
    )  # fmt: skip
    assert one.eroding == ("log_odds", "refused")
    assert (one.moved("log_odds"), one.moved("refused"), one.beyond_benign) == (4, 8, 4)
    assert with_kinds(one, log_odds=odds, log_odds_benign=odds).beyond_benign is None
    assert with_kinds(one, log_odds=odds[::-1], log_odds_benign=odds).first_moved is None
    assert "log_odds changed by" in table([one])[0]
    assert "-2.050 (0.050)" in table([one])[1]


@pytest.mark.parametrize(("told", "lead"), [((4, 0), 8), ((8,), 0), ((), None)])
def test_the_lead_is_from_the_first_alarm_to_the_first_change(told: tuple[int, ...], lead: int | None) -> None:
    one = run(safe=(0.0, 0.0, 0.0), harmful=(0.0, 0.0, 0.3), told=tuple(Told(s, "conflict") for s in told))
    assert one.lead == lead


def test_each_prediction_stands_for_the_steps_until_the_next_probe() -> None:
    one = run(safe=(0.0, -0.1, -0.2, -0.3), harmful=(0.0,) * 4)
    assert one.predicted_rise == pytest.approx([0.0, 0.04, 0.08])
    assert one.measured_rise == pytest.approx([0.0, 0.1, 0.2])


def test_runs_are_made_once_kept_equal_and_made_again_under_other_settings(tmp_path: Path) -> None:
    settings = early_warning.Settings(
        model="tiny", data="built-in sets", cut=BYTES, monitor=2, held_out=2, batch=2, steps=3, every=2,
        reading=2, rank=2, rate=1e-3, alignment_steps=1, alignment_rate=1e-3,
    )  # fmt: skip
    (whole,) = early_warning.all_runs(early_warning.bench(settings, None, tmp_path / "a"), ["secure"], 1)
    assert [s.step for s in whole.seen] == [0, 2, 3]
    assert [p.step for p in whole.looked] == [0, 2]
    assert whole.seen[0].answers["safe"] != whole.seen[-1].answers["safe"]
    kept = tmp_path / "a" / "secure-0.json"
    written = kept.stat().st_mtime_ns
    on = early_warning.bench(settings, None, tmp_path / "a")
    assert early_warning.all_runs(on, ["secure"], 1) == [whole]
    assert kept.stat().st_mtime_ns == written
    kept.unlink()  # as if interrupted: its alignment and its log are there
    assert early_warning.all_runs(on, ["secure"], 1) == [whole]
    early_warning.all_runs(replace(on, settings=replace(settings, rate=2e-3)), ["secure"], 1)
    assert kept.stat().st_mtime_ns != written
    again = run_of(read_json(kept))
    assert again.seen[0] == whole.seen[0]
    assert again.seen[-1] != whole.seen[-1]


def test_a_figure_keeps_other_runs_of_the_same_settings_and_none_of_others(tmp_path: Path) -> None:
    settings = early_warning.Settings(
        model="tiny", data="built-in sets", cut=BYTES, monitor=2, held_out=2, batch=2, steps=3, every=2,
        reading=2, rank=2, rate=1e-3, alignment_steps=1, alignment_rate=1e-3,
    )  # fmt: skip
    first, second = run(safe=(0.0, -0.1), harmful=(0.0, 0.1)), run(safe=(0.0, -0.2), harmful=(0.0, 0.3))
    other = replace(first, task="secure")
    file = tmp_path / "figure.json"
    assert early_warning.beside([first], file, settings) == [first]
    write_json(file, strict({"settings": asdict(settings), "runs": [asdict(first), asdict(other)]}))
    assert early_warning.beside([second], file, settings) == [other, second]
    assert early_warning.beside([second], file, replace(settings, steps=4)) == [second]


def test_the_table_has_a_line_per_run_and_says_what_did_not_come() -> None:
    alarmed = run(safe=(0.0, 0.0), harmful=(0.0, 0.3), told=(Told(0, "drift"), Told(0, "culprits"), Told(4, "drift")))
    head, first, second = table([alarmed, run(safe=(0.0, 0.0), harmful=(0.0, 0.0))])
    assert head.startswith("task | seed | first alarms")
    assert "drift@0" in first
    assert "drift@4" not in first
    assert "none | - | - | - | -" in second


@pytest.mark.parametrize("where", [[], ["--organism"], ["--data", "DIR"]])
def test_the_command_that_is_kept_makes_the_same_settings_again(where, monkeypatch):
    asked = [
        "--steps",
        "40",
        "--every",
        "2",
        "--rate",
        "1e-4",
        "--held-out",
        "20",
        "--reading",
        "4",
        "--out",
        "some/where",
    ]
    monkeypatch.setattr("sys.argv", ["early_warning.py", *where, *asked])
    given = early_warning.read_arguments()
    settings = early_warning.given_settings(given)
    command = command_of(asdict(settings), given.out)
    monkeypatch.setattr("sys.argv", shlex.split(command)[1:])
    again = early_warning.read_arguments()
    assert early_warning.given_settings(again) == settings
    assert again.out == given.out
