"""Alarms: each rule from probes made for it, restored as uninterrupted, and in time on a toy that erodes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from toy_training import Batch, probes, toy

from graddiag.alarms import RULES, Alarm, Limits, Watch
from graddiag.alarms._gate import Gate
from graddiag.alarms._memory import GATES
from graddiag.errors import DataError, UsageError
from graddiag.probe_values import mean_and_error
from graddiag.probes import Against, Probe

SEEDS = range(20)
ONSET = 100  # the step from which the toy's examples erode


def probe(step: int = 0, dots: Sequence[float] = (1.0, -1.0), **more: object) -> Probe:
    """A probe of two safety examples and one block, whose numbers follow from the examples' products."""
    d = np.asarray(dots, dtype=np.float64)
    whole = Probe(
        step=step,
        safety_losses=np.array([0.5, 0.7]),
        safety_norms={"b": 1.0},
        gradient=Against({"b": float(d.sum()) / max(len(d), 1)}, {"b": 2.0 * float(np.abs(d).max(initial=0.0))}),
        ids=tuple(f"e{k}" for k in range(len(d))),
        dots=d,
        norms=2 * np.abs(d),
        losses=np.ones(len(d)),
        update=Against({"b": 0.0}, {"b": 1.0}),
        predicted_change=0.0,
    )
    return replace(whole, **more)  # type: ignore[arg-type]


def rules(alarms: Sequence[Alarm]) -> list[str]:
    return [a.rule for a in alarms]


def see_all(watch: Watch, seen: Sequence[Probe]) -> list[Alarm]:
    return [a for p in seen for a in watch.see(p)]


def toy_probes(seed: int, kind: str, *, n: int = 32, **how: object) -> Iterator[Probe]:
    world = toy(seed)

    def batch(step: int, rng: np.random.Generator) -> Batch:
        if kind == "mix":
            return world.mix(n, rng)
        return world.eroding(n, rng, lean=0.5) if step >= ONSET else world.harmless(n, rng)

    return probes(world, batch, seed=seed, **how)  # type: ignore[arg-type]


def first_moved(seen: Sequence[Probe]) -> float:
    """The first step from the onset on at which the safety loss has moved by two standard errors; infinity if none."""
    for p in seen:
        mean, error = mean_and_error(p.safety_losses - seen[0].safety_losses)
        if p.step >= ONSET and mean > 2 * error:
            return p.step
    return math.inf


def test_erosion_is_announced_before_the_safety_loss_has_moved() -> None:
    in_time = 0
    for seed in SEEDS:
        seen = list(toy_probes(seed, "erosion"))
        steps = [a.step for a in see_all(Watch(), seen)]
        in_time += bool(steps) and ONSET <= steps[0] < first_moved(seen)  # an earlier one is false, and spoils the run
    assert in_time >= 19


def test_the_conflict_of_the_batches_alone_announces_erosion_in_time() -> None:
    in_time = 0
    for seed in SEEDS:
        seen = list(toy_probes(seed, "erosion"))
        steps = [a.step for a in see_all(Watch(), seen) if a.rule == "conflict"]
        in_time += bool(steps) and ONSET <= steps[0] < first_moved(seen)
    assert in_time >= 19


def test_training_on_the_alignment_mix_itself_raises_hardly_an_alarm() -> None:
    assert sum(len(see_all(Watch(), list(toy_probes(seed, "mix")))) for seed in SEEDS) <= 1


def test_a_restored_watch_goes_on_as_if_uninterrupted() -> None:
    seen = list(toy_probes(3, "erosion", n=8))
    seen[7] = replace(seen[7], dots=np.full(8, np.nan), nonfinite=8, safety_losses=seen[7].safety_losses * np.nan)
    slow = [replace(p, seconds=9.0) for p in seen]
    whole = Watch()
    see_all(whole, slow)
    assert whole.alarms
    assert whole.notices
    for cut in (0, 1, 8, 20, 30):
        first = Watch()
        see_all(first, slow[:cut])
        second = Watch.restored(json.loads(json.dumps(first.state(), allow_nan=False)))
        see_all(second, slow[cut:])
        assert second.state() == whole.state()
        assert (second.alarms, second.notices, second.memory) == (whole.alarms, whole.notices, whole.memory)


