"""Where in a model a block stands: its layer and its kind, read from its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A block's layer (None where its name has no number) and kind, which blocks of different layers share."""

    stem: str
    layer: int | None
    kind: str


@dataclass(frozen=True)
class Panel:
    """The blocks of one kind, with their layers; `layers` is None for the blocks that stand in no layer."""

    name: str
    blocks: tuple[str, ...]
    layers: tuple[int, ...] | None


def place(block: str) -> Place:
    """The first component of the name that is an integer is the layer; what follows is the kind, without ".weight"."""
    parts = block.removesuffix(".weight").split(".")
    at = next((k for k, part in enumerate(parts) if part.isdecimal()), None)
    if at is None:
        return Place("", None, ".".join(parts))
    return Place(".".join(parts[:at]), int(parts[at]), ".".join(parts[at + 1 :]))


def panels(blocks: Sequence[str]) -> tuple[Panel, ...]:
    """The blocks grouped by kind in the order in which the kinds appear, the blocks outside layers in a last group.

    Where two stacks of layers have blocks of the same kind, the stack's name is part of the panel's.
    """
    placed = [(block, place(block)) for block in blocks]
    stems = {p.stem for _, p in placed if p.layer is not None}
    groups: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for block, p in placed:
        if p.layer is not None:
            groups.setdefault((p.stem, p.kind), []).append((block, p.layer))
    out = []
    for (stem, kind), members in groups.items():
        name = kind or stem
        ordered = sorted(members, key=lambda m: m[1])
        out.append(
            Panel(
                f"{stem}: {name}" if len(stems) > 1 and kind else name,
                tuple(b for b, _ in ordered),
                tuple(layer for _, layer in ordered),
            )
        )
    outside = tuple(block for block, p in placed if p.layer is None)
    return (*out, Panel("not in a layer", outside, None)) if outside else tuple(out)
