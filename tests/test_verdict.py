"""What may be claimed: planted numbers, and the words they must and must not get."""

from __future__ import annotations

import itertools
import math
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import OPPOSED, SETTING, cosine, planted, the_line

from graddiag.rules import RULES, Evidence, Scale, Setting, judge
from graddiag.verdict import MOST_LINES, verdict

NOTHING: dict[str, float | None] = {"pairs/n": 0, "pairs/identical": 0, "pairs/clusters": 0}

HOSTILE = "<script>alert(1)</script>\x1b[31m"


def test_sides_that_share_a_direction_are_aligned_and_nothing_else_is_claimed() -> None:
    lines = verdict(planted(), SETTING)
    assert "aligned (+0.800 [+0.750, +0.850]" in the_line(lines, "Cosine of a pair's gradients")
    assert "no difference found" in the_line(lines, "Loss of insecure minus educational")
    assert "small effect" in the_line(lines, "Loss of insecure minus educational")
    assert "no difference found" in the_line(lines, "Mean framing gradient")
    assert "no difference found" in the_line(lines, "Left minus right in that cosine")
    assert not any("conflict" in line or "opposed" in line for line in lines)


def test_conflict_needs_the_interval_and_the_null_and_partners_more_opposed_than_others() -> None:
    assert "conflict (" in the_line(verdict(planted() | OPPOSED, SETTING), "Cosine of a pair")
    for weaker in ({"conflict/p": 0.2}, {"conflict/p": None}, {"conflict/same_cluster": -0.5}):
        line = the_line(verdict(planted() | OPPOSED | weaker, SETTING), "Cosine of a pair")
        assert "opposed" in line
        assert "conflict" not in line
        assert "the null of permuted partners is not crossed" in line
    wide = the_line(verdict(planted() | OPPOSED | {"conflict/high": 0.1}, SETTING), "Cosine of a pair")
    assert "no difference found" in wide


def test_mean_gradients_are_opposed_only_if_permuted_labels_are_not_as_far_apart() -> None:
    below = (
        planted() | cosine("conflict/mean_gradient_cosine_corrected", -0.3) | {"conflict/mean_gradient_cosine": -0.2}
    )
    for p in (0.3, 0.05, None):
        line = the_line(verdict(below | {"conflict/label_distance/p": p}, SETTING), "Cosine of the mean gradients")
        assert "no difference found" in line
        assert "the null of permuted labels is not crossed" in line
        assert "opposed" not in line
    line = the_line(verdict(below | {"conflict/label_distance/p": 0.003}, SETTING), "Cosine of the mean gradients")
    assert "opposed (-0.200, corrected for noise -0.300" in line
    assert "as far apart under permuted labels, p = 0.003" in line
    for p in (0.3, 0.003):
        line = the_line(verdict(planted(conflict__label_distance__p=p), SETTING), "Cosine of the mean gradients")
        assert "aligned" in line, "means that differ may well agree"


def test_partners_hardly_more_opposed_than_strangers_are_no_conflict_if_the_projection_could_have_made_it() -> None:
    near = planted() | OPPOSED | {"conflict/same_cluster": -0.295, "projection/error": 0.01}
    projected = replace(SETTING, kinds={"conflict/paired_cosine": "projected"})
    assert "opposed" in the_line(verdict(near, projected), "Cosine of a pair")


def test_a_loss_gap_is_a_difference_only_with_interval_and_p() -> None:
    gap = {"loss_gap/mean": 0.32, "loss_gap/low": 0.2, "loss_gap/high": 0.44, "loss_gap/effect_size": 0.9}
    found = the_line(verdict(planted() | gap | {"loss_gap/p": 0.002}, SETTING), "Loss of")
    assert "difference (+0.320 [+0.200, +0.440] nats/token, p = 0.002, d_z = +0.90)" in found
    for p in (0.05, 0.3, None):
        line = the_line(verdict(planted() | gap | {"loss_gap/p": p}, SETTING), "Loss of")
        assert "no difference found" in line
        assert "the null is not crossed" in line


def test_a_projected_cosine_within_the_projection_error_claims_nothing() -> None:
    near = planted(projection__error=0.05) | cosine("framing/safety_cosine_corrected", -0.04, 0.01)
    projected = replace(SETTING, kinds={"framing/safety_cosine_corrected": "projected"})
    assert "within the projection's error" in the_line(verdict(near, projected), "Framing gradient with safety")
    exact = replace(SETTING, kinds={"framing/safety_cosine_corrected": "exact"})
    line = the_line(verdict(near, exact), "Framing gradient with safety")
    assert "difference" in line
    assert "opposed" not in line, "a difference below 0 does not make either side opposed"


