"""Where in a model are hidden states read: after which layer, and at which tokens of a row?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from graddiag.errors import UsageError

_FIRST = re.compile(r"first:([1-9]\d*)")
_NAMED = ("answer", "last_answer", "last_prompt")
_ALLOWED = f"first:N (N at least 1), {', '.join(_NAMED)}"


@dataclass(frozen=True, order=True)
class Site:
    """The output of one decoder layer at one position of a row.

    `layer` counts from 0, the first decoder layer; the states are what enters the next layer, before the final norm.
    `position` is "first:N", the mean over the first N answer tokens (over all where there are fewer); "answer", the
    mean over all of them; "last_answer", the last one; "last_prompt", the token before the first target. The state of a
    token is that at its own position: the token has been read. What the template prints after an answer is a target,
    and no answer token.

    Raises UsageError for another layer or position.
    """

    layer: int
    position: str

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise UsageError(f"There is no layer {self.layer}. Layers count from 0.")
        check_position(self.position)

    @property
    def name(self) -> str:
        """The key under which a table keeps the states: "12/first:10"."""
        return f"{self.layer}/{self.position}"


def parse_site(name: str) -> Site:
    """The site of this name. Raises UsageError for a text that names none."""
    layer, _, position = name.partition("/")
    if not (layer.isascii() and layer.isdigit()):
        raise UsageError(f"{name!r} names no site. A site is LAYER/POSITION, such as 12/first:10 or 0/last_prompt.")
    return Site(int(layer), position)


def check_position(text: str) -> str:
    """The text, if it is a position. Raises UsageError with what is allowed."""
    if text not in _NAMED and not _FIRST.fullmatch(text):
        raise UsageError(f"There is no position {text!r}. Allowed: {_ALLOWED}.")
    return text


def first_tokens(position: str) -> int | None:
    """The N of "first:N"; None for another position."""
    found = _FIRST.fullmatch(position)
    return int(found[1]) if found else None


def sites_of(layers: Sequence[int], positions: Sequence[str]) -> tuple[Site, ...]:
    """Every layer with every position, each once, in order of layers."""
    return tuple(Site(layer, p) for layer in sorted(set(layers)) for p in dict.fromkeys(positions))
