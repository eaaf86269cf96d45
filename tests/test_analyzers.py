"""What every analyzer obeys: numbers follow ids and clusters, not positions, units or sides; undefined is None."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from tables import BLOCKS, PROJECTED, RECIPE, Table, changed, compared, four_tables, table_of, taken

from graddiag.analyzers import (
    Alignment,
    Audit,
    Conflict,
    Framing,
    LossGap,
    alignment,
    audit,
    conflict,
    framing,
    loss_gap,
)
from graddiag.signals import Signals

WHOLE = ("blocks_surviving", "random_sd")  # ends of keys that single blocks do not have

Result = LossGap | Conflict | Framing | Alignment | Audit


def _results(tables: Mapping[str, Table], *, exact: bool = True, center: bool = False) -> list[Result]:
    comparison = compared(tables["left"], tables["right"], exact=exact)
    safety, controls = tables["safety"].signals, {"benign": tables["control"].signals}
    return [
        loss_gap(comparison),
        conflict(comparison, center=center),
        framing(comparison, safety),
        alignment(comparison, safety, controls),
        audit(comparison, safety, controls),
    ]


def _summary(tables: Mapping[str, Table], *, exact: bool = True, center: bool = False) -> dict[str, float | None]:
    return {k: v for r in _results(tables, exact=exact, center=center) for k, v in r.summary().items()}


def _numbers(tables: Mapping[str, Table], *, exact: bool = True, center: bool = False) -> dict[str, float]:
    """The summary without what is undefined."""
    return {k: v for k, v in _summary(tables, exact=exact, center=center).items() if v is not None}


def _same(got: Mapping[str, float], expected: Mapping[str, float], *, random: bool = False) -> None:
    """Equal up to rounding; with `random`, the p of permuted partners up to its Monte-Carlo error."""
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        rough = random and key == "conflict/p"
        assert got[key] == pytest.approx(value, rel=1e-9, abs=0.02 if rough else 1e-12), key


def _scaled(table: Table, factor: float) -> Table:
    s = table.signals
    return table_of(
        {b: factor * g for b, g in table.full.items()},
        name=s.provenance.data,
        ids=s.ids,
        clusters=s.clusters,
        loss=s.loss.tolist(),
    )


def test_every_key_of_the_interface_is_there_and_says_what_it_was_computed_from() -> None:
    results = _results(four_tables(), center=True)
    keys = {k for r in results for k in r.summary()}
    assert keys == {
        *("pairs/n", "pairs/identical", "pairs/clusters", "loss/left", "loss/right"),
        *(f"loss_gap/{k}" for k in ("mean", "low", "high", "p", "effect_size", "wilcoxon_p")),
        *(
            f"conflict/{k}"
            for k in (
                "paired_cosine",
                "low",
                "high",
                "p",
                "negative_fraction",
                "same_cluster",
                "other_cluster",
                "forced",
            )
        ),
        *(f"conflict/{k}" for k in ("within_left", "within_right", "across", "mean_gradient_cosine")),
        *(f"conflict/mean_gradient_cosine_corrected{k}" for k in ("", "/low", "/high")),
        *("conflict/label_distance", "conflict/label_distance/p"),
        *("framing/consistency", "framing/consistency_null", "framing/p"),
        *(f"framing/safety_cosine{form}{k}" for form in ("", "_corrected") for k in ("", "/low", "/high")),
        *(
            f"alignment/{n}{k}"
            for n in ("left", "right", "difference", "control:benign")
            for k in ("", "/low", "/high")
        ),
        "alignment/difference/p",
        *(f"{form}/blocks_surviving" for form in ("conflict", "framing", "alignment")),
        *(f"alignment/safety_split_half{end}" for end in ("", "/low", "/high")),
        *(f"alignment/{n}/random_sd" for n in ("left", "right", "control:benign")),
        *(f"projection/error{k}" for k in ("", "_partners", "_strangers", "_safety")),
        *(f"{k}/projection_se" for k in PROJECTED),
    }
    for result in results:
        assert result.kinds().keys() == result.summary().keys()
        assert set(result.kinds().values()) <= {"exact", "projected", "loss"}
    assert "conflict/forced" not in _summary(four_tables())


def test_blocks_have_the_keys_of_the_whole_a_false_discovery_rate_and_a_familywise_p() -> None:
    found = _results(four_tables())
    for result, tests in zip(found[1:4], (2, 1, 1), strict=True):
        extra = {k for k in result.block_summary()[BLOCKS[0]] if k.endswith(("/q", "/p_fwe"))}
        assert len(extra) == 2 * tests
        whole = {k for k in result.summary() if not k.endswith(WHOLE)}
        assert tuple(result.block_summary()) == BLOCKS
        assert all(v.keys() == whole | extra for v in result.block_summary().values())
    assert found[0].block_summary() == {}
    assert found[4].block_summary().keys() == set(BLOCKS)


def test_one_block_is_the_whole() -> None:
    exact = {"conflict/paired_cosine/projection_se", *(k + "/projection_se" for k in PROJECTED if "alignment" in k)}
    no_framing = {f"framing/safety_cosine_corrected/{end}" for end in ("low", "high")}  # both sides share a direction
    for result in _results(four_tables(replace(RECIPE, blocks=BLOCKS[:1])))[1:]:
        block = result.block_summary()[BLOCKS[0]]
        whole = {
            k: v for k, v in result.summary().items() if "error_" not in k and k not in exact and not k.endswith(WHOLE)
        }
        assert {k for k, v in whole.items() if v is None} <= no_framing
        assert {k: block[k] for k in whole} == whole


def test_pairs_follow_ids_not_positions() -> None:
    tables = four_tables()
    order = np.random.default_rng(1).permutation(12)
    _same(_numbers({**tables, "right": taken(tables["right"], order)}), _numbers(tables))
    both = {**tables, "right": taken(tables["right"], order[::-1]), "left": taken(tables["left"], order)}
    _same(_numbers(both), _numbers(tables), random=True)


def test_splitting_and_concatenating_the_tables_changes_nothing() -> None:
    tables = four_tables()
    halves = {k: (taken(t, range(3)), taken(t, range(3, len(t.signals)))) for k, t in tables.items()}
    joined = {k: Table(Signals.concat([a.signals, b.signals]), tables[k].full) for k, (a, b) in halves.items()}
    assert _summary(joined) == _summary(tables)


@pytest.mark.parametrize("center", [False, True])
def test_cosines_do_not_see_the_length_of_gradients(center: bool) -> None:
    tables = four_tables(exact=False)
    got = _numbers({k: _scaled(t, 1e-12) for k, t in tables.items()}, center=center)
    expected = _numbers(tables, center=center)
    if center:
        assert got.pop("conflict/forced") == pytest.approx(1e-24 * expected.pop("conflict/forced"), rel=1e-9, abs=0)
    _same(got, expected)


def test_exchanging_the_sides_exchanges_the_signs() -> None:
    tables = four_tables()
    expected, before = _numbers(tables), _numbers(tables)
    toward = ("framing/safety_cosine", "framing/safety_cosine_corrected", "alignment/difference")
    for key in ("loss_gap/mean", "loss_gap/effect_size", *toward):
        expected[key] = -before[key]
    for key in ("loss_gap", *toward):
        expected[f"{key}/low"], expected[f"{key}/high"] = -before[f"{key}/high"], -before[f"{key}/low"]
    keys = ("loss/{}", "alignment/{}", "alignment/{}/low", "alignment/{}/high", "conflict/within_{}")
    for key in (*keys, "conflict/within_{}/projection_se", "alignment/{}/random_sd"):
        left, right = key.format("left"), key.format("right")
        expected[left], expected[right] = before[right], before[left]
    _same(_numbers({**tables, "left": tables["right"], "right": tables["left"]}), expected, random=True)


def test_turning_all_gradients_round_changes_only_what_points_to_safety() -> None:
    tables = four_tables(exact=False)
    turned = {k: t if k == "safety" else _scaled(t, -1) for k, t in tables.items()}
    got, expected = _numbers(turned), _numbers(tables)
    for key in [k for k in expected if k.startswith("conflict/") or k in ("framing/consistency", "framing/p")]:
        assert got[key] == pytest.approx(expected[key])
    for key in ("framing/safety_cosine", "alignment/left", "alignment/difference", "alignment/control:benign"):
        assert got[key] == pytest.approx(-expected[key])


def _with_broken_rows(table: Table, where: list[int]) -> Table:
    """The table with rows put in at these places that are marked as not finite: gradients of NaN, a huge loss."""
    s = table.signals
    n = len(s) + len(where)
    extra = replace(s.take(range(len(where))), ids=tuple(f"broken-{i}" for i in where))
    bad = np.isin(np.arange(n), where)
    order = np.empty(n, dtype=np.int64)
    order[~bad], order[bad] = np.arange(len(s)), np.arange(len(s), n)
    out = Signals.concat([s, extra]).take(order)
    spoilt = replace(
        out,
        loss=np.where(bad, 1e3, out.loss),
        finite=~bad,
        norms={b: np.where(bad, np.nan, v) for b, v in out.norms.items()},
        gradients={b: np.where(bad[:, None], np.nan, v) for b, v in out.gradients.items()},
        reference_dot={b: np.where(bad, np.nan, v) for b, v in out.reference_dot.items()},
    )
    return Table(spoilt, table.full)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_rows_that_are_not_finite_are_in_no_statistic(center: bool, known: bool) -> None:
    tables = four_tables(exact=known)
    broken = {k: t if known and k == "safety" else _with_broken_rows(t, [0, 5]) for k, t in tables.items()}
    assert np.isnan(broken["left"].signals.gradients[BLOCKS[0]]).any()
    _same(_numbers(broken, center=center, exact=False), _numbers(tables, center=center, exact=False))
    rows = alignment(compared(broken["left"], broken["right"]), broken["safety"].signals).rows["left"]
    assert np.flatnonzero(np.isnan(rows)).tolist() == [0, 5]


def _repeated(table: Table, times: int) -> Table:
    """The table with copies of every row in the row's cluster; the copies of partners are partners."""
    s = table.signals
    copies = [replace(s, ids=tuple(f"{i}#{k}" for i in s.ids)) for k in range(times)]
    return Table(Signals.concat(copies), {b: np.concatenate([g] * times) for b, g in table.full.items()})


