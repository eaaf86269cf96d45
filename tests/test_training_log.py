"""Logs of a monitored run: read back equal, whole after a crash, and cut back where a run goes on from a checkpoint."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_alarms import probe, see_all, toy_probes

from graddiag.alarms import Alarm, Limits, Notice, Watch
from graddiag.errors import DataError, UsageError
from graddiag.probe_lines import from_content, to_line
from graddiag.probes import Against, Probe
from graddiag.training_log import append_log, begin_log, is_training_run, log_keys, read_log, rewind_log

ALARM = Alarm(10, "conflict", 3.5, 3.0, ("ü", "b"), "It means this.")


def same(a: Probe, b: Probe) -> bool:
    return to_line(a) == to_line(b)


def logged(folder: Path, n: int = 6) -> list[Probe]:
    seen = list(toy_probes(0, "erosion", n=4))[:n]
    begin_log(folder, {"safety set": "safety"}, Limits(drift=0.1))
    for p in seen:
        append_log(folder, p, (replace(ALARM, step=p.step),), (Notice(p.step, "cost", "Dear."),))
    return seen


def test_a_probe_is_read_back_equal_and_what_is_not_finite_is_null() -> None:
    odd = probe(
        7, [1.0, math.nan, 1e-300], dots_exact=False, captured=0.5, notes=("one", 'two "and"\n'), nonfinite=1,
        gradient=Against({"a": 0.1, "b": math.nan}, {"a": 1 / 3, "b": 2.0}), seconds=0.25,
    )  # fmt: skip
    for one in (odd, probe(0, [], update=None, predicted_change=None), *list(toy_probes(1, "mix"))[:2]):
        line = to_line(one)
        assert "\n" not in line
        again = from_content(json.loads(line, parse_constant=lambda c: pytest.fail(f"not strict: {c}")))
        assert again.dots.dtype == one.dots.dtype
        np.testing.assert_array_equal(again.dots, one.dots)
        assert (again.update, again.ids, again.notes, again.step) == (one.update, one.ids, one.notes, one.step)
        assert same(again, one)


def test_a_run_is_read_back_equal(tmp_path: Path) -> None:
    assert not is_training_run(tmp_path)
    seen = logged(tmp_path)
    assert is_training_run(tmp_path)
    run = read_log(tmp_path)
    assert all(same(a, b) for a, b in zip(run.probes, seen, strict=True))
    assert run.alarms == tuple(replace(ALARM, step=p.step) for p in seen)
    assert run.notices == tuple(Notice(p.step, "cost", "Dear.") for p in seen)
    assert (run.facts, run.limits) == ({"safety set": "safety"}, Limits(drift=0.1))


def test_what_was_read_gives_the_same_alarms(tmp_path: Path) -> None:
    seen = list(toy_probes(2, "erosion"))
    begin_log(tmp_path, {}, Limits())
    watch = Watch()
    for p in seen:
        append_log(tmp_path, p, watch.see(p))
    run = read_log(tmp_path)
    assert run.alarms == watch.alarms
    assert see_all(Watch(run.limits), run.probes) == list(run.alarms)


@pytest.mark.parametrize("left", [1, 20])
def test_a_line_that_a_crash_cut_off_is_not_read_and_does_not_spoil_the_next(tmp_path: Path, left: int) -> None:
    seen = logged(tmp_path)
    path = tmp_path / "probes.jsonl"
    path.write_bytes(path.read_bytes()[:-left])
    assert len(read_log(tmp_path).probes) == len(seen) - 1
    append_log(tmp_path, seen[-1], ())
    assert [p.step for p in read_log(tmp_path).probes] == [p.step for p in seen]


def test_a_run_that_goes_on_from_a_checkpoint_makes_later_steps_again(tmp_path: Path) -> None:
    seen = logged(tmp_path)
    rewind_log(tmp_path, seen[3].step)
    run = read_log(tmp_path)
    steps = [p.step for p in seen[:3]]
    assert [p.step for p in run.probes] == [a.step for a in run.alarms] == [n.step for n in run.notices] == steps
    begin_log(tmp_path, {"safety set": "safety"}, Limits(drift=0.1))
    for p in seen[3:]:
        append_log(tmp_path, p, ())
    assert [p.step for p in read_log(tmp_path).probes] == [p.step for p in seen]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    logged(tmp_path, 2)
    path = tmp_path / "alarms.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + '{"step": 3}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"Line 3 of .*alarms.jsonl is not one of ours"):
        read_log(tmp_path)
    path.write_text("{]\n", encoding="utf-8")
    with pytest.raises(DataError, match="no JSON"):
        read_log(tmp_path)


def test_a_folder_that_cannot_be_made_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot be written"):
        begin_log(tmp_path / "file" / "run", {}, Limits())


def test_the_keys_of_a_trainers_log_are_flat_and_of_one_vector() -> None:
    one = probe(
        10, [3.0, -1.0], gradient=Against({"a": 2.0, "b": -1.0}, {"a": 1.0, "b": 0.0}), seconds=0.5, step_seconds=2.0,
        safety_norms={"a": 3.0, "b": 4.0},
    )  # fmt: skip
    keys = log_keys(one, (ALARM,))
    assert keys["graddiag/cosine"] == pytest.approx((2 - 1) / (1 * 5))
    assert keys["graddiag/safety_loss"] == pytest.approx(0.6)
    assert keys["graddiag/safety_loss/se"] == pytest.approx(0.1)
    assert keys["graddiag/opposed_share"] == 0.5
    assert keys["graddiag/overhead"] == 0.25
    assert (keys["graddiag/alarms"], keys["graddiag/alarm/conflict"]) == (1, pytest.approx(3.5 / 3.0))


def test_what_is_undefined_is_left_out_of_a_trainers_log_and_null_in_our_own_files() -> None:
    blind = probe(0, [], update=None, predicted_change=None, safety_losses=np.array([math.nan, 0.5]))
    left_out = set(log_keys(probe(0))) - set(log_keys(blind))
    assert left_out == {
        f"graddiag/{key}" for key in ("update_cosine", "predicted_change", "opposed_share", "cosine", "safety_loss/se")
    }
    assert all(math.isfinite(value) for value in log_keys(blind).values())
    assert json.loads(to_line(blind))["safety_losses"] == [None, 0.5]
