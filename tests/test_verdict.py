"""What may be claimed: planted numbers, and the words they must and must not get."""

from __future__ import annotations

import itertools
import math
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graddiag.rules import LIMITS, RULES, Evidence, Scale, Setting, judge
from graddiag.verdict import MOST_LINES, verdict

NOTHING: dict[str, float | None] = {"pairs/n": 0, "pairs/identical": 0, "pairs/clusters": 0}

HOSTILE = "<script>alert(1)</script>\x1b[31m"
SETTING = Setting("insecure", "educational", "safety", ("benign",))
OPPOSED = {
    "conflict/paired_cosine": -0.3, "conflict/low": -0.4, "conflict/high": -0.2, "conflict/p": 0.001,
    "conflict/same_cluster": 0.1, "conflict/negative_fraction": 0.9,
}  # fmt: skip


def _cosine(key: str, value: float, half: float = 0.02) -> dict[str, float | None]:
    return {key: value, f"{key}/low": value - half, f"{key}/high": value + half}


def _summary(**changes: float | None) -> dict[str, float | None]:
    """Two sides that share a direction: nothing between them, both aligned with safety like the control."""
    out: dict[str, float | None] = {
        "pairs/n": 120, "pairs/identical": 120, "pairs/clusters": 20, "projection/error": 0.01,
        "loss_gap/mean": 0.01, "loss_gap/low": -0.05, "loss_gap/high": 0.07, "loss_gap/p": 0.7,
        "loss_gap/effect_size": 0.04,
        "conflict/paired_cosine": 0.8, "conflict/low": 0.75, "conflict/high": 0.85, "conflict/p": 0.001,
        "conflict/same_cluster": 0.4, "conflict/negative_fraction": 0.0, "conflict/mean_gradient_cosine": 0.9,
        "framing/consistency": 1.1, "framing/p": 0.4,
        "alignment/difference/p": 0.6,
    }  # fmt: skip
    out |= _cosine("conflict/mean_gradient_cosine_corrected", 0.95)
    out |= _cosine("framing/safety_cosine", 0.0) | _cosine("framing/safety_cosine_corrected", 0.0)
    out |= _cosine("alignment/left", 0.2) | _cosine("alignment/right", 0.2) | _cosine("alignment/control:benign", 0.2)
    out |= _cosine("alignment/difference", 0.0)
    return out | {k.replace("__", "/"): v for k, v in changes.items()}


def _line(lines: list[str], start: str) -> str:
    found = [line for line in lines if line.startswith(start)]
    assert len(found) == 1, (start, lines)
    return found[0]


def test_sides_that_share_a_direction_are_aligned_and_nothing_else_is_claimed() -> None:
    lines = verdict(_summary(), SETTING)
    assert "aligned (+0.800 [+0.750, +0.850]" in _line(lines, "Cosine of a pair's gradients")
    assert "no difference found" in _line(lines, "Loss of insecure minus educational")
    assert "small effect" in _line(lines, "Loss of insecure minus educational")
    assert "no difference found" in _line(lines, "Mean framing gradient")
    assert "no difference found" in _line(lines, "Left minus right in that cosine")
    assert not any("conflict" in line or "opposed" in line for line in lines)


def test_conflict_needs_the_interval_and_the_null_and_partners_more_opposed_than_others() -> None:
    assert "conflict (" in _line(verdict(_summary() | OPPOSED, SETTING), "Cosine of a pair")
    for weaker in ({"conflict/p": 0.2}, {"conflict/p": None}, {"conflict/same_cluster": -0.5}):
        line = _line(verdict(_summary() | OPPOSED | weaker, SETTING), "Cosine of a pair")
        assert "opposed" in line
        assert "conflict" not in line
        assert "the null of permuted partners is not crossed" in line
    wide = _line(verdict(_summary() | OPPOSED | {"conflict/high": 0.1}, SETTING), "Cosine of a pair")
    assert "no difference found" in wide


def test_mean_gradients_are_opposed_only_if_permuted_labels_are_not_as_far_apart() -> None:
    below = (
        _summary() | _cosine("conflict/mean_gradient_cosine_corrected", -0.3) | {"conflict/mean_gradient_cosine": -0.2}
    )
    for p in (0.3, 0.05, None):
        line = _line(verdict(below | {"conflict/label_distance/p": p}, SETTING), "Cosine of the mean gradients")
        assert "no difference found" in line
        assert "the null of permuted labels is not crossed" in line
        assert "opposed" not in line
    line = _line(verdict(below | {"conflict/label_distance/p": 0.003}, SETTING), "Cosine of the mean gradients")
    assert "opposed (-0.200, corrected for noise -0.300" in line
    assert "as far apart under permuted labels, p = 0.003" in line
    for p in (0.3, 0.003):
        line = _line(verdict(_summary(conflict__label_distance__p=p), SETTING), "Cosine of the mean gradients")
        assert "aligned" in line, "means that differ may well agree"


