"""States of the same rows under a tuned and an aligned model, drawn so that the shared directions are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from tables import table_of

from graddiag.comparison import Comparison

SITE = "3/first:10"

Rows = Float[np.ndarray, "n d"]


def change_of(
    tuned: Rows | dict[str, Rows],
    aligned: Rows | dict[str, Rows],
    name: str = "harmful",
    *,
    clusters: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
) -> Comparison:
    """The comparison of two models on the rows of one set: states at SITE, or at the sites given; rows are clusters of
    their own."""
    sides = []
    for states, model in ((tuned, "tuned"), (aligned, "aligned")):
        by_site = states if isinstance(states, dict) else {SITE: states}
        n = len(next(iter(by_site.values())))
        own = list(ids) if ids is not None else [f"{name}-{i}" for i in range(n)]
        table = table_of({"block": np.ones((n, 1))}, name=name, ids=own, clusters=clusters or own).signals
        about = replace(table.provenance, model=model, weights=model)
        space = replace(table.space, states=tuple(by_site))
        sides.append(replace(table, provenance=about, space=space, states=by_site))
    return Comparison(*sides)


def orthonormal(rng: np.random.Generator, d: int, k: int) -> Float[np.ndarray, "d k"]:
    """k random directions at right angles."""
    return np.asarray(np.linalg.qr(rng.normal(size=(d, k)))[0])


def moved(
    rng: np.random.Generator,
    directions: Float[np.ndarray, "d k"],
    name: str = "harmful",
    *,
    n: int = 40,
    strength: float = 3.0,
    noise: float = 0.1,
    mean: float = 0.0,
    sizes: float | Float[np.ndarray, " d"] = 1.0,
) -> Comparison:
    """A set whose rows move along the directions, by random amounts, apart from noise and a mean along all coordinates;
    the aligned states are normal, of these sizes per coordinate."""
    d, k = directions.shape
    aligned = rng.normal(size=(n, d)) * sizes
    along = strength * rng.normal(size=(n, k)) @ directions.T
    return change_of(aligned + along + noise * rng.normal(size=(n, d)) + mean, aligned, name)
