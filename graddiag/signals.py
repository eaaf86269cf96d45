"""What was measured: a table with one row per example, the space it lives in, and where it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from graddiag._space import ONLY_READ, TOWARD, Block, Space, check_gradients, check_same_space
from graddiag.errors import DataError

__all__ = [
    "ONLY_READ",
    "TOWARD",
    "AdamStep",
    "Block",
    "PairProducts",
    "Provenance",
    "Reference",
    "Signals",
    "Space",
    "check_gradients",
    "check_same_space",
    "digest_of",
]


@dataclass(frozen=True)
class Provenance:
    """Where a table came from: the model (name, revision, digest of its weights), the data, the versions used."""

    model: str
    revision: str
    weights: str
    data: str
    versions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Reference:
    """A mean gradient that rows were multiplied with exactly: whose mean it is, and its norm per block."""

    name: str
    rows: str
    weights: str
    n: int
    norms: Mapping[str, float]


@dataclass(frozen=True)
class AdamStep:
    """The optimizer whose next step rows were turned into: its name, a digest of its state, the steps it has taken.

    `dot[block]` is the product of the step that momentum takes without any example, Gamma(0), with the mean gradient of
    the reference, `norms[block]` its norm, per unit of learning rate.
    """

    optimizer: str
    state: str
    step: int
    dot: Mapping[str, float]
    norms: Mapping[str, float]


@dataclass(frozen=True)
class PairProducts:
    """Exact products of pairs of a left and a right row, named by their ids, per block: `<g_left, g_right>` and
    `||g_left - g_right||`, each [n]."""

    left_ids: tuple[str, ...]
    right_ids: tuple[str, ...]
    inner: Mapping[str, Float[np.ndarray, " n"]]
    difference_norm: Mapping[str, Float[np.ndarray, " n"]]

    def __len__(self) -> int:
        return len(self.left_ids)

    def take(self, index: Sequence[int] | Int[np.ndarray, " m"]) -> PairProducts:
        """The chosen pairs, in the order asked for."""
        at = np.asarray(index, dtype=np.int64)
        return PairProducts(
            tuple(self.left_ids[i] for i in at),
            tuple(self.right_ids[i] for i in at),
            {b: v[at] for b, v in self.inner.items()},
            {b: v[at] for b, v in self.difference_norm.items()},
        )

    @staticmethod
    def concat(parts: Sequence[PairProducts]) -> PairProducts:
        """The parts one after the other."""
        blocks = parts[0].inner.keys()
        return PairProducts(
            tuple(i for p in parts for i in p.left_ids),
            tuple(i for p in parts for i in p.right_ids),
            {b: np.concatenate([p.inner[b] for p in parts]) for b in blocks},
            {b: np.concatenate([p.difference_norm[b] for p in parts]) for b in blocks},
        )


@dataclass(frozen=True)
class Signals:
    """Per-example losses and gradients of one set under one model; rows in the order of `ids`.

    `loss` is the mean over the example's target tokens, nats per token; `n_tokens` counts those tokens, `length` all
    tokens of the row, `n_cut` answer tokens that did not fit. `norms[block]` is exact; `gradients[block]` is `[n,
    k]`, projected as `space` says. `reference_dot[block]` is the exact inner product with the mean gradient that
    `reference` names. A row whose loss or gradient is not finite has `finite` False and is left out of every
    statistic.

    With token scores, `token_alignment` has one number per position of a row (prompt included, but for the last token,
    which predicts nothing): `g_t^T M a_t`, summed over blocks, through which position the gradient points along the
    mean, never which token caused it. `alignment_elsewhere` [n] is what positions cannot be told apart in (biases,
    norms, experts): both together sum to `reference_dot` over all blocks.

    With an optimizer's state, D_i = Gamma(g_i) - Gamma(0) is what the example adds to Adam's next step, taken as the
    whole batch, per unit of learning rate: `adam_dot[block]` is `<D_i, M>`, `adam_norm[block]` `||D_i||`, and
    `adam_step_norm[block]` `||Gamma(g_i)||` (`<Gamma(g_i), M>` is `adam_dot + adam.dot`).

    `states[site]` are hidden states, one row per example, at the sites that `space.states` names.
    """

    space: Space
    provenance: Provenance
    ids: tuple[str, ...]
    clusters: tuple[str, ...]
    digests: tuple[str, ...]
    loss: Float[np.ndarray, " n"]
    token_loss: tuple[Float[np.ndarray, " _"], ...]
    target_ids: tuple[Int[np.ndarray, " _"], ...]
    n_tokens: Int[np.ndarray, " n"]
    length: Int[np.ndarray, " n"]
    n_cut: Int[np.ndarray, " n"]
    finite: Bool[np.ndarray, " n"]
    norms: Mapping[str, Float[np.ndarray, " n"]]
    gradients: Mapping[str, Float[np.ndarray, "n _"]]
    reference: Reference | None = None
    reference_dot: Mapping[str, Float[np.ndarray, " n"]] = field(default_factory=dict)
    token_alignment: tuple[Float[np.ndarray, " _"], ...] | None = None
    alignment_elsewhere: Float[np.ndarray, " n"] | None = None
    adam: AdamStep | None = None
    adam_dot: Mapping[str, Float[np.ndarray, " n"]] = field(default_factory=dict)
    adam_norm: Mapping[str, Float[np.ndarray, " n"]] = field(default_factory=dict)
    adam_step_norm: Mapping[str, Float[np.ndarray, " n"]] = field(default_factory=dict)
    states: Mapping[str, Float[np.ndarray, "n _"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.ids)
        if set(self.states) != set(self.space.states):
            have, said = (", ".join(v) or "none" for v in (self.states, self.space.states))
            raise DataError(f"A table must have the states that its space names, but it has {have}, and {said} named.")
        wrong = [f"{k} has {len(v)}" for k, v in self._columns() if len(v) != n]
        if wrong:
            raise DataError(f"A table of {n} rows must have {n} values in every column, but {', '.join(wrong)}.")
        if len(set(self.ids)) != n:
            twice = next(i for k, i in enumerate(self.ids) if i in self.ids[:k])
            raise DataError(f"The id {twice!r} occurs twice in one table. Ids must be unique; pairs are found by them.")

    def _columns(self) -> list[tuple[str, Sequence[object] | np.ndarray]]:
        plain = [(name, column) for name in _ROW_FIELDS if (column := getattr(self, name)) is not None]
        for name in _NAMED_FIELDS:
            plain += [(f"{name}[{b}]", v) for b, v in getattr(self, name).items()]
        return plain

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks, in model order."""
        return tuple(b.name for b in self.space.blocks)

    @property
    def rows(self) -> str:
        """A digest of all rows: their tokens and target masks, in this order."""
        return digest_of(self.digests)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know of these rows: how many are not finite, how many answers were cut."""
        name, n = self.provenance.data, len(self)
        bad, cut = int((~self.finite).sum()), int((self.n_cut > 0).sum())
        said = [
            (bad, "have a loss or gradient that is not finite; they are in no statistic"),
            (cut, f"had their answer cut at its end, to fit {self.space.max_length} tokens or to match the partner's"),
        ]
        return tuple(f"{name}: {count} of {n} rows {what}." for count, what in said if count)

    def take(self, index: Sequence[int] | Int[np.ndarray, " m"]) -> Signals:
        """The chosen rows, in the order asked for."""
        at = np.asarray(index, dtype=np.int64)
        new: dict[str, object] = {}
        for name in _ROW_FIELDS:
            column = getattr(self, name)
            if column is not None:
                new[name] = column[at] if isinstance(column, np.ndarray) else tuple(column[i] for i in at)
        for name in _NAMED_FIELDS:
            new[name] = {b: v[at] for b, v in getattr(self, name).items()}
        return replace(self, **new)  # type: ignore[arg-type]

    @staticmethod
    def concat(parts: Iterable[Signals]) -> Signals:
        """The parts one after the other; splitting and concatenating is the identity.

        Raises DataError where there is no part, or the parts' spaces, models or references differ.
        """
        tables = list(parts)
        if not tables:
            raise DataError("There is no table to concatenate.")
        first = tables[0]
        for other in tables[1:]:
            check_same_space(first.space, other.space, "the first part", "a later part")
            mine, theirs = ((t.provenance, t.reference, t.adam) for t in (first, other))
            if mine != theirs:
                raise DataError(
                    f"Parts of one table must come from one model and one set: {first.provenance} and "
                    f"{other.provenance}."
                )
        new: dict[str, object] = {}
        for name in _ROW_FIELDS:
            columns = [getattr(t, name) for t in tables]
            if len({c is None for c in columns}) == 2:
                raise DataError(f"Some parts of the table have {name} and some have not. Measure all with it, or none.")
            if columns[0] is not None:
                whole = isinstance(columns[0], np.ndarray)
                new[name] = np.concatenate(columns) if whole else tuple(v for c in columns for v in c)
        for name in _NAMED_FIELDS:
            new[name] = {b: np.concatenate([getattr(t, name)[b] for t in tables]) for b in getattr(first, name)}
        return replace(first, **new)  # type: ignore[arg-type]


_ROW_FIELDS = (
    "ids",
    "clusters",
    "digests",
    "loss",
    "token_loss",
    "target_ids",
    "n_tokens",
    "length",
    "n_cut",
    "finite",
    "token_alignment",
    "alignment_elsewhere",
)
_ADAM_FIELDS = ("adam_dot", "adam_norm", "adam_step_norm")
_NAMED_FIELDS = ("norms", "gradients", "reference_dot", *_ADAM_FIELDS, "states")


def digest_of(texts: Iterable[str]) -> str:
    """A short digest of a sequence of texts; the order counts, and so do the borders between them."""
    h = hashlib.sha256()
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        h.update(len(raw).to_bytes(8, "little") + raw)
    return h.hexdigest()[:32]