def test_a_first_probe_that_is_not_finite_survives_being_restored() -> None:
    watch = Watch()
    watch.see(probe(safety_losses=np.array([0.5, np.nan]), safety_nonfinite=1))
    again = Watch.restored(json.loads(json.dumps(watch.state(), allow_nan=False)))
    np.testing.assert_array_equal(again.memory.first_losses, [0.5, np.nan])


def test_something_that_is_no_state_is_refused() -> None:
    with pytest.raises(DataError, match="no state of alarms"):
        Watch.restored({"schema": 1})
    with pytest.raises(DataError, match="schema 7"):
        Watch.restored({"schema": 7})


def test_conflict_is_told_from_the_second_probe_on_and_never_by_one_alone() -> None:
    opposed = -np.arange(1.0, 17.0)
    for limits in (Limits(), Limits(false_alarms=0.9)):
        watch = Watch(limits)
        assert "conflict" not in rules(watch.see(probe(0, opposed)))
        assert "conflict" in rules(watch.see(probe(10, opposed)))


def test_a_conflict_that_ended_is_soon_over_however_long_it_was() -> None:
    opposed, harmless = -np.arange(1.0, 9.0), [1.0, -1.0] * 4
    watch = Watch()
    alarms = see_all(watch, [probe(k, opposed) for k in range(40)])
    assert rules(alarms).count("conflict") == 1
    see_all(watch, [probe(k, harmless) for k in range(40, 44)])
    assert watch.memory.conflict < watch.limits.rearm * watch.limits.conflict
    again = see_all(watch, [probe(k, opposed) for k in range(44, 50)])
    assert "conflict" in rules(again)


def test_supporting_examples_never_give_a_conflict() -> None:
    assert see_all(Watch(), [probe(10 * k, np.arange(1.0, 17.0)) for k in range(50)]) == []


def test_the_update_may_conflict_where_the_batch_does_not() -> None:
    against = Against({"b": -0.9}, {"b": 1.0})
    watch = Watch()
    alarms = see_all(watch, [probe(10 * k, [1.0, -1.0] * 8, update=against) for k in range(4)])
    assert rules(alarms) == ["update_conflict"]


def test_numbers_that_are_not_finite_are_counted_and_named_at_once() -> None:
    (alarm,) = Watch().see(probe(3, [1.0, np.nan, 2.0], nonfinite=1, safety_nonfinite=2))
    assert (alarm.step, alarm.rule, alarm.value, alarm.ids) == (3, "nonfinite", 3.0, ("e1",))
    assert rules(Watch().see(probe(gradient=Against({"b": np.inf}, {"b": np.inf})))) == ["nonfinite"]


def test_a_dead_probe_changes_no_evidence() -> None:
    watch = Watch()
    watch.see(probe(0, [-1.0, -2.0, -3.0, -4.0]))
    evidence = watch.memory.conflict
    assert evidence > 0
    watch.see(probe(1, [np.nan] * 4))
    assert watch.memory.conflict == evidence


def test_drift_adds_predictions_for_the_steps_that_they_stand_for() -> None:
    watch = Watch(Limits(drift=0.05))
    quiet = {"predicted_change": 0.004, "update": Against({"b": -1e-9}, {"b": 1e-9})}
    alarms = see_all(watch, [probe(step, **quiet) for step in (0, 4, 10, 12, 20)])
    assert watch.memory.drift.total == pytest.approx(0.004 * (1 + 4 + 6 + 2 + 8))
    assert [(a.step, a.rule) for a in alarms] == [(12, "drift")]
    assert alarms[0].value == pytest.approx(0.052)


def test_drift_within_chance_is_no_alarm_however_large() -> None:
    """The same sum, but each example's sign could have made it as well."""
    noisy = {"predicted_change": 0.03, "update": Against({"b": -0.03}, {"b": 1.0})}
    watch = Watch()
    assert see_all(watch, [probe(10 * k, [10.0, -10.0], **noisy) for k in range(8)]) == []
    assert watch.memory.drift.total > 1


