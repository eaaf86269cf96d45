"""Random tables for tests, drawn with their full gradients: exact and projected numbers are both known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np
from jaxtyping import Float, Int

from graddiag.comparison import Comparison
from graddiag.signals import ONLY_READ, AdamStep, Block, PairProducts, Provenance, Reference, Signals, Space

BLOCKS = ("layers.0.mlp.down_proj.weight", "layers.1.mlp.down_proj.weight", "layers.1.self_attn.o_proj.weight")
SIZE = 48  # parameters of a block
LAST = 1000  # target tokens from here on are of one id each
PROJECTED = (  # numbers that have a standard error by the projection
    *(f"conflict/{k}" for k in ("paired_cosine", "same_cluster", "within_left", "within_right", "across")),
    *("conflict/mean_gradient_cosine", "conflict/mean_gradient_cosine_corrected", "conflict/label_distance"),
    *("framing/consistency", "framing/safety_cosine", "framing/safety_cosine_corrected"),
    *(f"alignment/{k}" for k in ("left", "right", "difference", "control:benign")),
)

Full = dict[str, Float[np.ndarray, "n d"]]


@dataclass(frozen=True)
class Table:
    """Signals, and the full gradients that they were computed from."""

    signals: Signals
    full: Full

    def whole(self) -> Float[np.ndarray, "n d"]:
        """All blocks of each row as one vector, in full."""
        return np.concatenate(list(self.full.values()), axis=1)

    def projected(self) -> Float[np.ndarray, "n k"]:
        """All blocks of each row as one vector, projected."""
        return np.concatenate([self.signals.gradients[b] for b in self.signals.blocks], axis=1)


def space_of(blocks: Sequence[str] = BLOCKS, *, size: int = SIZE, dim: int = 16, projection: str = "logra") -> Space:
    """A space whose blocks have `size` parameters each; "exact" keeps them all."""
    kept = size if projection == "exact" else dim
    shapes = tuple(Block(b, (size,)) for b in blocks)
    return Space("tokenizer", "template", "answer", 512, shapes, projection, kept, 0, "probe", "float64")


def directions(rng: np.random.Generator, blocks: Sequence[str], size: int) -> dict[str, Float[np.ndarray, " d"]]:
    """A unit vector per block."""
    drawn = {b: rng.normal(size=size) for b in blocks}
    return {b: v / np.linalg.norm(v) for b, v in drawn.items()}


@dataclass(frozen=True)
class Recipe:
    """How rows are drawn: `shared` times a direction common to all, one effect per cluster, noise of length about 1.

    The common direction is that of `direction_seed`: two tables of equal seeds share it. Row i is in cluster
    i mod `clusters` (0: each row is its own).
    """

    n: int = 12
    blocks: tuple[str, ...] = BLOCKS
    size: int = SIZE
    dim: int = 16
    clusters: int = 4
    shared: float = 0.0
    cluster_effect: float = 0.0
    direction_seed: int = 0
    cluster_seed: int = 0
    projection: str = "logra"


def draw(recipe: Recipe, seed: int) -> Full:
    """Full gradients of one table."""
    rng = np.random.default_rng(seed)
    common = directions(np.random.default_rng(recipe.direction_seed), recipe.blocks, recipe.size)
    n_clusters = recipe.clusters or recipe.n
    effects = np.random.default_rng([recipe.cluster_seed, 1]).normal(size=(n_clusters, len(recipe.blocks), recipe.size))
    at = np.arange(recipe.n) % n_clusters
    scale = recipe.size**-0.5
    return {
        b: recipe.shared * common[b]
        + scale * recipe.cluster_effect * effects[at, k]
        + scale * rng.normal(size=(recipe.n, recipe.size))
        for k, b in enumerate(recipe.blocks)
    }


def table_of(
    full: Mapping[str, Float[np.ndarray, "n d"]],
    *,
    name: str = "left",
    ids: Sequence[str] | None = None,
    clusters: Sequence[str] | None = None,
    dim: int = 16,
    projection: str = "logra",
    finite: Sequence[bool] | None = None,
    loss: Sequence[float] | None = None,
    seed: int = 0,
) -> Table:
    """The table of given full gradients; rows of equal ids have the same 3 to 9 target tokens, losses are random.

    The last target token is of that id alone, so that no answer is repeated.

    Row i is "row-i" and in cluster "c(i mod 4)" unless told otherwise. The loss is the mean of the token losses.
    """
    n, size = next(iter(full.values())).shape
    rng = np.random.default_rng([seed, sum(name.encode())])
    space = space_of(tuple(full), size=size, dim=dim, projection=projection)
    ids = tuple(ids) if ids is not None else tuple(f"row-{i}" for i in range(n))
    target_ids = tuple(np.append(np.arange(2 + sum(i.encode()) % 7), LAST + crc32(i.encode())) for i in ids)
    base = np.asarray(rng.gamma(4.0, 0.5, size=n) if loss is None else loss, dtype=np.float64)
    token_loss = tuple(b + _sums_to_zero(rng, len(t)) for b, t in zip(base, target_ids, strict=True))
    signals = Signals(
        space=space,
        provenance=Provenance("model", "main", "weights", name),
        ids=ids,
        clusters=tuple(clusters) if clusters is not None else tuple(f"c{i % 4}" for i in range(n)),
        digests=tuple(f"{name}:{i}" for i in ids),
        loss=base,
        token_loss=token_loss,
        target_ids=target_ids,
        n_tokens=np.array([len(t) for t in target_ids], dtype=np.int64),
        length=np.array([len(t) + 10 for t in target_ids], dtype=np.int64),
        n_cut=np.zeros(n, dtype=np.int64),
        finite=np.ones(n, dtype=bool) if finite is None else np.asarray(finite, dtype=bool),
        norms={b: np.linalg.norm(g, axis=1) for b, g in full.items()},
        gradients={
            b: g if projection == "exact" else g @ projector(k, size, dim) for k, (b, g) in enumerate(full.items())
        },
    )
    return Table(signals, dict(full))


def _sums_to_zero(rng: np.random.Generator, n: int) -> Float[np.ndarray, " n"]:
    values = rng.normal(size=n)
    return np.asarray(values - values.mean())


def projector(block: int, size: int, dim: int) -> Float[np.ndarray, "d k"]:
    """The Gaussian projection of the block of this number: inner products are right on average."""
    return np.random.default_rng([block, size, dim]).normal(scale=dim**-0.5, size=(size, dim))


def random_table(recipe: Recipe | None = None, *, name: str = "left", seed: int = 0) -> Table:
    """A table drawn by a recipe."""
    recipe = recipe or Recipe()
    n_clusters = recipe.clusters or recipe.n
    clusters = [f"c{i % n_clusters}" for i in range(recipe.n)]
    full = draw(recipe, seed)
    return table_of(full, name=name, clusters=clusters, dim=recipe.dim, projection=recipe.projection, seed=seed)


def random_pair(recipe: Recipe | None = None, *, seed: int = 0) -> tuple[Table, Table]:
    """A left and a right table with the same ids, clusters and answers."""
    return random_table(recipe, name="left", seed=2 * seed + 1), random_table(recipe, name="right", seed=2 * seed + 2)


def products_of(left: Table, right: Table, pairs: Sequence[tuple[int, int]] | None = None) -> PairProducts:
    """Exact products of the given rows, by default of all that have a partner of the same id."""
    at = {i: k for k, i in enumerate(right.signals.ids)}
    pairs = [(k, at[i]) for k, i in enumerate(left.signals.ids) if i in at] if pairs is None else pairs
    inner, difference = {}, {}
    for b in left.full:
        inner[b] = np.array([left.full[b][i] @ right.full[b][j] for i, j in pairs], dtype=np.float64)
        difference[b] = np.array(
            [np.linalg.norm(left.full[b][i] - right.full[b][j]) for i, j in pairs], dtype=np.float64
        )
    ids = [tuple(t.signals.ids[p[k]] for p in pairs) for k, t in enumerate((left, right))]
    return PairProducts(ids[0], ids[1], inner, difference)


def compared(left: Table, right: Table, *, exact: bool = False) -> Comparison:
    """The two tables side by side, with exact products of the pairs if asked for."""
    return Comparison(left.signals, right.signals, products_of(left, right) if exact else None)


def with_reference(table: Table, safety: Table) -> Table:
    """The table with exact products of its rows and the mean of the finite safety rows."""
    kept = safety.signals.finite
    means = {b: g[kept].mean(axis=0) for b, g in safety.full.items()}
    reference = Reference(
        safety.signals.provenance.data,
        safety.signals.rows,
        safety.signals.provenance.weights,
        int(kept.sum()),
        {b: float(np.linalg.norm(m)) for b, m in means.items()},
    )
    dots = {b: g @ means[b] for b, g in table.full.items()}
    return Table(replace(table.signals, reference=reference, reference_dot=dots), table.full)


def preconditioned(block: int, size: int) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """A scale per coordinate, and the step without any example, of the block of this number."""
    rng = np.random.default_rng([block, size, 3])
    return rng.gamma(1.0, size=size), rng.normal(size=size)


def with_adam(table: Table, safety: Table, state: str = "state") -> Table:
    """The table with what each row adds to a step: its gradient, scaled coordinate by coordinate."""
    table = with_reference(table, safety)
    means = {b: g[safety.signals.finite].mean(axis=0) for b, g in safety.full.items()}
    resting = {b: preconditioned(k, means[b].size)[1] for k, b in enumerate(means)}
    added = added_by(table)
    step = AdamStep(
        "AdamW",
        state,
        7,
        {b: float(resting[b] @ means[b]) for b in means},
        {b: float(np.linalg.norm(resting[b])) for b in means},
    )
    signals = replace(
        table.signals,
        adam=step,
        adam_dot={b: d @ means[b] for b, d in added.items()},
        adam_norm={b: np.linalg.norm(d, axis=1) for b, d in added.items()},
        adam_step_norm={b: np.linalg.norm(d + resting[b], axis=1) for b, d in added.items()},
    )
    return Table(signals, table.full)


def added_by(table: Table) -> Full:
    """What each row of a table with an Adam form adds to the step, in full."""
    return {b: g * preconditioned(k, g.shape[1])[0] for k, (b, g) in enumerate(table.full.items())}


def with_scores(table: Table) -> Table:
    """The table with token scores: random ones for every position, and a rest."""
    rng = np.random.default_rng(5)
    scores = tuple(rng.normal(size=n - 1) for n in table.signals.length)
    rest = rng.normal(size=len(table.signals))
    return Table(replace(table.signals, token_alignment=scores, alignment_elsewhere=rest), table.full)


STATES = ("0/first:10", "3/last_prompt")


def with_states(table: Table, sites: Sequence[str] = STATES, *, width: int = 5, seed: int = 0) -> Table:
    """The table with random hidden states of `width` numbers at these sites."""
    rng = np.random.default_rng(seed)
    states = {site: rng.normal(size=(len(table.signals), width)).astype(np.float32) for site in sites}
    space = replace(table.signals.space, states=tuple(sites))
    return Table(replace(table.signals, space=space, states=states), table.full)


def only_read(table: Table, *, model: str = "model", template: str = "template") -> Signals:
    """The table as if it had been read under a model of this name: losses and states, and no gradients."""
    s = table.signals
    space = replace(s.space, blocks=(), projection=ONLY_READ, dim=0, probe="", template=template)
    about = replace(s.provenance, model=model, weights=f"weights of {model}")
    return replace(s, space=space, provenance=about, norms={}, gradients={})


def taken(table: Table, index: Sequence[int] | Int[np.ndarray, " m"]) -> Table:
    """The chosen rows."""
    at = np.asarray(index, dtype=np.int64)
    return Table(table.signals.take(at), {b: g[at] for b, g in table.full.items()})


def answering(table: Table, answers: Sequence[int | Sequence[int]]) -> Table:
    """The table with other answers, token ids or a number for three of it; token losses are all the row's loss."""
    s = table.signals
    tokens = tuple(np.full(3, a) if isinstance(a, int) else np.array(a) for a in answers)
    n_tokens = np.array([len(t) for t in tokens], dtype=np.int64)
    losses = tuple(np.full(n, x) for n, x in zip(n_tokens, s.loss, strict=True))
    new = replace(s, target_ids=tokens, n_tokens=n_tokens, token_loss=losses, length=n_tokens + 10)
    return Table(new, table.full)


def unnamed(table: Table) -> Table:
    """The table without named clusters: each row is one of its own."""
    return Table(replace(table.signals, clusters=table.signals.ids), table.full)


RECIPE = Recipe(shared=0.5, cluster_effect=0.7)  # rows that agree a little, more so inside a cluster


def four_tables(recipe: Recipe = RECIPE, *, exact: bool = True) -> dict[str, Table]:
    """A "left", a "right", a "safety" and a "control" table; they know their exact products with safety if asked to."""
    left, right = random_pair(recipe)
    safety = random_table(replace(recipe, n=9), name="safety", seed=20)
    tables = {"left": left, "right": right, "control": random_table(replace(recipe, n=7), name="benign", seed=30)}
    return {k: with_reference(t, safety) if exact else t for k, t in tables.items()} | {"safety": safety}


def changed(table: Table, change: Callable[[Signals], Signals]) -> Table:
    """The table with other signals for the same full gradients."""
    return Table(change(table.signals), table.full)
