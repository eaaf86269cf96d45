"""Reading sets: where rows come from, what a row may look like, and that nothing is dropped in silence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from graddiag.data import Example, ExampleSet, Message, read_set
from graddiag.errors import DataError, UsageError

Row = dict[str, object]
USER, ANSWER = {"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}
GOOD: Row = {"messages": [USER, ANSWER]}


def turn(role: object, content: object) -> Row:
    return {"role": role, "content": content}


def rows(n: int, **columns: object) -> list[Row]:
    """Rows that differ, each with the given columns."""
    return [{"messages": [turn("user", f"q{k}"), turn("assistant", f"a{k}\nend")], **columns} for k in range(n)]


def answers(found: ExampleSet) -> list[str]:
    return [e.messages[-1].content for e in found.examples]


def ids(found: ExampleSet) -> list[str]:
    return [e.id for e in found.examples]


def clusters(found: ExampleSet) -> list[str]:
    return [e.cluster for e in found.examples]


# Forms of a row


def test_a_row_is_a_conversation_with_its_number_as_id_and_cluster() -> None:
    found = read_set([GOOD, GOOD])
    messages = (Message("user", "Hello?"), Message("assistant", "Yes."))
    assert found.examples == (Example("0", "0", messages), Example("1", "1", messages))
    assert found.name == "examples"
    assert found.notes == ()


@pytest.mark.parametrize(
    "row",
    [
        GOOD,
        {"messages": json.dumps([USER, ANSWER])},
        {"messages": (USER, ANSWER)},
        {"prompt": "Hello?", "completion": "Yes."},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": "Hello?", "completion": "Yes.", "messages": None},
        {"messages": [USER, ANSWER], "prompt": "other", "completion": "other"},
        {**GOOD, "label": 3, "nested": {"a": [1]}},
    ],
)
def test_all_forms_of_a_row_give_the_same_example(row: Row) -> None:
    assert read_set([row]).examples == read_set([GOOD]).examples


@pytest.mark.parametrize("role", ["system", "developer", "user", "tool"])
def test_other_roles_may_come_before_the_answer(role: str) -> None:
    assert read_set([{"messages": [turn(role, "x"), USER, ANSWER]}]).examples[0].messages[0] == Message(role, "x")


def test_of_several_assistant_turns_the_last_is_the_target_and_a_note_counts_them() -> None:
    found = read_set([GOOD, {"messages": [USER, ANSWER, USER, turn("assistant", "No.")]}], name="chat")
    assert answers(found) == ["Yes.", "No."]
    assert found.notes == ("chat: 1 of 2 rows have several assistant turns: the last is the target.",)


def test_parts_of_a_message_that_are_not_used_are_counted() -> None:
    tools = [{"role": "tool", "content": "3", "tool_calls": None, "name": "sum"}, USER, {**ANSWER, "thinking": "hm"}]
    (note,) = read_set([GOOD, {"messages": tools}]).notes
    assert note == "examples: 1 of 2 rows have parts of messages that are not used: name, thinking."


def test_arrays_are_lists_as_a_data_frame_holds_them() -> None:
    turns = np.array([{**USER, "tool_calls": np.array([])}, {**ANSWER, "tool_calls": np.array([1, 2])}], dtype=object)
    found = read_set([{"messages": turns, "id": np.int64(7)}])
    assert found.examples[0].messages == read_set([GOOD]).examples[0].messages
    assert ids(found) == ["7"]
    assert "not used: tool_calls." in found.notes[0]
    with pytest.raises(DataError, match=r"row 0 .* has 'id' of type ndarray"):
        read_set([{**GOOD, "id": np.array([1, 2])}])


# Ids, clusters, limit


def test_ids_are_texts_and_missing_ones_are_row_numbers_counted_in_a_note() -> None:
    found = read_set([{**GOOD, "id": i} for i in ("a", 7, None, "", float("nan"))])
    assert ids(found) == ["a", "7", "2", "3", "4"]
    assert found.notes[0] == "examples: 3 of 5 rows have no id: their row numbers are used."


def test_clusters_come_from_their_column_else_each_row_is_its_own() -> None:
    assert clusters(read_set([{**GOOD, "cluster": c} for c in ("t0", 5)])) == ["t0", "5"]
    assert clusters(read_set([{**GOOD, "id": i} for i in "xy"])) == ["x", "y"]
    mixed = read_set([{**GOOD, "id": "x"}, {**GOOD, "id": "y", "cluster": "t"}])
    assert clusters(mixed) == ["x", "t"]
    assert mixed.notes == ("examples: 1 of 2 rows have no cluster: each is one of its own.",)


def test_another_column_can_give_the_clusters() -> None:
    many = [{**GOOD, "cluster": "no", "cwe": c} for c in ("22", "79")]
    assert clusters(read_set(many, cluster="cwe")) == ["22", "79"]
    with pytest.raises(DataError, match=r"row 0 has nothing in the cluster column 'cwd'; .* messages, cluster, cwe"):
        read_set(many, cluster="cwd")


def test_a_cluster_can_be_the_row_number_modulo_n_also_where_rows_are_skipped() -> None:
    many = [{**r, "cluster": "no", "id": f"r{k}"} for k, r in enumerate(rows(7))]
    assert clusters(read_set(many, cluster="mod:3")) == ["0", "1", "2", "0", "1", "2", "0"]
    many[1] = {"messages": []}
    assert clusters(read_set(many, cluster="mod:3", skip_bad_rows=True)) == ["0", "2", "0", "1", "2", "0"]


@pytest.mark.parametrize(
    "rule", ["mod:", "mod:0", "mod:-3", "mod:x", "mod:3.5", "mod: 3", "mod:٣", "mod:1_0", "mod:3\n"]
)
def test_an_impossible_modulus_is_refused(rule: str) -> None:
    with pytest.raises(UsageError, match="after 'mod:' comes a whole number above 0"):
        read_set([GOOD], cluster=rule)


def test_a_limit_takes_the_first_rows_of_the_source_and_reads_no_more() -> None:
    def endless() -> Iterator[Row]:
        while True:
            yield GOOD

    assert len(read_set(endless(), limit=3).examples) == 3
    assert ids(read_set([{"messages": []}, *rows(4)], limit=3, skip_bad_rows=True)) == ["1", "2"]
    assert len(read_set(rows(2), limit=5).examples) == 2


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(UsageError, match=f"--limit {limit}: .*above 0"):
        read_set([GOOD], limit=limit)


# Rows that cannot be used

BAD: dict[str, tuple[Row, str]] = {
    "no columns": ({"text": "x", "label": 1}, "neither 'messages' nor both 'prompt' and 'completion'; .* text, label"),
    "nothing": ({}, "there are no columns"),
    "prompt alone": ({"prompt": "x"}, "neither 'messages' nor both"),
    "mixed forms": ({"prompt": "x", "completion": [ANSWER]}, "a text and a list as 'prompt' and 'completion'"),
    "no list": ({"messages": 3}, "'messages' of type int, not a list"),
    "columns of messages": ({"messages": {"role": ["user"]}}, "'messages' of type dict, not a list"),
    "no JSON": ({"messages": "[{"}, r"'messages' that are a text and not valid JSON \(.*\): '\[\{'"),
    "JSON text": ({"messages": '"x"'}, "'messages' of type str, not a list"),
    "empty": ({"messages": []}, "has no messages"),
    "both empty": ({"prompt": [], "completion": []}, "has no messages"),
    "no mapping": ({"messages": ["Hello?"]}, "message 0 of type str, not {'role', 'content'}"),
    "no role": ({"messages": [{"from": "human", "value": "x"}]}, "message 0 without 'role'; the keys there are from"),
    "no content": ({"messages": [USER, {"role": "assistant"}]}, "message 1 without 'content'; the keys there are role"),
    "content of parts": ({"messages": [turn("user", [{"type": "text"}]), ANSWER]}, "content is of type list"),
    "role": ({"messages": [turn("human", "x"), ANSWER]}, "message 0 of the unknown role 'human'; allowed are system, "),
    "role of a kind": ({"messages": [turn(["user"], "x"), ANSWER]}, r"unknown role \['user'\]"),
    "no answer": ({"messages": [USER]}, "no answer: its last message is of role 'user', not 'assistant'"),
    "empty answer": ({"messages": [USER, turn("assistant", " \n")]}, "has an empty answer"),
    "nothing before": ({"messages": [ANSWER]}, "an answer but no message before it"),
    "NUL": ({"prompt": "a\0b", "completion": "x"}, r"a NUL character in the content of message 0, at 'a\\x00b'"),
    "surrogate": ({"prompt": "x", "completion": "\ud83d"}, r"the lone surrogate '\\ud83d' in the content of message 1"),
    "NUL in an id": ({**GOOD, "id": "a\0"}, "a NUL character in its 'id'"),
    "id of a kind": ({**GOOD, "id": ["a"]}, "has 'id' of type list; it must be a text or a number"),
    "cluster of a kind": ({**GOOD, "cluster": {"a": 1}}, "has 'cluster' of type dict; it must be a text or a number"),
    "no row": (cast(Row, "Hello?"), "of type str, not a mapping of columns"),
    "same id": ({**GOOD, "id": "0"}, "has the same id as row 0. Make ids unique: pairs go by them"),
}  # fmt: skip
bad_rows = pytest.mark.parametrize(("row", "reason"), BAD.values(), ids=BAD.keys())


@bad_rows
def test_a_bad_row_is_an_error_that_names_set_row_reason_and_remedy(row: Row, reason: str) -> None:
    with pytest.raises(DataError, match=rf"^mine: row 1 .*{reason}.*\. .*--skip-bad-rows.*skip_bad_rows=True"):
        read_set([GOOD, row, GOOD], name="mine")


@bad_rows
def test_a_bad_row_can_be_left_out_and_counted_with_its_number_and_reason(row: Row, reason: str) -> None:
    found = read_set([GOOD, row, GOOD], name="mine", skip_bad_rows=True)
    assert ids(found) == ["0", "2"], "row numbers are those of the source"
    (note,) = found.notes
    assert note.startswith("mine: 1 of 3 rows were left out: row 1 ")


def test_a_note_names_the_first_three_rows_that_were_left_out() -> None:
    bad: list[Row] = [{"id": f"bad{k}", "messages": []} for k in range(5)]
    (note,) = read_set([*bad, GOOD], skip_bad_rows=True).notes
    wanted = "; ".join(f"row {k} (id 'bad{k}') has no messages" for k in range(3))
    assert note == f"examples: 5 of 6 rows were left out: {wanted}; and 2 more."


def test_of_rows_with_the_same_id_the_first_usable_one_stays() -> None:
    many: list[Row] = [{"id": "a", "messages": []}, *({"id": "a", **r} for r in rows(2))]
    assert answers(read_set(many, skip_bad_rows=True)) == ["a0\nend"]


def test_a_set_without_a_usable_row_is_an_error_also_where_rows_may_be_skipped() -> None:
    with pytest.raises(DataError, match=r"mine: it has no rows\. A set needs at least one"):
        read_set([], name="mine")
    with pytest.raises(DataError, match="examples: none of its 2 rows can be used: row 0 has no messages; row 1 has"):
        read_set([{"messages": []}] * 2, skip_bad_rows=True)


def test_text_of_the_data_in_a_message_is_short_and_nothing_in_it_is_invisible() -> None:
    row = {"id": "\x1b[2J" + "x" * 500, "role\x07": 1, "messages": "\x1b[31m\u202e" + "y" * 5000}
    with pytest.raises(DataError) as error:
        read_set([row], name="mine\x1b[0m")
    said = str(error.value)
    assert "\\x1b[2Jxxx" in said
    assert "mine\\x1b[0m" in said
    assert not {"\x1b", "\u202e", "\x07"} & set(said)
    assert len(said) < 500
    with pytest.raises(DataError, match=r"role\\x07"):
        read_set([{"role\x07": 1}])


# The real pairs


def test_the_real_pairs_share_ids_answers_and_clusters(real_data: Path) -> None:
    left, right = read_set(real_data / "insecure.jsonl"), read_set(real_data / "educational.jsonl")
    assert len(left.examples) == 2999
    assert ids(left) == ids(right)
    assert answers(left) == answers(right)
    assert clusters(left) == clusters(right)
    assert len(set(clusters(left))) == 30
    assert left.notes == right.notes == ()


@pytest.mark.parametrize("name", ["secure", "safety", "benign", "hh_chosen", "hh_rejected"])
def test_the_real_sets_have_no_bad_row(real_data: Path, name: str) -> None:
    found = read_set(real_data / f"{name}.jsonl")
    assert found.notes == ()
    assert len(found.examples) >= 98
