"""Which rows have one and the same answer, and what does that make of clusters that nobody named?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from graddiag.signals import Signals


def names_clusters(table: Signals) -> bool:
    """Whether the data, or --cluster, says what rows have in common; where neither does, a row's cluster is its id."""
    return table.clusters != table.ids


def answer_groups(*tables: Signals) -> tuple[Int[np.ndarray, " _"], ...]:
    """The number of each row's answer, for each table; numbers follow the order of appearance.

    An answer is a row's target token ids: they are what the loss and the gradient see, and they are saved with the
    signals, so that no model or text is needed. Cut answers are compared as they were cut, and with --target all an
    answer is the whole conversation. Rows of one id in two tables are a pair and have one number; so has all that is
    linked: the pairs (a, b) and (a, c) of answers, and then every row whose answer is c.
    """
    keys: dict[tuple[str, str | bytes], int] = {}
    ends = [[_key(keys, "id", i) for i in t.ids] for t in tables]
    answers = [[_key(keys, "answer", _bytes(a)) for a in t.target_ids] for t in tables]
    # int32: csgraph of SciPy 1.11 takes no wider index, and then leaves the labels as they lay in memory.
    left, right = (np.array([k for part in side for k in part], dtype=np.int32) for side in (ends, answers))
    graph = coo_array((np.ones(len(left)), (left, right)), shape=(len(keys), len(keys)))
    linked = connected_components(graph, directed=False)[1][left]
    _, first, numbers = np.unique(linked, return_index=True, return_inverse=True)
    in_order = np.argsort(np.argsort(first))[numbers]
    return tuple(np.split(in_order, np.cumsum([len(t) for t in tables])[:-1]))


def _key(keys: dict[tuple[str, str | bytes], int], kind: str, value: str | bytes) -> int:
    return keys.setdefault((kind, value), len(keys))


def _bytes(answer: Int[np.ndarray, " t"]) -> bytes:
    return answer.astype("<i8").tobytes()


def clustered(*tables: Signals) -> tuple[Signals, ...]:
    """The tables, rows of one answer in one cluster if no table names clusters; such a cluster has its first row's id.

    The very tables given where clusters are named, and where no answer is repeated: every row is one of its own.
    """
    if any(names_clusters(t) for t in tables):
        return tables
    groups = answer_groups(*tables)
    if len(set(np.concatenate(groups).tolist())) == len({i for t in tables for i in t.ids}):
        return tables
    name: dict[int, str] = {}
    for table, numbers in zip(tables, groups, strict=True):
        for i, g in zip(table.ids, numbers.tolist(), strict=True):
            name.setdefault(g, i)
    return tuple(
        replace(t, clusters=tuple(name[g] for g in numbers.tolist())) for t, numbers in zip(tables, groups, strict=True)
    )


def by_answer(ids: Sequence[str], answers: Sequence[str | bytes]) -> tuple[str, ...]:
    """The cluster of each row of one set, where rows of equal answers share one: the id of the first of them."""
    first: dict[str | bytes, str] = {}
    return tuple(first.setdefault(answer, i) for i, answer in zip(ids, answers, strict=True))


def cluster_codes(table: Signals) -> Int[np.ndarray, " n"]:
    """The number of each row's cluster: the one that the data names, else that of its answer."""
    (known,) = clustered(table)
    return np.asarray(np.unique(np.array(known.clusters), return_inverse=True)[1])


def count_repeats(groups: Int[np.ndarray, " n"]) -> tuple[int, int]:
    """How many rows have an answer that another row has too, and how many such answers there are."""
    counts = np.bincount(groups) if len(groups) else np.zeros(0, dtype=np.int64)
    return int(counts[counts > 1].sum()), int((counts > 1).sum())


def firsts(groups: Int[np.ndarray, " n"], order: Sequence[int] | Int[np.ndarray, " m"]) -> Int[np.ndarray, " k"]:
    """The rows that come first of their answer in this order of rows, in the order of the table."""
    at = np.asarray(order, dtype=np.int64)
    return np.asarray(np.sort(at[np.unique(groups[at], return_index=True)[1]]))


def repeat_warning(table: Signals) -> tuple[str, ...]:
    """A warning where rows of a table have the answer of another row, with how many; none where all differ."""
    n, answers = count_repeats(answer_groups(table)[0][table.finite])
    if not n:
        return ()
    return (told(table.provenance.data, len(table), n, answers, named=names_clusters(table)),)


def told(name: str, n_rows: int, n: int, answers: int, *, named: bool) -> str:
    """The sentence on the repeats of a set: `n` of its rows have one of so many answers that are repeated."""
    which = "clusters are those that are named" if named else "no clusters are named, so each is one"
    return (
        f"{name}: {n} of {n_rows} rows have an answer that another of its rows has too ({answers} such answers; "
        f"{which})."
    )