def test_the_raw_cosine_of_framing_with_safety_carries_no_claim() -> None:
    raw = cosine("framing/safety_cosine", -0.3, 0.05)
    assert "no difference found (-0.300" in the_line(verdict(planted() | raw, SETTING), "Framing gradient with safety")
    unmeasured = raw | dict.fromkeys(cosine("framing/safety_cosine_corrected", 0.0), None)
    line = the_line(verdict(planted() | unmeasured, SETTING), "Framing gradient with safety")
    assert line == "Framing gradient with safety: not measurable."
    unknown = planted() | cosine("framing/safety_cosine_corrected", -0.3) | {"alignment/safety_split_half/low": -0.1}
    assert "the safety direction is not known" in the_line(verdict(unknown, SETTING), "Framing gradient with safety")


def test_nothing_is_said_along_a_safety_direction_whose_halves_cannot_be_compared() -> None:
    """As where all safe answers are the same two sentences: a split half without an interval, or none at all."""
    known = planted() | cosine("alignment/left", -0.3) | {"alignment/safety_split_half/low": 0.5}
    assert "opposed" in the_line(verdict(known, SETTING), "Cosine of insecure with safety")
    unknown = known | {"alignment/safety_split_half/low": None}
    for line in verdict(unknown, SETTING):
        if "with safety" in line or "in that cosine" in line:
            assert "not measurable" in line, line


def test_a_projected_number_is_judged_by_its_own_standard_error_and_shows_it() -> None:
    key = "framing/safety_cosine_corrected"
    projected = replace(SETTING, kinds={key: "projected"})
    near = planted(projection__error=0.2) | cosine(key, -0.04, 0.01)
    sure = the_line(verdict(near | {f"{key}/projection_se": 0.01}, projected), "Framing gradient with safety")
    shown = "difference (+0.000, corrected for noise -0.040 [-0.050, -0.030] (projection: +-0.020)"
    assert shown in sure, "1.96 x 0.01 does not reach 0"
    unsure = the_line(verdict(near | {f"{key}/projection_se": 0.02}, projected), "Framing gradient with safety")
    assert "within the projection's error" in unsure
    unknown = the_line(verdict(near | {f"{key}/projection_se": None}, projected), "Framing gradient with safety")
    assert "within the projection's error" in unknown, "projection/error is used where the own error is unknown"


def test_exact_partners_are_set_against_projected_strangers_with_the_strangers_error() -> None:
    key = "conflict/same_cluster"
    setting = replace(SETTING, kinds={"conflict/paired_cosine": "exact", key: "projected"})
    near = planted() | OPPOSED | {key: -0.25}
    assert "conflict (" in the_line(verdict(near | {f"{key}/projection_se": 0.01}, setting), "Cosine of a pair")
    assert "opposed" in the_line(verdict(near | {f"{key}/projection_se": 0.03}, setting), "Cosine of a pair")


def test_a_side_is_set_against_its_control() -> None:
    against = planted() | cosine("alignment/left", -0.2) | cosine("alignment/right", 0.21)
    lines = verdict(against, SETTING)
    assert "opposed" in the_line(lines, "Cosine of insecure with safety")
    control = the_line(lines, "Cosine of control benign with safety")
    assert "insecure lies below it, educational is not told apart from it" in control


def test_undefined_numbers_are_not_measurable_and_never_zero() -> None:
    lines = verdict({k: None for k in planted()} | NOTHING, SETTING)
    assert sum("not measurable" in line for line in lines) == 9
    assert not any("0.000" in line or "nan" in line for line in lines)
    assert "There are no pairs: nothing paired is claimed." in lines


def test_a_number_without_an_interval_is_shown_but_not_measurable() -> None:
    one_cluster = planted(loss_gap__low=None, loss_gap__high=None, loss_gap__p=None, pairs__clusters=1)
    lines = verdict(one_cluster, SETTING)
    assert "not measurable (+0.010 [no interval] nats/token, p undefined" in the_line(lines, "Loss of")
    assert "One cluster: intervals and the p of sign flips are undefined." in lines