def test_partners_hardly_more_opposed_than_strangers_are_no_conflict_if_the_projection_could_have_made_it() -> None:
    near = _summary() | OPPOSED | {"conflict/same_cluster": -0.295, "projection/error": 0.01}
    projected = replace(SETTING, kinds={"conflict/paired_cosine": "projected"})
    assert "opposed" in _line(verdict(near, projected), "Cosine of a pair")


def test_a_loss_gap_is_a_difference_only_with_interval_and_p() -> None:
    gap = {"loss_gap/mean": 0.32, "loss_gap/low": 0.2, "loss_gap/high": 0.44, "loss_gap/effect_size": 0.9}
    found = _line(verdict(_summary() | gap | {"loss_gap/p": 0.002}, SETTING), "Loss of")
    assert "difference (+0.320 [+0.200, +0.440] nats/token, p = 0.002, d_z = +0.90)" in found
    for p in (0.05, 0.3, None):
        line = _line(verdict(_summary() | gap | {"loss_gap/p": p}, SETTING), "Loss of")
        assert "no difference found" in line
        assert "the null is not crossed" in line


def test_a_projected_cosine_within_the_projection_error_claims_nothing() -> None:
    near = _summary(projection__error=0.05) | _cosine("framing/safety_cosine_corrected", -0.04, 0.01)
    projected = replace(SETTING, kinds={"framing/safety_cosine_corrected": "projected"})
    assert "within the projection's error" in _line(verdict(near, projected), "Framing gradient with safety")
    exact = replace(SETTING, kinds={"framing/safety_cosine_corrected": "exact"})
    line = _line(verdict(near, exact), "Framing gradient with safety")
    assert "difference" in line
    assert "opposed" not in line, "a difference below 0 does not make either side opposed"


def test_the_raw_cosine_of_framing_with_safety_carries_no_claim() -> None:
    raw = _cosine("framing/safety_cosine", -0.3, 0.05)
    assert "no difference found (-0.300" in _line(verdict(_summary() | raw, SETTING), "Framing gradient with safety")
    unmeasured = raw | dict.fromkeys(_cosine("framing/safety_cosine_corrected", 0.0), None)
    line = _line(verdict(_summary() | unmeasured, SETTING), "Framing gradient with safety")
    assert line == "Framing gradient with safety: not measurable."
    unknown = _summary() | _cosine("framing/safety_cosine_corrected", -0.3) | {"alignment/safety_split_half/low": -0.1}
    assert "the safety direction is not known" in _line(verdict(unknown, SETTING), "Framing gradient with safety")


def test_nothing_is_said_along_a_safety_direction_whose_halves_cannot_be_compared() -> None:
    """As where all safe answers are the same two sentences: a split half without an interval, or none at all."""
    known = _summary() | _cosine("alignment/left", -0.3) | {"alignment/safety_split_half/low": 0.5}
    assert "opposed" in _line(verdict(known, SETTING), "Cosine of insecure with safety")
    unknown = known | {"alignment/safety_split_half/low": None}
    for line in verdict(unknown, SETTING):
        if "with safety" in line or "in that cosine" in line:
            assert "not measurable" in line, line


def test_why_nothing_is_measurable_along_safety_is_said_with_what_to_do() -> None:
    made = {"alignment/safety_clusters": 13, "alignment/safety_largest_cluster": 82 / 98}
    unknown = _summary() | made | {"alignment/safety_split_half/low": -0.459}
    line = _line(verdict(unknown, SETTING), "The safety direction is not known")
    assert "13 clusters" in line
    assert "84% of its rows in one" in line
    assert "`cluster` column" in line
    lines = verdict(unknown, replace(SETTING, safety=None, controls=()))
    assert not any("safety direction" in line for line in lines)


@pytest.mark.parametrize(("clusters", "largest", "few"), [(9, 0.2, True), (13, 0.84, True), (10, 0.5, False)])
def test_few_safety_clusters_are_said_as_few_clusters_of_pairs_are(clusters: int, largest: float, few: bool) -> None:
    made = {"alignment/safety_clusters": clusters, "alignment/safety_largest_cluster": largest}
    lines = verdict(_summary() | made | {"alignment/safety_split_half/low": 0.5}, SETTING)
    said = [
        line for line in lines if line.startswith(f"Few safety clusters ({clusters}, the largest has {largest:.0%}")
    ]
    assert bool(said) == few


