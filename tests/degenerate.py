"""Tables on which statistics break: few rows, few clusters, ties, zeros, rows that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from findings import alone
from tables import RECIPE, Recipe, Table, changed, four_tables, random_table, table_of

from graddiag.rules import FEW_CLUSTERS
from graddiag.signals import Signals

Tables = dict[str, Table]


def drawn(recipe: Recipe = RECIPE) -> Tables:
    """Four tables whose exact products with safety are not known, so that rows may still be changed."""
    return four_tables(recipe, exact=False)


def clustered(names: Callable[[int], str], n: int = 20) -> Tables:
    """Tables of n rows, row i of which is in the named cluster."""
    tables = {role: random_table(replace(RECIPE, n=n), name=role, seed=k) for k, role in enumerate(drawn())}
    return {
        role: changed(table, lambda s: replace(s, clusters=tuple(names(i) for i in range(n))))
        for role, table in tables.items()
    }


def with_rows(table: Table, change: Callable[[np.ndarray], np.ndarray], **options: object) -> Table:
    """The table with other gradients, each block changed alike."""
    s = table.signals
    full = {b: change(g) for b, g in table.full.items()}
    options = {"loss": s.loss.tolist(), "finite": s.finite.tolist()} | options
    return table_of(
        full, name=s.provenance.data, ids=s.ids, clusters=s.clusters, projection=s.space.projection, **options
    )


def cut(tables: Tables, n: int) -> Tables:
    """The first n rows of each."""
    at = np.arange(n)
    return {r: Table(x.signals.take(at), {b: g[at] for b, g in x.full.items()}) for r, x in tables.items()}


def spoilt(table: Table, rows: list[int]) -> Table:
    """The table with rows that are not finite, in every number that is measured of them."""
    bad = np.isin(np.arange(len(table.signals)), rows)

    def spoil(s: Signals) -> Signals:
        return replace(
            s,
            finite=~bad,
            loss=np.where(bad, np.nan, s.loss),
            token_loss=tuple(np.where(b, np.nan, x) for b, x in zip(bad, s.token_loss, strict=True)),
            norms={b: np.where(bad, np.nan, v) for b, v in s.norms.items()},
            gradients={b: np.where(bad[:, None], np.inf, v) for b, v in s.gradients.items()},
        )

    return changed(table, spoil)


def identical(recipe: Recipe = RECIPE) -> Tables:
    """The right side has the left's gradients and losses."""
    tables = drawn(recipe)
    left = tables["left"].signals
    right = Table(
        replace(
            left,
            provenance=replace(left.provenance, data="right"),
            digests=tables["right"].signals.digests,
        ),
        tables["left"].full,
    )
    return tables | {"right": right}


def tied() -> Tables:
    """Two different rows in all tables, over and over, and two losses."""
    tables = drawn()
    kinds = {b: g[:2] for b, g in tables["left"].full.items()}

    def tie(role: str, table: Table) -> Table:
        n, turn = len(table.signals), role == "right"
        full = {b: np.stack([kinds[b][(i + turn) % 2] for i in range(n)]) for b in kinds}
        return table_of(full, name=role, clusters=table.signals.clusters, loss=[1.0 + (i + turn) % 2 for i in range(n)])

    return {role: tie(role, table) for role, table in tables.items()}


def cancelling() -> Tables:
    """Rows come in opposite twins of one cluster: every mean gradient is zero."""
    tables = drawn(replace(RECIPE, n=8))
    twins = {role: cut({"x": table}, 6)["x"] for role, table in tables.items()}

    def twin(g: np.ndarray) -> np.ndarray:
        return np.concatenate([g[:3], -g[:3]])

    return {r: with_rows(x, twin) for r, x in twins.items()}


def without_fifth(g: np.ndarray) -> np.ndarray:
    """The rows with zeros in the place of one."""
    return np.where(np.arange(len(g))[:, None] == 4, 0.0, g)


CASES: dict[str, Callable[[], Tables]] = {
    "one pair": lambda: cut(drawn(), 1),
    "two pairs of one cluster": lambda: cut(clustered(lambda _: "one"), 2),
    "two pairs of two clusters": lambda: cut(drawn(), 2),
    "a single cluster": lambda: clustered(lambda _: "one"),
    **{f"{k} clusters": (lambda k=k: clustered(lambda i: f"c{i % k}")) for k in range(2, FEW_CLUSTERS)},
    "one large cluster and small ones": lambda: clustered(lambda i: "large" if i < 14 else f"c{i}"),
    "two clusters of very unequal sizes": lambda: clustered(lambda i: "small" if i == 3 else "large"),
    "identical sides": identical,
    "identical sides, each row its own cluster": lambda: identical(replace(RECIPE, n=20, clusters=0)),
    "ties": tied,
    "opposite twins": cancelling,
    "gradients of zero": lambda: {r: with_rows(x, np.zeros_like) for r, x in drawn().items()},
    "gradients of zero on one side": lambda: drawn() | {"left": with_rows(drawn()["left"], np.zeros_like)},
    "a safety set of zeros": lambda: drawn() | {"safety": with_rows(drawn()["safety"], np.zeros_like)},
    "one row of zero": lambda: drawn() | {"left": with_rows(drawn()["left"], without_fifth)},
    "one row not finite": lambda: drawn() | {"left": spoilt(drawn()["left"], [3])},
    "one finite row": lambda: drawn() | {"left": spoilt(drawn()["left"], list(range(1, 12)))},
    "one finite safety row": lambda: drawn() | {"safety": spoilt(drawn()["safety"], list(range(1, 9)))},
    "no finite row in the control": lambda: drawn() | {"control": spoilt(drawn()["control"], list(range(7)))},
    "no pairs": lambda: drawn() | {"right": changed(drawn()["right"], alone)},
    "gradients as large as float32 holds": lambda: {r: with_rows(x, lambda g: 1e37 * g) for r, x in drawn().items()},
    "gradients as small as float32 holds": lambda: {r: with_rows(x, lambda g: 1e-37 * g) for r, x in drawn().items()},
}  # fmt: skip
