"""What every analyzer obeys: numbers follow ids and clusters, not positions, units or sides; undefined is None."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from results import all_results, assert_same, numbers_of, scaled, summary_of
from tables import BLOCKS, PROJECTED, RECIPE, Table, changed, four_tables, taken

from graddiag.signals import Signals

WHOLE = ("blocks_surviving", "random_sd", "safety_clusters", "safety_largest_cluster")  # ends of keys that no block has


def test_every_key_of_the_interface_is_there_and_says_what_it_was_computed_from() -> None:
    results = all_results(four_tables(), center=True)
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
        "alignment/safety_clusters",
        "alignment/safety_largest_cluster",
        *(f"alignment/{n}/random_sd" for n in ("left", "right", "control:benign")),
        *(f"projection/error{k}" for k in ("", "_partners", "_strangers", "_safety")),
        *(f"{k}/projection_se" for k in PROJECTED),
    }
    for result in results:
        assert result.kinds().keys() == result.summary().keys()
        assert set(result.kinds().values()) <= {"exact", "projected", "loss"}
    assert "conflict/forced" not in summary_of(four_tables())


def test_blocks_have_the_keys_of_the_whole_a_false_discovery_rate_and_a_familywise_p() -> None:
    found = all_results(four_tables())
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
    for result in all_results(four_tables(replace(RECIPE, blocks=BLOCKS[:1])))[1:]:
        block = result.block_summary()[BLOCKS[0]]
        whole = {
            k: v for k, v in result.summary().items() if "error_" not in k and k not in exact and not k.endswith(WHOLE)
        }
        assert {k for k, v in whole.items() if v is None} <= no_framing
        assert {k: block[k] for k in whole} == whole


def test_pairs_follow_ids_not_positions() -> None:
    tables = four_tables()
    order = np.random.default_rng(1).permutation(12)
    assert_same(numbers_of({**tables, "right": taken(tables["right"], order)}), numbers_of(tables))
    both = {**tables, "right": taken(tables["right"], order[::-1]), "left": taken(tables["left"], order)}
    assert_same(numbers_of(both), numbers_of(tables), random=True)


def test_splitting_and_concatenating_the_tables_changes_nothing() -> None:
    tables = four_tables()
    halves = {k: (taken(t, range(3)), taken(t, range(3, len(t.signals)))) for k, t in tables.items()}
    joined = {k: Table(Signals.concat([a.signals, b.signals]), tables[k].full) for k, (a, b) in halves.items()}
    assert summary_of(joined) == summary_of(tables)


@pytest.mark.parametrize("center", [False, True])
def test_cosines_do_not_see_the_length_of_gradients(center: bool) -> None:
    tables = four_tables(exact=False)
    got = numbers_of({k: scaled(t, 1e-12) for k, t in tables.items()}, center=center)
    expected = numbers_of(tables, center=center)
    if center:
        assert got.pop("conflict/forced") == pytest.approx(1e-24 * expected.pop("conflict/forced"), rel=1e-9, abs=0)
    assert_same(got, expected)


def test_exchanging_the_sides_exchanges_the_signs() -> None:
    tables = four_tables()
    expected, before = numbers_of(tables), numbers_of(tables)
    toward = ("framing/safety_cosine", "framing/safety_cosine_corrected", "alignment/difference")
    for key in ("loss_gap/mean", "loss_gap/effect_size", *toward):
        expected[key] = -before[key]
    for key in ("loss_gap", *toward):
        expected[f"{key}/low"], expected[f"{key}/high"] = -before[f"{key}/high"], -before[f"{key}/low"]
    keys = ("loss/{}", "alignment/{}", "alignment/{}/low", "alignment/{}/high", "conflict/within_{}")
    for key in (*keys, "conflict/within_{}/projection_se", "alignment/{}/random_sd"):
        left, right = key.format("left"), key.format("right")
        expected[left], expected[right] = before[right], before[left]
    assert_same(numbers_of({**tables, "left": tables["right"], "right": tables["left"]}), expected, random=True)


def test_turning_all_gradients_round_changes_only_what_points_to_safety() -> None:
    tables = four_tables(exact=False)
    turned = {k: t if k == "safety" else scaled(t, -1) for k, t in tables.items()}
    got, expected = numbers_of(turned), numbers_of(tables)
    for key in [k for k in expected if k.startswith("conflict/") or k in ("framing/consistency", "framing/p")]:
        assert got[key] == pytest.approx(expected[key])
    for key in ("framing/safety_cosine", "alignment/left", "alignment/difference", "alignment/control:benign"):
        assert got[key] == pytest.approx(-expected[key])


def _repeated(table: Table, times: int) -> Table:
    """The table with copies of every row in the row's cluster; the copies of partners are partners."""
    s = table.signals
    copies = [replace(s, ids=tuple(f"{i}#{k}" for i in s.ids)) for k in range(times)]
    return Table(Signals.concat(copies), {b: np.concatenate([g] * times) for b, g in table.full.items()})


def test_copies_of_rows_inside_their_clusters_add_no_certainty() -> None:
    tables = four_tables()
    got = numbers_of({k: t if k == "safety" else _repeated(t, 3) for k, t in tables.items()})
    expected = numbers_of(tables)
    certain = [k for k in expected if k.endswith(("/low", "/high", "/p")) and k != "conflict/p"]
    assert len(certain) > 15
    for key in [*certain, "conflict/paired_cosine", "conflict/mean_gradient_cosine_corrected", "alignment/difference"]:
        assert got[key] == pytest.approx(expected[key], rel=1e-9), key


def test_without_clusters_the_same_rows_look_more_certain() -> None:
    tables = four_tables(replace(RECIPE, cluster_effect=3.0, n=24))
    got = numbers_of({k: changed(t, lambda s: replace(s, clusters=s.ids)) for k, t in tables.items()})
    expected = numbers_of(tables)
    for key in ("alignment/left", "alignment/right"):
        assert got[f"{key}/high"] - got[f"{key}/low"] < 0.5 * (expected[f"{key}/high"] - expected[f"{key}/low"])


def test_every_summary_is_strict_json() -> None:
    for n in (1, 2, 12):
        tables = {k: taken(t, range(min(n, 7))) for k, t in four_tables(exact=False).items()}
        for result in all_results(tables, center=True):
            json.dumps([result.summary(), result.block_summary()], allow_nan=False)


def test_analysis_needs_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'click', 'seaborn'}"
    code = f"import sys, graddiag.analyzers; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