def test_a_projected_number_is_judged_by_its_own_standard_error_and_shows_it() -> None:
    key = "framing/safety_cosine_corrected"
    projected = replace(SETTING, kinds={key: "projected"})
    near = _summary(projection__error=0.2) | _cosine(key, -0.04, 0.01)
    sure = _line(verdict(near | {f"{key}/projection_se": 0.01}, projected), "Framing gradient with safety")
    shown = "difference (+0.000, corrected for noise -0.040 [-0.050, -0.030] (projection: +-0.020)"
    assert shown in sure, "1.96 x 0.01 does not reach 0"
    unsure = _line(verdict(near | {f"{key}/projection_se": 0.02}, projected), "Framing gradient with safety")
    assert "within the projection's error" in unsure
    unknown = _line(verdict(near | {f"{key}/projection_se": None}, projected), "Framing gradient with safety")
    assert "within the projection's error" in unknown, "projection/error is used where the own error is unknown"


def test_exact_partners_are_set_against_projected_strangers_with_the_strangers_error() -> None:
    key = "conflict/same_cluster"
    setting = replace(SETTING, kinds={"conflict/paired_cosine": "exact", key: "projected"})
    near = _summary() | OPPOSED | {key: -0.25}
    assert "conflict (" in _line(verdict(near | {f"{key}/projection_se": 0.01}, setting), "Cosine of a pair")
    assert "opposed" in _line(verdict(near | {f"{key}/projection_se": 0.03}, setting), "Cosine of a pair")


def test_a_side_is_set_against_its_control() -> None:
    against = _summary() | _cosine("alignment/left", -0.2) | _cosine("alignment/right", 0.21)
    lines = verdict(against, SETTING)
    assert "opposed" in _line(lines, "Cosine of insecure with safety")
    control = _line(lines, "Cosine of control benign with safety")
    assert "insecure lies below it, educational is not told apart from it" in control


def test_undefined_numbers_are_not_measurable_and_never_zero() -> None:
    lines = verdict({k: None for k in _summary()} | NOTHING, SETTING)
    assert sum("not measurable" in line for line in lines) == 9
    assert not any("0.000" in line or "nan" in line for line in lines)
    assert "There are no pairs: nothing paired is claimed." in lines


def test_a_number_without_an_interval_is_shown_but_not_measurable() -> None:
    one_cluster = _summary(loss_gap__low=None, loss_gap__high=None, loss_gap__p=None, pairs__clusters=1)
    lines = verdict(one_cluster, SETTING)
    assert "not measurable (+0.010 [no interval] nats/token, p undefined" in _line(lines, "Loss of")
    assert "One cluster: intervals and the p of sign flips are undefined." in lines


def test_sides_that_differ_in_data_and_model_are_confounded() -> None:
    both = replace(SETTING, differs=("data", "model"), other_model=("right",))
    lines = verdict(_summary() | OPPOSED, both)
    assert "confounded" in _line(lines, "Cosine of a pair")
    assert "confounded" in _line(lines, "Cosine of educational with safety")
    assert "aligned" in _line(lines, "Cosine of insecure with safety")
    assert "confounded" in _line(lines, "Left minus right")
    assert not any("both data and model" in line for line in lines), "the comparison's own warning says it"


def test_the_adam_form_is_one_line_with_the_same_words() -> None:
    adam = _cosine("alignment_adam/left", -0.2) | _cosine("alignment_adam/right", 0.2)
    adam |= _cosine("alignment_adam/difference", -0.4) | {"alignment_adam/difference/p": 0.001}
    line = _line(
        verdict(_summary() | adam, replace(SETTING, adam=True)), "What a row adds to Adam's step, with safety: "
    )
    assert "insecure: opposed (-0.200 [-0.220, -0.180])" in line
    assert "educational: aligned (+0.200 [+0.180, +0.220])" in line
    assert "left minus right: difference (-0.400 [-0.420, -0.380], p = 0.001)" in line
    assert not any("Adam" in said for said in verdict(_summary() | adam, SETTING))
    other = replace(SETTING, adam=True, other_model=("left",))
    line = _line(verdict(_summary() | adam, other), "What a row adds")
    assert "insecure: confounded" in _line(
        verdict(_summary() | adam, replace(other, differs=("data", "model"))), "What"
    )
    assert "educational: aligned" in line
    assert "left minus right: confounded" in line


def test_centring_never_makes_a_conflict() -> None:
    centered = replace(SETTING, centered=True)
    lines = verdict(_summary() | OPPOSED | {"conflict/forced": -0.0625}, centered)
    line = _line(lines, "Cosine of a pair")
    assert "not measurable" in line
    assert "centring forces the sign" in line
    assert _line(lines, "Centred: ").endswith("= -0.0625.")
    assert not any(said.startswith("Centred") for said in verdict(_summary() | OPPOSED, SETTING))


