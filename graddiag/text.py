"""How text and numbers are shown: text from data as characters a reader can see, never as commands to a terminal."""

from __future__ import annotations

import math
import unicodedata

_BREAKS = ("Zl", "Zp")  # Unicode's line and paragraph separators, which some terminals obey
DECIMALS = (3, 4, 5)  # of a cosine or a nat/token: as few as show that a number is not zero
SMALL_P = 1e-4  # nothing is decided by how much smaller a p is


def visible(text: str, *, limit: int | None = None) -> str:
    r"""The text with control, format and unassigned characters written as escapes (`\x1b`, `\u202e`).

    With a `limit` (characters, at least 3) a longer text keeps its two ends, with an ellipsis between them.
    """
    shown = "".join(_escaped(c) if _is_hidden(c) else c for c in text)
    if limit is None or len(shown) <= limit:
        return shown
    head = limit // 2
    return f"{shown[:head]}…{shown[len(shown) - (limit - 1 - head) :]}"


def number(value: float) -> str:
    """The number with its sign and three to five decimals, or two digits where those would hide it."""
    return _numbers(value)[0]


def interval(value: float, low: float, high: float) -> str:
    """The number, and its interval in brackets if it has one."""
    if math.isnan(value):
        return number(value)
    if math.isnan(low) or math.isnan(high):
        return f"{number(value)} [no interval]"
    shown = _numbers(value, low, high)
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def chance(p: float) -> str:
    """A p, as it stands beside a number."""
    if math.isnan(p):
        return "p undefined"
    return f"p = {p:.2g}" if p >= SMALL_P else f"p < {SMALL_P:.4f}"


def _numbers(*values: float) -> list[str]:
    """Numbers that stand together, in one notation: with as few decimals (3 to 5) as show that none is zero."""
    sizes = [abs(v) for v in values if v and not math.isnan(v)]
    places = next((d for d in DECIMALS if min(sizes, default=1.0) >= 10.0**-d), None)
    form = f"+.{DECIMALS[0] if places is None else places}f"
    if places is None and max(sizes) < 10.0 ** -DECIMALS[0]:
        form = "+.1e"
    return ["undefined" if math.isnan(v) else format(v, form) for v in values]


def _is_hidden(character: str) -> bool:
    category = unicodedata.category(character)
    return category.startswith("C") or category in _BREAKS


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
