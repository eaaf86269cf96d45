"""Sites: names and what they say."""

from __future__ import annotations

import pytest

from graddiag.errors import UsageError
from graddiag.sites import Site, check_position, first_tokens, parse_site, sites_of


@pytest.mark.parametrize("position", ["first:1", "first:10", "answer", "last_answer", "last_prompt"])
def test_a_site_is_found_again_by_its_name(position):
    site = Site(12, position)
    assert site.name == f"12/{position}"
    assert parse_site(site.name) == site


@pytest.mark.parametrize("text", ["first:0", "first:", "first:-3", "first:1.5", "last", "", "answer "])
def test_another_position_is_refused_with_what_is_allowed(text):
    with pytest.raises(UsageError, match=r"Allowed: first:N .*answer, last_answer, last_prompt"):
        check_position(text)


@pytest.mark.parametrize("text", ["answer", "-1/answer", "x/answer", "1.0/answer", "\u00b2/answer", ""])
def test_a_text_without_a_layer_names_no_site(text):
    with pytest.raises(UsageError, match="names no site"):
        parse_site(text)


def test_sites_are_in_the_order_of_layers_whatever_the_number_of_digits():
    found = sites_of([10, 9, 2, 9], ["answer", "first:3", "answer"])
    assert [s.layer for s in found] == [2, 2, 9, 9, 10, 10]
    assert [s.position for s in found] == ["answer", "first:3"] * 3
    with pytest.raises(UsageError, match="no layer -1"):
        sites_of([-1], ["answer"])


def test_the_number_of_first_tokens_is_known_where_there_is_one():
    assert first_tokens("first:25") == 25
    assert first_tokens("answer") is None
