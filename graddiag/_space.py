"""What must two tables share before their numbers may be compared?"""

from __future__ import annotations

from dataclasses import dataclass, fields

from graddiag.errors import DataError

TOWARD = "toward"  # the kind of space whose rows are products with known gradients, and no gradients themselves
ONLY_READ = "none"  # the kind of space of tables without gradients: losses, and hidden states


@dataclass(frozen=True)
class Block:
    """One parameter tensor, under the name that the model gives it."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Space:
    """Everything that two tables must share before their numbers may be compared.

    The model's weights are not part of it: the same rows under two models are a legitimate comparison. `states` are the
    names of the sites (`graddiag.sites`) whose hidden states were kept.
    """

    tokenizer: str
    template: str
    target: str
    max_length: int
    blocks: tuple[Block, ...]
    projection: str
    dim: int
    seed: int
    probe: str
    dtype: str
    states: tuple[str, ...] = ()

    def differences(self, other: Space) -> dict[str, tuple[str, str]]:
        """The fields in which two spaces differ, each with both values as text."""
        out: dict[str, tuple[str, str]] = {}
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if mine != theirs:
                out[f.name] = _two_texts(mine, theirs)
        return out


def check_same_space(a: Space, b: Space, name_a: str, name_b: str) -> None:
    """Raises DataError, with the differing fields side by side, unless the two spaces are equal."""
    different = a.differences(b)
    if different:
        lines = "\n".join(f"  {k}: {x}  |  {y}" for k, (x, y) in different.items())
        measured = f"blocks, projection, target and dtype{', layers and positions' if 'states' in different else ''}"
        raise DataError(
            f"{name_a} and {name_b} were not measured in the same space and cannot be compared. They differ in:\n"
            f"{lines}\nExtract both with the same tokenizer, {measured}."
        )


def check_gradients(space: Space, name: str) -> None:
    """Raises DataError where a table has no blocks, so that nothing can be said of its gradients."""
    if not space.blocks:
        raise DataError(
            f"{name} holds losses and hidden states only, no gradients. Give 'graddiag compare' the rows themselves or "
            "what 'graddiag extract' saved of them; to compare models on these rows there is 'graddiag erosion'."
        )


def _two_texts(a: object, b: object) -> tuple[str, str]:
    if not (isinstance(a, tuple) and isinstance(b, tuple)):
        return str(a), str(b)
    only_a, only_b = ([_shown(x) for x in v if x not in w] for v, w in ((a, b), (b, a)))
    what = "blocks" if any(isinstance(x, Block) for x in (*a, *b)) else "sites"
    return _some(len(a), what, only_a), _some(len(b), what, only_b)


def _shown(one: object) -> str:
    return f"{one.name}{list(one.shape)}" if isinstance(one, Block) else str(one)


def _some(n: int, what: str, only: list[str]) -> str:
    return f"{n} {what}" + (f", only here: {', '.join(only[:3])}{', ...' if len(only) > 3 else ''}" if only else "")
