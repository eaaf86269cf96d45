"""How is one pair shown on the page: its answer twice, each token shaded where that side finds it harder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from graddiag.analyzers import PairOnShow, TokenView
from graddiag.text import number, visible

MOST_TOKENS = 400  # of an answer on the page
FULL_COLOUR = 0.95  # quantile of the gaps' size that gets the full colour: the largest alone would pale the rest
_COLOURS = {"left": "213, 94, 0", "right": "1, 115, 178"}  # red, green, blue; those of the figures
_DARKEST = 0.75  # so that letters can be read on it


@dataclass(frozen=True)
class PairView:
    """The pair's id, one sentence on what is seen, and the shaded answer under each side's name; safe as markup."""

    id: str
    reading: str
    sides: tuple[tuple[str, Markup], ...]


def pair_view(result: TokenView) -> PairView | None:
    """The pair on show; None where no pair has the same target tokens.

    Texts come from data: every character is escaped, and control characters are visible. A line break is shown by a
    sign, and made.
    """
    shown = result.shown
    if shown is None:
        return None
    scale = float(np.quantile(np.abs(shown.left - shown.right), FULL_COLOUR))
    names = {"left": visible(result.left_name), "right": visible(result.right_name)}
    same = names["left"] == names["right"]
    sides = tuple(
        (f"{name} ({side})" if same else name, _answer(shown, side, scale, names)) for side, name in names.items()
    )
    return PairView(visible(shown.id), _reading(shown, scale, result.n_pairs), sides)


def _reading(shown: PairOnShow, scale: float, n_pairs: int) -> str:
    cut = len(shown.tokens) - MOST_TOKENS
    left_out = f" The last {cut} of its {len(shown.tokens)} tokens are left out." if cut > 0 else ""
    return (
        f"Of {n_pairs} pairs the one with the median gap ({number(shown.gap)} nats/token): typical, not the most "
        f"striking. In each column a token is shaded where it is harder after that request; full colour is a gap of "
        f"{scale:.2g} nats or more. Point at a token for its numbers.{left_out}"
    )


def _answer(shown: PairOnShow, side: str, scale: float, names: dict[str, str]) -> Markup:
    return Markup("").join(_token(shown, k, side, scale, names) for k in range(min(len(shown.tokens), MOST_TOKENS)))


def _token(shown: PairOnShow, k: int, side: str, scale: float, names: dict[str, str]) -> Markup:
    gap = float(shown.left[k] - shown.right[k])
    harder = max(gap if side == "left" else -gap, 0.0)
    depth = _DARKEST * min(harder / scale, 1.0) if scale > 0 else 0.0
    style = f' style="background: rgba({_COLOURS[side]}, {depth:.2f})"' if depth >= 0.01 else ""  # below: not seen
    title = (
        f"token {k + 1}, {_quoted(shown, k)}: {names['left']} {shown.left[k]:.3f}, {names['right']} "
        f"{shown.right[k]:.3f}, gap {gap:+.3f} nats"
    )
    if len(shown.through_left) and len(shown.through_right):
        parts = f"{shown.through_left[k]:+.4f} and {shown.through_right[k]:+.4f}"
        title += f"; cosine with safety through the position that predicts it: {parts}"
    return Markup('<span title="{}"{}>{}</span>').format(title, Markup(style), _text(shown, k))


def _quoted(shown: PairOnShow, k: int) -> str:
    text = shown.texts[k]
    return f"#{shown.tokens[k]}" if text is None else visible(repr(text))


def _text(shown: PairOnShow, k: int) -> Markup:
    text = shown.texts[k]
    if text is None:
        return escape(f"#{shown.tokens[k]} ")
    return Markup("↵\n").join(escape(visible(line)) for line in text.split("\n"))
