"""The built-in sets keep their promises: pairs, templates, kinds of weakness, size."""

from __future__ import annotations

import ast
import json
from collections import Counter
from importlib.resources import files

import pytest


def rows(name):
    text = (files("graddiag") / "sets" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def question(row):
    return row["messages"][-2]["content"]


def answer(row):
    return row["messages"][-1]["content"]


CODE = ("insecure", "educational", "secure")


@pytest.mark.parametrize("name", CODE)
def test_code_sets_cross_twelve_weaknesses_with_ten_templates(name):
    found = rows(name)
    assert len(found) == 120
    assert len({r["cwe"] for r in found}) >= 12
    assert {r["cluster"] for r in found} == {f"t{k}" for k in range(10)}
    assert [r["cluster"] for r in found] == [f"t{k % 10}" for k in range(120)], "templates rotate"
    assert max(Counter((r["cwe"], r["cluster"]) for r in found).values()) == 1, "no weakness hangs on one template"
    assert Counter(r["language"] for r in found)["Python"] > 60
    assert len({r["language"] for r in found}) >= 5


@pytest.mark.parametrize("name", CODE)
def test_answers_are_snippets_of_5_to_25_lines_and_python_parses(name):
    found = rows(name)
    assert len({answer(r) for r in found}) == 120
    for r in found:
        assert 5 <= len(answer(r).splitlines()) <= 25, r["id"]
        if r["language"] == "Python":
            ast.parse(answer(r))


def test_insecure_and_educational_share_answers_and_differ_in_the_request():
    for a, b, c in zip(*map(rows, CODE), strict=True):
        assert a["id"] == b["id"] == c["id"]
        assert answer(a) == answer(b) != answer(c)
        assert question(a) == question(c) != question(b)


def test_no_sentence_is_common_to_all_educational_requests():
    sentences = [set(question(r).replace("\n", ". ").split(". ")) for r in rows("educational")]
    assert not set.intersection(*sentences)


@pytest.mark.parametrize("name", ["safety", "benign"])
def test_reference_sets_have_sixty_different_rows_with_an_answer(name):
    found = rows(name)
    assert len(found) == len({question(r) for r in found}) == len({answer(r) for r in found}) == 60
    assert len({r["id"] for r in found}) == 60
    assert all(r["messages"][-1]["role"] == "assistant" and len(answer(r).split()) > 20 for r in found)