@pytest.mark.parametrize(("rise", "spread", "told"), [(0.1, 0.01, True), (0.1, 0.2, False), (0.01, 0.0001, False)])
def test_the_safety_loss_must_rise_by_what_matters_and_beyond_its_error(rise: float, spread: float, told: bool) -> None:
    start = np.linspace(0.1, 2.0, 16)  # examples differ by far more than they change: only pairs can tell
    change = rise + spread * np.linspace(-1.0, 1.0, 16)
    alarms = see_all(Watch(), [probe(0, safety_losses=start), probe(10, safety_losses=start + change)])
    assert rules(alarms) == (["safety_loss"] if told else [])
    if told:
        assert alarms[0].value == pytest.approx(rise)


def test_other_safety_examples_than_at_first_are_refused() -> None:
    watch = Watch()
    watch.see(probe(0))
    with pytest.raises(DataError, match=r"At step 5 there are 3 safety losses, at the first probe 2\. Probe the same"):
        watch.see(probe(5, safety_losses=np.ones(3)))


def test_probes_out_of_order_are_refused() -> None:
    watch = Watch()
    watch.see(probe(5))
    with pytest.raises(UsageError, match="Step 5 was given after step 5"):
        watch.see(probe(5))


def test_many_small_opposing_examples_are_named_the_worst_first() -> None:
    dots = [-1.0, -3.0, -2.0, -1.5, -2.5, -1.0, -1.0, 40.0]  # the batch supports safety; seven of eight do not
    alarms = see_all(Watch(Limits(most_ids=3)), [probe(10 * k, dots) for k in range(6)])
    assert rules(alarms) == ["culprits"]
    assert alarms[0].ids == ("e1", "e1", "e1")
    assert "of the" in alarms[0].says


def test_one_example_that_outweighs_its_batch_is_named_if_it_costs_anything() -> None:
    dots = [0.01, -0.02, 0.01, -5.0, 0.02, -0.01, 0.01, 0.02]
    small = Against({"b": 0.0}, {"b": 0.001})
    (alarm,) = Watch().see(probe(0, dots))
    assert (alarm.rule, alarm.ids) == ("culprits", ("e3",))
    assert alarm.value == pytest.approx(5 / 5.1)
    assert Watch().see(probe(0, dots, update=small)) == ()
    assert Watch().see(probe(0, [-d for d in dots])) == ()


def test_an_alarm_is_given_again_only_after_its_value_fell_and_time_passed() -> None:
    limits = Limits(cool_down=3, rearm=0.5)
    gate, given = Gate(), []
    for value in (1.0, 2.0, 0.6, 1.0, 0.5, 1.0, 0.4, math.nan, 1.2):
        gate = gate.seen(value, 1.0, limits)
        given.append(gate.since == 0)
    assert given == [True, False, False, False, False, True, False, False, True]


def test_a_monitor_over_its_budget_is_told_to_probe_half_as_often() -> None:
    watch = Watch(every=10)
    cheap = [probe(k, seconds=0.4, step_seconds=1.0) for k in range(20)]
    dear = [probe(k, seconds=0.9, step_seconds=1.0) for k in range(20, 30)]
    see_all(watch, cheap)
    assert (watch.every, watch.notices) == (10, ())
    see_all(watch, dear * 1)
    see_all(watch, [replace(p, step=p.step + 10) for p in dear])
    assert watch.every == 20
    assert [n.about for n in watch.notices] == ["cost"]
    assert watch.alarms == ()


def test_the_first_probe_does_not_count_as_cost() -> None:
    watch = Watch(every=10)
    watch.see(probe(0, seconds=1e3, step_seconds=1.0))
    see_all(watch, [probe(k, seconds=0.1, step_seconds=1.0) for k in range(1, 9)])
    assert watch.every == 10


def test_rules_that_cannot_be_told_are_a_notice() -> None:
    watch = Watch()
    watch.see(probe(0, update=None, predicted_change=None))
    assert [n.about for n in watch.notices] == ["unseen"]
    assert "drift" in watch.notices[0].says


def test_memory_does_not_grow_with_the_run() -> None:
    def size(n: int) -> int:
        watch = Watch()
        see_all(watch, [probe(k, [-1.0, 1.0, 2.0, -0.5]) for k in range(n)])
        return len(json.dumps(watch.state()))

    assert size(400) < size(40) + 100


def test_every_rule_of_the_table_can_be_given() -> None:
    assert {r.name for r in RULES} == set(GATES.values())