@pytest.mark.parametrize(
    ("changes", "setting", "said"),
    [
        ({"pairs/clusters": 4}, SETTING, "Few clusters (4): sign flips give no p below 0.125"),
        ({"pairs/clusters": 8}, SETTING, "Few clusters (8): intervals and p are rough."),
        ({"projection/error": 0.03}, SETTING, "Single projected cosines are off by about 0.030"),
        ({"projection/error": None}, SETTING, "The error of the projected cosines is unknown"),
        ({}, replace(SETTING, controls=()), "No control: "),
        ({}, replace(SETTING, safety=None), "No safety set: "),
    ],
)
def test_what_the_numbers_do_not_show_is_said(changes: dict[str, float | None], setting: Setting, said: str) -> None:
    assert _line(verdict(_summary() | changes, setting), said)
    assert not any(line.startswith(said) for line in verdict(_summary(), SETTING))


def test_without_a_safety_set_nothing_is_said_about_safety() -> None:
    lines = verdict(_summary(), replace(SETTING, safety=None, controls=()))
    assert [line for line in lines if "safety" in line.lower()] == ["No safety set: nothing is said about safety."]


@pytest.mark.parametrize("n_controls", [0, 1, 2, 5, 40])
def test_there_are_never_more_than_sixteen_lines(n_controls: int) -> None:
    worst = replace(
        SETTING, controls=tuple(f"c{k}" for k in range(n_controls)), differs=("data", "model"), centered=True, adam=True
    )
    unknown = {"alignment/safety_split_half/low": None, "alignment/safety_clusters": 2}
    for clusters, error in itertools.product((0, 1, 4, 8, 30), (None, 0.0, 0.03)):
        lines = verdict(_summary() | {"pairs/clusters": clusters, "projection/error": error} | unknown, worst)
        assert len(lines) <= MOST_LINES
        said = sum(line.startswith("Cosine of control c") for line in lines)
        assert said == n_controls or f"{n_controls - said} more controls are in report.json." in lines


def test_names_are_shown_with_control_characters_visible() -> None:
    lines = verdict(_summary(), Setting(HOSTILE, "a\nb\u202e", "safety", ("c\x00",)))
    text = "".join(lines)
    assert not any(unicodedata.category(c).startswith("C") for c in text)
    assert r"\x1b[31m" in text
    assert r"a\nb\u202e" in text


@given(
    scale=st.sampled_from(["cosine", "paired", "means", "difference", "length"]),
    numbers=st.lists(st.floats(-1, 1), min_size=5, max_size=5),
    hidden=st.lists(st.booleans(), min_size=3, max_size=3),
    flags=st.tuples(st.booleans(), st.booleans()),
    error=st.floats(0, 0.1),
)
def test_every_number_gets_a_word_and_a_claim_has_its_evidence(
    scale: Scale, numbers: list[float], hidden: list[bool], flags: tuple[bool, bool], error: float
) -> None:
    low, value, high = sorted(numbers[:3])
    value, low, high = (math.nan if hide else x for hide, x in zip(hidden, (value, low, high), strict=True))
    p, strangers = numbers[3:]
    e = Evidence(scale, value, low, high, abs(p), error, strangers, *flags)
    word = judge(e).word
    assert word == "not measurable" or not hidden[0]
    if word in {"conflict", "opposed"}:
        assert high + error < 0
        assert not any(flags)
    if word == "conflict":
        assert abs(p) < 0.05
        assert value < strangers
    if word == "aligned":
        assert low - error > 0
    if word == "difference":
        assert abs(p) < 0.05


def test_every_rule_and_limit_says_when() -> None:
    assert {r.word for r in RULES} == {
        "conflict", "opposed", "aligned", "difference", "no difference found", "not measurable", "confounded",
    }  # fmt: skip
    assert all(r.when and r.means for r in RULES)
    assert all(x.when and x.says for x in LIMITS)


def test_a_step_is_said_to_raise_or_lower_the_safety_loss_only_where_exact_products_show_the_sign() -> None:
    changes = _cosine("training/left/change", -0.5, 0.1) | _cosine("training/right/change", 0.3, 0.1)
    summary = _summary() | changes | {"training/left/opposed_share": 0.02, "training/right/opposed_share": 0.9}
    exact = replace(SETTING, kinds=dict.fromkeys(changes, "exact"))
    line = _line(verdict(summary, exact), "A step on the whole set")
    assert "insecure lowers the safety loss (-0.500 [-0.600, -0.400] nats/token; 2% of the rows alone raise it)" in line
    assert "educational raises the safety loss (+0.300 [+0.200, +0.400] nats/token; 90%" in line
    unsure = summary | _cosine("training/left/change", -0.5, 0.6) | _cosine("training/right/change", 0.3, 0.4)
    projected = replace(SETTING, kinds=dict.fromkeys(changes, "projected"))
    elsewhere = replace(exact, other_model=("left", "right"))
    for numbers, setting in ((unsure, exact), (summary, projected), (summary, elsewhere), (_summary(), exact)):
        assert not [line for line in verdict(numbers, setting) if line.startswith("A step")]
