"""Text as a reader sees it: nothing hidden, both ends of what is long, numbers with their sign."""

from __future__ import annotations

import math
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from graddiag.text import interval, number, visible

NOTHING: dict[str, float | None] = {"pairs/n": 0, "pairs/identical": 0, "pairs/clusters": 0}


@given(st.text())
def test_visible_text_has_no_hidden_character_and_leaves_the_rest(text: str) -> None:
    shown = visible(text)
    assert not any(unicodedata.category(c)[0] == "C" or unicodedata.category(c) in {"Zl", "Zp"} for c in shown)
    shown.encode("utf-8")  # no lone surrogate is left
    assert visible(shown) == shown
    if text.isprintable():
        assert shown == text


@given(st.text(), st.integers(3, 40))
def test_a_long_text_keeps_its_two_ends(text: str, limit: int) -> None:
    shown, whole = visible(text, limit=limit), visible(text)
    assert len(shown) <= limit
    assert shown == whole or whole.startswith(shown.split("…")[0])


def test_numbers_show_their_sign_and_are_not_rounded_to_zero() -> None:
    assert interval(-0.3, -0.4, -0.2) == "-0.300 [-0.400, -0.200]"
    assert interval(-0.003, -0.007, 0.00058) == "-0.0030 [-0.0070, +0.0006]"
    assert number(1.5e-7) == "+1.5e-07"
    assert number(0.0) == "+0.000"
    assert interval(math.nan, 0, 1) == "undefined"
    assert interval(0.5, math.nan, math.nan) == "+0.500 [no interval]"
