"""Data on which statistics break: every analysis of a comparison, and what may be claimed where there is little to see.

Laws: nothing raises, and NumPy does not warn (pyproject.toml turns its warnings in graddiag into errors); what is
undefined is None and never 0; an interval holds its estimate and has no infinite end; no p is below the smallest
that its permutations can give; few clusters are said; nothing is claimed of sides between which there is nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import pytest
from degenerate import CASES, drawn, spoilt
from findings import conclude
from scipy.stats import t
from tables import compared, with_reference

from graddiag.analyzers import edit_change
from graddiag.errors import DataError
from graddiag.findings import Findings
from graddiag.permutations import DRAWS, smallest_p
from graddiag.publishing import setting_of
from graddiag.ranking import Means, Scalars, rank_rows
from graddiag.rules import FEW_CLUSTERS, Scale, judge, stem_of
from graddiag.screen_verdict import Screening, screen_verdict
from graddiag.verdict import evidence_of, verdict

BETWEEN: dict[str, Scale] = {  # claims about the two sides
    "loss_gap/mean": "difference",
    "conflict/paired_cosine": "paired",
    "conflict/mean_gradient_cosine_corrected": "cosine",
    "framing/consistency": "length",
    "framing/safety_cosine_corrected": "contrast",
    "alignment/difference": "difference",
}
TOWARD: dict[str, Scale] = {f"alignment/{s}": "cosine" for s in ("left", "right", "control:benign")}
CLAIMS = {"conflict", "opposed", "aligned", "difference"}


def found_in(case: str, *, known: bool = False, center: bool = False, safety: bool = True) -> Findings:
    """Everything about the tables of a case; with `known`, exact products of pairs and with safety."""
    tables = CASES[case]()
    if known:
        tables = {r: x if r == "safety" else with_reference(x, tables["safety"]) for r, x in tables.items()}
    comparison = compared(tables["left"], tables["right"], exact=known)
    return conclude(comparison, tables, center=center, safety=safety)


def words(found: Findings, keys: Mapping[str, Scale]) -> dict[str, str]:
    """The word that each number gets."""
    summary, setting = found.summary(), setting_of(found)
    return {key: judge(evidence_of(summary, setting, scale, key)).word for key, scale in keys.items()}


def check_numbers(flat: Mapping[str, float | None]) -> None:
    """Every number is finite or None, and every interval whole and around its estimate."""
    json.dumps(dict(flat), allow_nan=False)
    for key in flat:
        low, high = flat.get(f"{stem_of(key)}/low"), flat.get(f"{stem_of(key)}/high")
        if f"{stem_of(key)}/low" not in flat or key.endswith(("/low", "/high", "/p", "/q", "/p_fwe")):
            continue
        if low is None or high is None:
            assert low is high is None, f"{key} has half an interval"
            continue
        value = flat[key]
        assert value is not None, f"{key} has an interval and no value"
        slack = 1e-9 * max(abs(value), 1e-300)
        assert low - slack <= value <= high + slack, key


def check_p(found: Findings) -> None:
    """No p is below what its permutations can give."""
    n = found.loss_gap.n_clusters
    least = smallest_p(n)
    for flat in (found.summary(), *found.block_summary().values()):
        for key, p in flat.items():
            if not key.endswith(("/p", "/p_fwe", "/q", "wilcoxon_p")) or p is None:
                continue
            assert 0 < p <= 1, key
            if key.endswith("/p") and "conflict/" not in key:
                assert n > 1, f"{key} of a single cluster"
                assert p >= least, key
            if "conflict/" in key and key.endswith("/p"):
                assert p >= 1 / (1 + DRAWS), key


NOTHING = ["identical sides", "identical sides, each row its own cluster"]


@pytest.mark.parametrize(("known", "center"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("case", CASES)
def test_every_number_is_finite_or_undefined_and_inside_its_interval(case: str, known: bool, center: bool) -> None:
    found = found_in(case, known=known, center=center)
    for flat in (found.summary(), *found.block_summary().values()):
        check_numbers(flat)
    check_p(found)
    assert found_in(case, known=known, center=center, safety=False).summary().keys() <= found.summary().keys()


@pytest.mark.parametrize("case", CASES)
def test_the_verdict_says_how_few_clusters_there_are(case: str) -> None:
    found = found_in(case)
    said = " ".join(verdict(found.summary(), setting_of(found)))
    n = found.loss_gap.n_clusters
    assert ("Few clusters" in said) == (1 < n < FEW_CLUSTERS)
    assert ("One cluster" in said) == (n == 1)
    assert ("There are no pairs" in said) == (n == 0)
    assert "nan" not in said


@pytest.mark.parametrize("case", ["one pair", "two pairs of one cluster", "a single cluster", "no pairs"])
def test_nothing_between_the_sides_is_claimed_from_less_than_two_clusters(case: str) -> None:
    found = found_in(case)
    paired = {k: v for k, v in BETWEEN.items() if case != "no pairs" or "mean_gradient" not in k}
    assert set(words(found, paired).values()) == {"not measurable"}


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("case", NOTHING)
def test_identical_sides_have_no_difference_of_any_kind(case: str, center: bool) -> None:
    found = found_in(case, center=center)
    summary = found.summary()
    assert summary["loss_gap/mean"] == summary["alignment/difference"] == 0
    assert summary["loss_gap/p"] == summary["alignment/difference/p"] == summary["framing/p"] == 1
    assert summary["framing/safety_cosine_corrected"] is None
    said = words(found, BETWEEN)
    differences = {k for k, s in BETWEEN.items() if s in {"difference", "length", "contrast"}}
    assert not {said[k] for k in differences} & CLAIMS
    assert not set(said.values()) & {"conflict", "opposed"}
    assert summary["framing/blocks_surviving"] == summary["alignment/blocks_surviving"] == 0
    for flat in found.block_summary().values():
        assert flat["framing/p"] == flat["framing/p_fwe"] == flat["alignment/difference/p"] == 1


def test_gradients_of_zero_carry_no_claim() -> None:
    said = words(found_in("gradients of zero"), BETWEEN | TOWARD)
    del said["loss_gap/mean"]
    assert set(said.values()) == {"not measurable"}


def test_mean_gradients_of_zero_carry_no_claim_whatever_single_rows_do() -> None:
    said = words(found_in("opposite twins"), BETWEEN | TOWARD)
    assert said.pop("conflict/paired_cosine") == "aligned", "partners are alike, twin by twin"
    assert not set(said.values()) & CLAIMS, said


def test_a_safety_set_that_points_nowhere_is_related_to_nothing() -> None:
    for case in ("a safety set of zeros", "gradients of zero on one side"):
        said = words(found_in(case), TOWARD | {"framing/safety_cosine_corrected": "contrast"})
        assert said["alignment/left"] == "not measurable"
        if case == "a safety set of zeros":
            assert set(said.values()) == {"not measurable"}


def test_one_safety_row_does_not_make_a_direction_known() -> None:
    summary = found_in("one finite safety row").summary()
    assert summary["alignment/safety_split_half"] is None
    assert summary["framing/safety_cosine_corrected"] is None


def test_a_control_without_a_finite_row_has_defined_nulls() -> None:
    summary = found_in("no finite row in the control").summary()
    about = {k: v for k, v in summary.items() if "control:benign" in k}
    assert len(about) > 10
    assert {k for k, v in about.items() if v is not None} == set()


@pytest.mark.parametrize("role", ["left", "right", "safety"])
def test_a_set_without_a_finite_row_is_refused_with_what_to_do(role: str) -> None:
    tables = drawn()
    tables[role] = spoilt(tables[role], list(range(len(tables[role].signals))))
    with pytest.raises(DataError, match="none of its"):
        conclude(compared(tables["left"], tables["right"]), tables)


@pytest.mark.parametrize("k", range(2, FEW_CLUSTERS))
def test_few_clusters_widen_an_interval_as_student_t_does(k: int) -> None:
    found = found_in(f"{k} clusters")
    gap, clusters = found.loss_gap.gap, found.loss_gap.clusters
    without = np.array([gap[clusters != c].mean() for c in range(k)])
    error = math.sqrt((k - 1) / k * ((without - gap.mean()) ** 2).sum())
    half = (found.loss_gap.mean.high - found.loss_gap.mean.low) / 2
    assert half / error == pytest.approx(t.ppf(0.975, k - 1))


def test_an_edit_that_changes_nothing_has_a_change_of_zero_and_a_p_of_one() -> None:
    for case in CASES:
        found = found_in(case)
        parts = (found.loss_gap, found.conflict, found.alignment)
        flat = edit_change(parts, parts).summary()
        check_numbers(flat)
        for name in ("loss_gap", "paired_cosine", "alignment_difference"):
            assert flat[f"change/{name}"] in {0, None}, (case, name)
            assert flat[f"change/{name}/p"] in {1, None}, (case, name)


def ranked(case: str, by: str) -> Screening:
    """The left rows of a case as a screening would rank them: by products with the means of two halves of safety."""
    tables = CASES[case]()
    safety, left = tables["safety"], tables["left"]
    kept = np.flatnonzero(safety.signals.finite)
    halves = [h for h in np.array_split(kept, 2) if len(h)]
    means = np.array([safety.whole()[h].mean(axis=0) for h in halves])
    s, whole = left.signals, np.where(left.signals.finite[:, None], left.whole(), 0.0)
    norms = np.linalg.norm(whole, axis=1)
    rows = Scalars(s.ids, s.clusters, s.loss, s.n_tokens, s.finite, norms, whole @ means.T, s.ids)
    known = Means(means @ means.T, tuple(len(h) for h in halves), tuple(range(len(halves))))
    ranking = rank_rows(rows, known, by=by)
    return Screening(ranking, {"itself": ranking}, "left", "safety", 0.1)


@pytest.mark.parametrize("by", ["alignment", "harm"])
@pytest.mark.parametrize("case", CASES)
def test_a_screening_ranks_every_row_that_has_a_score_and_no_other(case: str, by: str) -> None:
    found = ranked(case, by)
    check_numbers(found.summary())
    known = np.isfinite(found.ranking.score)
    assert sorted(found.ranking.rank[known]) == list(range(1, int(known.sum()) + 1))
    assert not found.ranking.rank[~known].any()
    lines = " ".join(screen_verdict(found))
    assert ("Few clusters" in lines) == (len(set(found.ranking.rows.clusters)) < FEW_CLUSTERS)
    if case in {"gradients of zero", "a safety set of zeros"}:
        assert "Cosine of a row with safety: not measurable" in lines
