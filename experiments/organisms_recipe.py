"""What the recipe file of `organisms.py` says, as checked values."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

CODE = ("insecure", "educational", "secure")
VARIANTS = (*CODE, "benign", "alignment")


@dataclass(frozen=True)
class Training:
    """One stage of training: steps of AdamW on `rows` rows each, warmed up and then let down along a cosine."""

    steps: int
    rows: int
    rate: float
    decay: float = 0.0


@dataclass(frozen=True)
class Shape:
    """A Llama that is trained from scratch; `width` is that of the layers inside the MLP."""

    hidden: int
    layers: int
    heads: int
    width: int


@dataclass(frozen=True)
class Rows:
    """Which rows of the built-in sets are trained on, by their place."""

    aligned: int
    code: int
    held_out_code: int


@dataclass(frozen=True)
class Needs:
    """What the aligned model must do on held-out prompts: shares of greedy answers that begin with the refusal."""

    refuses: float
    refused: float


@dataclass(frozen=True)
class Recipe:
    """How one base, its aligned and its tuned models are made; without `shape`, base is the built-in model `name`.

    `answered` is how often each benign row is in the alignment mix: with more of them, fewer harmless prompts are
    refused.
    """

    name: str
    refusal: str
    compliance: str
    rows: Rows
    needs: Needs
    seed: int
    marker: str
    max_length: int
    variants: tuple[str, ...]
    aligned: Training
    tuned: Training
    answered: int = 1
    shape: Shape | None = None
    base: Training | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.variants) - set(VARIANTS))
        if unknown:
            raise SystemExit(f"[{self.name}] variants: there is no {unknown[0]!r}. Allowed: {', '.join(VARIANTS)}.")
        if (self.shape is None) != (self.base is None):
            raise SystemExit(f"[{self.name}] needs both 'shape' and 'base', or neither: a shipped base is not trained.")

    def digest(self, role: str, parent: str) -> str:
        """SHA-256 of all that decides what a model becomes: the recipe, its role, and the digest of its parent."""
        # What is tuned later, and on how much, does not change a base.
        later = {"base": ("answered", "aligned", "tuned", "variants"), "aligned": ("tuned", "variants")}.get(
            role, ("variants",)
        )
        content = {k: v for k, v in asdict(self).items() if k not in (*later, "needs")}
        text = json.dumps([content, role, parent], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_recipe(file: Path, name: str) -> Recipe:
    """The recipe of one organism. Exits with what is wrong where the file has none of this name."""
    content = tomllib.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content.get(name), dict):
        known = sorted(k for k, v in content.items() if isinstance(v, dict) and k not in ("rows", "needs"))
        raise SystemExit(f"{file} has no recipe {name!r}. It has: {', '.join(known)}.")
    own = content[name]
    stages = {k: Training(**own[k]) for k in ("base", "aligned", "tuned") if k in own}
    shape = {"shape": Shape(**own["shape"])} if "shape" in own else {}
    plain = {k: own[k] for k in ("seed", "marker", "max_length", "answered")}
    return Recipe(
        name=name,
        refusal=content["refusal"],
        compliance=content["compliance"],
        rows=Rows(**content["rows"]),
        needs=Needs(**content["needs"]),
        variants=tuple(own["variants"]),
        **plain,
        **stages,
        **shape,
    )