def test_copies_of_rows_inside_their_clusters_add_no_certainty() -> None:
    tables = four_tables()
    got = _numbers({k: t if k == "safety" else _repeated(t, 3) for k, t in tables.items()})
    expected = _numbers(tables)
    certain = [k for k in expected if k.endswith(("/low", "/high", "/p")) and k != "conflict/p"]
    assert len(certain) > 15
    for key in [*certain, "conflict/paired_cosine", "conflict/mean_gradient_cosine_corrected", "alignment/difference"]:
        assert got[key] == pytest.approx(expected[key], rel=1e-9), key


def test_without_clusters_the_same_rows_look_more_certain() -> None:
    tables = four_tables(replace(RECIPE, cluster_effect=3.0, n=24))
    got = _numbers({k: changed(t, lambda s: replace(s, clusters=s.ids)) for k, t in tables.items()})
    expected = _numbers(tables)
    for key in ("alignment/left", "alignment/right"):
        assert got[f"{key}/high"] - got[f"{key}/low"] < 0.5 * (expected[f"{key}/high"] - expected[f"{key}/low"])


def test_without_pairs_the_paired_numbers_are_undefined_and_the_others_the_same() -> None:
    tables = four_tables(exact=False)
    apart = changed(tables["right"], lambda s: replace(s, ids=tuple(f"other-{i}" for i in s.ids)))
    got, expected = _summary({**tables, "right": apart}), _summary(tables)
    assert got["pairs/n"] == got["pairs/identical"] == got["pairs/clusters"] == 0
    paired = [k for k in expected if k.startswith(("loss_gap/", "framing/", "alignment/difference"))]
    paired += ["conflict/paired_cosine", "conflict/low", "conflict/high", "conflict/p", "conflict/negative_fraction"]
    assert {got[k] for k in paired} == {None}
    same = (
        "loss/left",
        "alignment/left",
        "alignment/left/high",
        "conflict/within_left",
        "conflict/mean_gradient_cosine",
    )
    assert [got[k] for k in same] == pytest.approx([expected[k] for k in same])
    assert got["conflict/across"] is not None


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_one_row_a_side_is_enough_for_a_result(exact: bool, center: bool) -> None:
    tables = {k: taken(t, [0]) for k, t in four_tables(exact=False).items()}
    got = _summary(tables, exact=exact, center=center)
    assert got["pairs/n"] == 1
    assert got["framing/consistency"] == pytest.approx(1)
    undefined = {"loss_gap/effect_size", "loss_gap/low", "loss_gap/p", "framing/p", "framing/safety_cosine/low"}
    undefined |= {"conflict/low", "conflict/p", "conflict/within_left", "conflict/mean_gradient_cosine_corrected"}
    assert {got[k] for k in undefined} == {None}
    if center:
        assert got["conflict/paired_cosine"] == pytest.approx(-1)


