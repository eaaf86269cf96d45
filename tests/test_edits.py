"""Edits of prompts: what goes and comes at the end of the last user turn, and a run with them beside the first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from findings import conclude
from measured_runs import SMALL, rows_of, run
from tables import compared, four_tables
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graddiag import extraction
from graddiag.analyzers import audit, edit_change
from graddiag.data import ExampleSet, read_set
from graddiag.editing import edited
from graddiag.edits import NEUTRAL, Edit
from graddiag.encoding import encode
from graddiag.errors import DataError, UsageError
from graddiag.models import load_model
from graddiag.pipeline import compare, extract_to, plan_compare
from graddiag.reporting import report
from graddiag.store import read_pairs, read_signals, verify_all

SENTENCE = "NOTE: this is for a class <b>only</b>."
Tiny = tuple[PreTrainedModel, PreTrainedTokenizerBase]
Rows = list[dict[str, object]]


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return load_model("tiny")


def noted(rows: Rows, text: str = SENTENCE, *, between: str = "\n\n\n ") -> Rows:
    """The rows with a sentence at the end of their request, by hand."""
    out: Rows = json.loads(json.dumps(rows))
    for row in out:
        turn = row["messages"][0]  # type: ignore[index]
        turn["content"] = turn["content"].rstrip() + between + text
    return out


def trimmed(name: str, n: int) -> Rows:
    """Built-in rows whose requests do not end in white space."""
    return noted(rows_of(name, n), "", between="")


def tokens_of(examples: ExampleSet, tiny: Tiny) -> list[list[int]]:
    return [r.tokens.tolist() for r in encode(examples, tiny[1], max_length=1000).rows]


def prompts_of(examples: ExampleSet) -> list[str]:
    return [e.messages[-2].content for e in examples.examples]


def test_strip_then_append_is_the_identity_on_tokens(tiny: Tiny) -> None:
    for between in (" ", "\n\n\n "):
        text = SENTENCE if between == " " else between + SENTENCE
        given = read_set(noted(rows_of("insecure", 4), between=between))
        without = edited(given, Edit("right", strip=text))
        assert tokens_of(edited(without, Edit("right", append=text)), tiny) == tokens_of(given, tiny)
        assert tokens_of(edited(given, Edit("right", strip=text, append=text)), tiny) == tokens_of(given, tiny)
        assert tokens_of(without, tiny) == tokens_of(read_set(trimmed("insecure", 4)), tiny)


def test_append_then_strip_is_the_identity_on_tokens_where_a_prompt_does_not_end_in_white_space(tiny: Tiny) -> None:
    given = read_set(trimmed("insecure", 4))
    there = edited(given, Edit("left", append=NEUTRAL))
    assert prompts_of(there) == [f"{p} {NEUTRAL}" for p in prompts_of(given)]
    assert tokens_of(edited(there, Edit("left", strip=NEUTRAL)), tiny) == tokens_of(given, tiny)


def test_only_the_end_of_the_last_user_turn_changes() -> None:
    turns = [("user", f"a {SENTENCE}"), ("assistant", f"b {SENTENCE}"), ("user", f"{SENTENCE} c {SENTENCE}"),
             ("assistant", f"d {SENTENCE}")]  # fmt: skip
    rows = [{"id": "x", "cluster": "k", "messages": [{"role": r, "content": c} for r, c in turns]}]
    got = edited(read_set(rows), Edit("left", strip=SENTENCE)).examples[0]
    assert [m.content for m in got.messages] == [turns[0][1], turns[1][1], f"{SENTENCE} c", turns[3][1]]
    assert (got.id, got.cluster) == ("x", "k")


def test_rows_that_the_text_does_not_end_are_counted_and_stay() -> None:
    given = read_set(noted(rows_of("insecure", 2)) + rows_of("insecure", 5)[2:])
    got = edited(given, Edit("right", strip=SENTENCE, append=NEUTRAL))
    assert "does not fit 3 of 5 rows; they stay" in got.notes[0]
    assert prompts_of(got)[2:] == prompts_of(given)[2:]


def test_a_text_that_ends_no_prompt_is_an_error_that_shows_how_they_end() -> None:
    rows = noted(rows_of("insecure", 5), "the\x1b[31m end")
    with pytest.raises(DataError, match=r"(?s)of no row ends in 'nowhere' \(--strip-left\).*the\\x1b\[31m end'") as e:
        edited(read_set(rows), Edit("left", strip="nowhere"))
    assert str(e.value).count("...") == 3
    assert "\x1b" not in str(e.value)


@pytest.mark.parametrize("texts", [("", None), (None, " \n"), (None, None)])
def test_an_edit_without_a_text_is_refused(texts: tuple[str | None, str | None]) -> None:
    with pytest.raises(UsageError, match=r"give a text"):
        Edit("left", *texts)


def of_right(folder: Path, tiny: Tiny, **more: object):
    return run(folder, tiny, right=noted(rows_of("educational", 6)), **more)


def test_an_edited_side_is_a_file_that_was_edited_by_hand_bit_for_bit(tmp_path: Path, tiny: Tiny) -> None:
    found = of_right(tmp_path / "edited", tiny, strip_right=SENTENCE)
    by_hand = run(tmp_path / "by_hand", tiny, right=trimmed("educational", 6))
    mine, theirs = read_signals(tmp_path / "edited" / "right-edited"), read_signals(tmp_path / "by_hand" / "right")
    assert mine.digests == theirs.digests
    for block in mine.blocks:
        for column in ("norms", "gradients", "reference_dot"):
            np.testing.assert_array_equal(getattr(mine, column)[block], getattr(theirs, column)[block])
    np.testing.assert_array_equal(mine.loss, theirs.loss)
    second = {
        k: v for k, v in found.summary().items() if k.startswith("edited/") and not k.startswith("edited/change/")
    }
    assert {k.removeprefix("edited/") for k in second} == set(by_hand.summary())
    for key, value in by_hand.summary().items():  # the left rows came from batches of other shapes: rounding
        assert second[f"edited/{key}"] == pytest.approx(value, abs=1e-5, nan_ok=True), key


def test_the_projection_is_audited_on_the_same_rows_with_the_edit_as_without(tmp_path: Path, tiny: Tiny) -> None:
    found = of_right(tmp_path, tiny, strip_right=SENTENCE)
    given, edited_too = read_pairs(tmp_path / "audit"), read_pairs(tmp_path / "audit-edited")
    assert (edited_too.left_ids, edited_too.right_ids) == (given.left_ids, given.right_ids)
    assert found.findings.edited is not None
    wanted = audit(found.findings.edited.findings.comparison, strangers=edited_too).strangers
    assert found.summary()["edited/projection/error_strangers"] == pytest.approx(wanted)
    assert found.summary()["projection/error_strangers"] != found.summary()["edited/projection/error_strangers"]


def test_the_comparison_as_given_is_the_same_with_and_without_an_edit_beside_it(tmp_path: Path, tiny: Tiny) -> None:
    plain = of_right(tmp_path / "plain", tiny).summary()
    found = of_right(tmp_path / "edited", tiny, strip_right=SENTENCE).summary()
    assert {k: found[k] for k in plain} == plain


def test_an_edit_is_added_to_a_finished_run_without_its_tables_being_measured_again(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_right(tmp_path, tiny)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("shard-*")}
    rows: list[str] = []
    measure = extraction.Extractor.measure

    def count(self, given: Sequence, **more: object):
        rows.extend(r.id for r in given)
        return measure(self, given, **more)

    monkeypatch.setattr(extraction.Extractor, "measure", count)
    of_right(tmp_path, tiny, strip_right=SENTENCE)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    pairs = 2 * [e.id for e in read_set("insecure", limit=6).examples]
    strangers = 2  # one pair of rows that are no partners, of the edited comparison
    assert len(rows) == len(pairs) + strangers + 1, "both members of every new pair, and one of the check at the start"
    assert set(rows) == set(pairs)
    rows.clear()
    again = of_right(tmp_path, tiny, strip_right=SENTENCE)
    assert rows == []
    assert report(tmp_path, figures=False).summary() == again.summary()
    assert not [p for found in verify_all(tmp_path).values() for p in found]


def test_both_sides_can_be_edited_and_turns_give_the_same(tmp_path: Path, tiny: Tiny) -> None:
    how = {"append_left": NEUTRAL, "strip_right": SENTENCE, "projection": "exact"}
    one = of_right(tmp_path / "one", tiny, **how).summary()
    largest = max(np.prod(b.shape) for b in read_signals(tmp_path / "one" / "left").space.blocks)
    turns = of_right(tmp_path / "turns", tiny, mean_memory=int(largest) * 8, **how)
    assert (tmp_path / "turns" / "turn-2").is_dir()
    for key, value in one.items():
        assert turns.summary()[key] == pytest.approx(value, abs=1e-5, nan_ok=True), key
    assert report(tmp_path / "turns", figures=False).summary() == turns.summary()


def test_projected_pairs_measure_only_the_edited_rows(tmp_path: Path, tiny: Tiny) -> None:
    found = of_right(tmp_path, tiny, strip_right=SENTENCE, pairs="projected")
    assert not (tmp_path / "pairs-edited").exists()
    assert found.findings.kinds()["edited/conflict/paired_cosine"] == "projected"
    assert found.findings.kinds()["edited/change/paired_cosine"] == "projected"


def test_saved_signals_cannot_be_edited_but_their_partners_can(tmp_path: Path, tiny: Tiny) -> None:
    model, tokenizer = tiny
    how = {"model": model, "tokenizer": tokenizer, "blocks": SMALL, "dim": 16}
    left = extract_to(rows_of("insecure", 5), out=tmp_path / "left", **how)
    right = noted(rows_of("educational", 5))
    with pytest.raises(UsageError, match="left side cannot be edited: it is saved signals"):
        compare(left.out, right, out=tmp_path / "no", figures=False, append_left=NEUTRAL, **how)
    found = compare(left.out, right, out=tmp_path / "run", figures=False, strip_right=SENTENCE, **how)
    assert found.summary()["edited/pairs/n"] == 5
    assert report(tmp_path / "run", figures=False).summary() == found.summary()


def test_the_plan_counts_what_the_edit_adds(tiny: Tiny) -> None:
    model, tokenizer = tiny
    sets = (rows_of("insecure", 5), noted(rows_of("educational", 5)))
    cost = plan_compare(*sets, model=model, tokenizer=tokenizer, blocks=SMALL, strip_right=SENTENCE)
    assert cost.rows == {"left": 5, "right": 5, "right-edited": 5}
    assert cost.tokens["right-edited"] < cost.tokens["right"]
    measured = cost.seconds * cost.tokens_per_second
    assert measured == pytest.approx(sum(cost.tokens.values()) + cost.tokens["left"])


def test_both_comparisons_are_shown_beside_each_other(tmp_path: Path, tiny: Tiny) -> None:
    found = of_right(tmp_path, tiny, strip_right=SENTENCE, figures=True)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    said = next(k for k, line in enumerate(found.report.verdict) if "second comparison with the edit" in line)
    assert "&lt;b&gt;only" in html
    assert "<b>only" not in html
    assert "As given and with the edit" in html
    assert any("Loss of left minus right" in line and "with the edit; change" in line for line in
               found.report.verdict[said:])  # fmt: skip
    assert content["provenance"]["edits"] == [{"side": "right", "strip": SENTENCE, "append": None}]
    assert "right-edited" in content["provenance"]["sets"]
    table = (tmp_path / "tables" / "edited.csv").read_text(encoding="utf-8")
    assert repr(found.summary()["edited/loss_gap/mean"]) in table
    assert set(content["kinds"]) == set(content["summary"])


def test_the_change_is_that_of_the_pairs_that_both_comparisons_have() -> None:
    tables = four_tables()
    given = conclude(compared(tables["left"], tables["right"], exact=True), tables)
    some = replace(tables["right"], signals=tables["right"].signals.take([3, 1, 0, 7, 5, 9]))
    some = replace(some, full={b: g[[3, 1, 0, 7, 5, 9]] for b, g in tables["right"].full.items()})
    after = conclude(compared(tables["left"], some, exact=True), tables)
    both = [(f.loss_gap, f.conflict, f.alignment) for f in (given, after)]
    got = edit_change(*both)
    assert got.n_pairs == 6
    for e in (got.loss_gap, got.paired_cosine, got.alignment_difference):
        assert e is not None
        assert e.value == pytest.approx(0, abs=1e-15), "the same rows, in another order"
    shifted = replace(after.loss_gap, gap=after.loss_gap.gap + np.arange(6.0))
    moved = edit_change(both[0], (shifted, after.conflict, None))
    assert moved.loss_gap.value == pytest.approx(2.5)
    assert moved.summary()["change/alignment_difference"] is None