def test_sides_that_differ_in_data_and_model_are_confounded() -> None:
    both = replace(SETTING, differs=("data", "model"), other_model=("right",))
    lines = verdict(planted() | OPPOSED, both)
    assert "confounded" in the_line(lines, "Cosine of a pair")
    assert "confounded" in the_line(lines, "Cosine of educational with safety")
    assert "aligned" in the_line(lines, "Cosine of insecure with safety")
    assert "confounded" in the_line(lines, "Left minus right")
    assert not any("both data and model" in line for line in lines), "the comparison's own warning says it"


def test_the_adam_form_is_one_line_with_the_same_words() -> None:
    adam = cosine("alignment_adam/left", -0.2) | cosine("alignment_adam/right", 0.2)
    adam |= cosine("alignment_adam/difference", -0.4) | {"alignment_adam/difference/p": 0.001}
    line = the_line(
        verdict(planted() | adam, replace(SETTING, adam=True)), "What a row adds to Adam's step, with safety: "
    )
    assert "insecure: opposed (-0.200 [-0.220, -0.180])" in line
    assert "educational: aligned (+0.200 [+0.180, +0.220])" in line
    assert "left minus right: difference (-0.400 [-0.420, -0.380], p = 0.001)" in line
    assert not any("Adam" in said for said in verdict(planted() | adam, SETTING))
    other = replace(SETTING, adam=True, other_model=("left",))
    line = the_line(verdict(planted() | adam, other), "What a row adds")
    assert "insecure: confounded" in the_line(
        verdict(planted() | adam, replace(other, differs=("data", "model"))), "What"
    )
    assert "educational: aligned" in line
    assert "left minus right: confounded" in line


def test_centring_never_makes_a_conflict() -> None:
    centered = replace(SETTING, centered=True)
    lines = verdict(planted() | OPPOSED | {"conflict/forced": -0.0625}, centered)
    line = the_line(lines, "Cosine of a pair")
    assert "not measurable" in line
    assert "centring forces the sign" in line
    assert the_line(lines, "Centred: ").endswith("= -0.0625.")
    assert not any(said.startswith("Centred") for said in verdict(planted() | OPPOSED, SETTING))


@pytest.mark.parametrize("n_controls", [0, 1, 2, 5, 40])
def test_there_are_never_more_than_sixteen_lines(n_controls: int) -> None:
    worst = replace(
        SETTING, controls=tuple(f"c{k}" for k in range(n_controls)), differs=("data", "model"), centered=True, adam=True
    )
    unknown = {"alignment/safety_split_half/low": None, "alignment/safety_clusters": 2}
    for clusters, error in itertools.product((0, 1, 4, 8, 30), (None, 0.0, 0.03)):
        lines = verdict(planted() | {"pairs/clusters": clusters, "projection/error": error} | unknown, worst)
        assert len(lines) <= MOST_LINES
        said = sum(line.startswith("Cosine of control c") for line in lines)
        assert said == n_controls or f"{n_controls - said} more controls are in report.json." in lines


def test_names_are_shown_with_control_characters_visible() -> None:
    lines = verdict(planted(), Setting(HOSTILE, "a\nb\u202e", "safety", ("c\x00",)))
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


def test_every_rule_says_when() -> None:
    assert {r.word for r in RULES} == {
        "conflict", "opposed", "aligned", "difference", "no difference found", "not measurable", "confounded",
    }  # fmt: skip
    assert all(r.when and r.means for r in RULES)


def test_a_step_is_said_to_raise_or_lower_the_safety_loss_only_where_exact_products_show_the_sign() -> None:
    changes = cosine("training/left/change", -0.5, 0.1) | cosine("training/right/change", 0.3, 0.1)
    summary = planted() | changes | {"training/left/opposed_share": 0.02, "training/right/opposed_share": 0.9}
    exact = replace(SETTING, kinds=dict.fromkeys(changes, "exact"))
    line = the_line(verdict(summary, exact), "A step on the whole set")
    assert "insecure lowers the safety loss (-0.500 [-0.600, -0.400] nats/token; 2% of the rows alone raise it)" in line
    assert "educational raises the safety loss (+0.300 [+0.200, +0.400] nats/token; 90%" in line
    unsure = summary | cosine("training/left/change", -0.5, 0.6) | cosine("training/right/change", 0.3, 0.4)
    projected = replace(SETTING, kinds=dict.fromkeys(changes, "projected"))
    elsewhere = replace(exact, other_model=("left", "right"))
    for numbers, setting in ((unsure, exact), (summary, projected), (summary, elsewhere), (planted(), exact)):
        assert not [line for line in verdict(numbers, setting) if line.startswith("A step")]