def test_one_cluster_has_values_but_neither_intervals_nor_flips() -> None:
    tables = {k: changed(t, lambda s: replace(s, clusters=("one",) * len(s))) for k, t in four_tables().items()}
    got = _summary(tables)
    assert {v for k, v in got.items() if k.endswith(("/low", "/high"))} == {None}
    assert got["loss_gap/p"] is got["framing/p"] is got["alignment/difference/p"] is None
    assert got["conflict/label_distance/p"] is None
    assert got["conflict/mean_gradient_cosine_corrected"] is None
    values = ("conflict/p", "loss_gap/mean", "conflict/paired_cosine", "framing/safety_cosine", "alignment/left")
    assert all(isinstance(got[k], float) for k in values)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_gradients_that_are_all_zero_have_no_direction(exact: bool, center: bool) -> None:
    tables = four_tables(exact=False)
    zero = {k: _scaled(t, 0.0) for k, t in tables.items()}
    got = _summary(zero, exact=exact, center=center)
    cosines = [k for k in got if k.startswith(("conflict/", "alignment/", "framing/")) and not k.endswith("forced")]
    moved = {"framing/p", "framing/blocks_surviving", "conflict/label_distance/p"}  # by nothing, whatever the signs
    assert {got[k] for k in cosines if k not in moved} == {None}
    assert got["framing/p"] == got["conflict/label_distance/p"] == 1
    assert got["framing/blocks_surviving"] == 0
    assert got["loss_gap/mean"] is not None


def test_equal_sides_have_no_gap_and_no_framing_gradient() -> None:
    tables = four_tables(exact=False)
    same = table_of(tables["left"].full, name="right", loss=tables["left"].signals.loss.tolist())
    got = _summary({**tables, "right": same})
    assert got["loss_gap/mean"] == got["loss_gap/low"] == got["loss_gap/high"] == got["alignment/difference"] == 0
    assert got["loss_gap/p"] == got["framing/p"] == got["alignment/difference/p"] == 1
    assert got["conflict/label_distance/p"] == 1
    assert got["loss_gap/effect_size"] is got["loss_gap/wilcoxon_p"] is None
    assert got["framing/consistency"] is got["framing/safety_cosine"] is None
    assert got["conflict/paired_cosine"] == pytest.approx(1)


def test_every_summary_is_strict_json() -> None:
    for n in (1, 2, 12):
        tables = {k: taken(t, range(min(n, 7))) for k, t in four_tables(exact=False).items()}
        for result in _results(tables, center=True):
            json.dumps([result.summary(), result.block_summary()], allow_nan=False)


def test_analysis_needs_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'click', 'seaborn'}"
    code = f"import sys, graddiag.analyzers; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
