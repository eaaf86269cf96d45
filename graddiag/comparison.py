"""Two tables side by side: checked once, paired by id, with everything in which the sides differ."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Int

from graddiag.answers import answer_groups, clustered, count_repeats, firsts, names_clusters, repeat_warning
from graddiag.errors import DataError
from graddiag.signals import TOWARD, PairProducts, Signals, check_same_space

LONGER = 1.1  # ratio of prompt lengths from which a reader is told: a sentence more in a prompt of ten


@dataclass(frozen=True)
class Comparison:
    """Two tables in one space. Pairs go by id, and rows that are not finite are in no pair.

    `left_index[p]` and `right_index[p]` are the rows of pair p, `clusters[p]` is the number of its cluster (named in
    `cluster_names`), `identical[p]` says whether both members have the same target tokens. `pairs` holds exact
    products of the pairs where they were computed, in the order of the pairs here.

    `left_answers`, `right_answers` number the answers of all rows, see `answer_groups`. Where neither table names
    clusters, rows of one answer share a cluster, in `left` and `right` too (`by_answer`).

    Two tables that were only read (no blocks) may differ in their chat template: the answers are the same text then,
    after other prompts (`identical`). They may differ in their tokenizer where the answers have the same token ids,
    which here are taken to mean the same text.

    Raises DataError where the spaces differ, answers cannot be matched, tables hold products instead of gradients or
    states of different sizes, or no row is left on a side.
    """

    left: Signals
    right: Signals
    products: PairProducts | None = None
    left_index: Int[np.ndarray, " p"] = field(init=False)
    right_index: Int[np.ndarray, " p"] = field(init=False)
    clusters: Int[np.ndarray, " p"] = field(init=False)
    cluster_names: tuple[str, ...] = field(init=False)
    identical: Bool[np.ndarray, " p"] = field(init=False)
    pairs: PairProducts | None = field(init=False)
    left_answers: Int[np.ndarray, " l"] = field(init=False)
    right_answers: Int[np.ndarray, " r"] = field(init=False)
    by_answer: bool = field(init=False)

    def __post_init__(self) -> None:
        if TOWARD in {self.left.space.projection, self.right.space.projection}:
            raise DataError(
                f"{self.left.provenance.data} and {self.right.provenance.data}: a folder of 'graddiag screen' holds "
                "products of rows with mean gradients, no gradients that could be compared. Use 'graddiag extract'."
            )
        self._check_spaces()
        for side in (self.left, self.right):
            if not side.finite.any():
                raise DataError(
                    f"{side.provenance.data}: none of its {len(side)} rows has a finite loss and "
                    "gradient, so nothing can be compared."
                )
        self._group_answers()
        self._pair()
        self._check_answers()

    def _check_spaces(self) -> None:
        """Raises DataError unless the spaces are equal and hidden states of one site have one size."""
        left, right = self.left.space, self.right.space
        if self._other_rendering:
            left = replace(left, template=right.template, tokenizer=right.tokenizer)
        check_same_space(left, right, self.left.provenance.data, self.right.provenance.data)
        for site, a in self.left.states.items():
            b = self.right.states[site]
            if a.shape[1] != b.shape[1]:
                raise DataError(
                    f"Hidden states of {self.left.provenance.model} have {a.shape[1]} numbers at {site} and those of "
                    f"{self.right.provenance.model} {b.shape[1]}: they cannot be subtracted. Compare models of one "
                    "architecture."
                )

    @property
    def _other_rendering(self) -> bool:
        """Whether two tables that were only read differ in their chat template or tokenizer."""
        left, right = self.left.space, self.right.space
        return not (left.blocks or right.blocks) and (
            (left.template, left.tokenizer) != (right.template, right.tokenizer)
        )

    def _check_answers(self) -> None:
        """Raises DataError where tokenizers differ and the two rows of a pair have other target tokens, as far as both
        go: a cut answer is the beginning of one."""
        if self.left.space.tokenizer == self.right.space.tokenizer:
            return
        for a, b in zip(self.left_index, self.right_index, strict=True):
            x, y = self.left.target_ids[a], self.right.target_ids[b]
            n = min(len(x), len(y))
            if not np.array_equal(x[:n], y[:n]):
                raise DataError(
                    f"{self.left.provenance.model} and {self.right.provenance.model} have different tokenizers, and "
                    f"the answer of row {self.left.ids[a]!r} has other tokens under the two: rows cannot be matched. "
                    "Compare models of one family."
                )

    def _group_answers(self) -> None:
        groups = answer_groups(self.left, self.right)
        by_answer = not (names_clusters(self.left) or names_clusters(self.right))
        names = ("left_answers", "right_answers", "by_answer")
        for name, value in zip(names, (*groups, by_answer), strict=True):
            self._set(name, value)
        for name, table in zip(("left", "right"), clustered(self.left, self.right), strict=True):
            self._set(name, table)

    def _pair(self) -> None:
        position = {i: k for k, i in enumerate(self.right.ids)}
        found = [(k, position[i]) for k, i in enumerate(self.left.ids) if i in position]
        kept = [(a, b) for a, b in found if self.left.finite[a] and self.right.finite[b]]
        left_index = np.array([a for a, _ in kept], dtype=np.int64)
        right_index = np.array([b for _, b in kept], dtype=np.int64)
        names = [self.left.clusters[a] for a, _ in kept]
        order = tuple(dict.fromkeys(names))
        number = {c: k for k, c in enumerate(order)}
        same = [np.array_equal(self.left.target_ids[a], self.right.target_ids[b]) for a, b in kept]
        self._set("left_index", left_index)
        self._set("right_index", right_index)
        self._set("clusters", np.array([number[c] for c in names], dtype=np.int64))
        self._set("cluster_names", order)
        self._set("identical", np.array(same, dtype=bool))
        self._set("pairs", self._products_in_order([self.left.ids[a] for a, _ in kept]))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _products_in_order(self, ids: list[str]) -> PairProducts | None:
        if self.products is None:
            return None
        both = zip(self.products.left_ids, self.products.right_ids, strict=True)
        where = {a: k for k, (a, b) in enumerate(both) if a == b}
        missing = [i for i in ids if i not in where]
        if missing:
            raise DataError(
                f"Exact products are missing for {len(missing)} of {len(ids)} pairs, the first is {missing[0]!r}."
            )
        return self.products.take([where[i] for i in ids])

    @property
    def n_pairs(self) -> int:
        """Pairs whose both members are finite."""
        return len(self.left_index)

    @property
    def answers(self) -> Int[np.ndarray, " p"]:
        """The number of each pair's answer; pairs that are linked on either side share one."""
        return np.asarray(self.left_answers[self.left_index])

    def without_repeats(self) -> Comparison:
        """The same comparison with every answer once: the first pair of each, and of rows in no pair the first one.

        This comparison itself where no answer is repeated.
        """
        kept = [
            firsts(groups, [*paired, *np.flatnonzero(side.finite), *range(len(side))])
            for side, groups, paired in (
                (self.left, self.left_answers, self.left_index),
                (self.right, self.right_answers, self.right_index),
            )
        ]
        if [len(k) for k in kept] == [len(self.left), len(self.right)]:
            return self
        return Comparison(self.left.take(kept[0]), self.right.take(kept[1]), self.products)

    @property
    def differs(self) -> tuple[str, ...]:
        """What differs between the sides: "data", "model", both or nothing."""
        out = []
        if not (self._same_answers if self._other_rendering else self.left.rows == self.right.rows):
            out.append("data")
        if self.left.provenance.weights != self.right.provenance.weights:
            out.append("model")
        return tuple(out)

    @property
    def _same_answers(self) -> bool:
        """Whether both sides have the same rows, in this order, with the same target tokens."""
        answers = zip(self.left.target_ids, self.right.target_ids, strict=False)
        return self.left.ids == self.right.ids and all(np.array_equal(a, b) for a, b in answers)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before believing a number of this comparison."""
        return (*self.pairing_warnings, *self._repeats())

    @property
    def pairing_warnings(self) -> tuple[str, ...]:
        """The warnings, without those on answers that are repeated."""
        left, right = self.left.provenance.data, self.right.provenance.data
        out = []
        if self.differs == ("data", "model"):
            out.append("The two sides differ in both data and model: no difference can be put down to either alone.")
        out += [*self.left.warnings, *self.right.warnings]
        for name, side, other in ((left, self.left, self.right), (right, self.right, self.left)):
            alone = len(set(side.ids) - set(other.ids))
            if alone:
                out.append(
                    f"{name}: {alone} of {len(side)} rows have no partner of the same id; they are in "
                    "no paired statistic."
                )
        out += self._rendered_otherwise()
        different = self.n_pairs - int(self.identical.sum())
        if self.n_pairs and different:
            out.append(
                f"{different} of {self.n_pairs} pairs do not have the same target tokens; their "
                "differences are not due to the request alone."
            )
        out += self._longer()
        odd = [i for i, a, b in self._pair_clusters() if a != b]
        if odd:
            out.append(
                f"{len(odd)} pairs are in different clusters on the two sides, the first is "
                f"{odd[0]!r}; those of {left} are used."
            )
        return tuple(out)

    def _rendered_otherwise(self) -> list[str]:
        """A warning where the models have chat templates or tokenizers of their own."""
        left, right = self.left, self.right
        models = f"{left.provenance.model} and {right.provenance.model}"
        templates = (
            f"{models} have different chat templates: rows are matched by their answers, and a difference may be due "
            "to the template. Lend one model the other's to rule that out."
        )
        tokenizers = (
            f"{models} have different tokenizers: rows are matched by their answers, whose tokens are the same; a "
            "difference may be due to how the prompts are read."
        )
        both = (
            (templates, left.space.template, right.space.template),
            (tokenizers, left.space.tokenizer, right.space.tokenizer),
        )
        return [text for text, a, b in both if self._other_rendering and a != b]

    def _longer(self) -> list[str]:
        """A warning where the prompts of one side are longer than their partners', with the ratio."""
        a, b = (
            (side.length - side.n_tokens)[at]
            for side, at in ((self.left, self.left_index), (self.right, self.right_index))
        )
        if not self.n_pairs:
            return []
        ratio = float(np.median(b / a))
        names = [self.right.provenance.data, self.left.provenance.data]
        longer, shorter, more, less = (names[0], names[1], b, a) if ratio > 1 else (names[1], names[0], a, b)
        if max(ratio, 1 / ratio) < LONGER:
            return []
        return [
            f"The prompts of {longer} are {max(ratio, 1 / ratio):.2f} times as long as those of {shorter} (median over "
            f"{self.n_pairs} pairs; {np.mean(more):.0f} tokens against {np.mean(less):.0f}, longer in "
            f"{np.mean(more > less):.0%} of pairs): length differs along with the request."
        ]

    def _repeats(self) -> list[str]:
        """A warning where answers are repeated: how many pairs, how many answers, and what was done about it."""
        if not self.n_pairs:
            return [w for side in (self.left, self.right) for w in repeat_warning(side)]
        n, answers = count_repeats(self.answers)
        if not n:
            return []
        done = (
            f"no clusters are named, so the pairs of an answer are one ({len(self.cluster_names)} clusters)"
            if self.by_answer
            else "clusters are those that are named; the result without the repeats stands beside (without_repeats/...)"
        )
        return [
            f"{n} of {self.n_pairs} pairs have an answer that another pair has too ({answers} such answers): {done}."
        ]

    def _pair_clusters(self) -> list[tuple[str, str, str]]:
        at = zip(self.left_index, self.right_index, strict=True)
        return [(self.left.ids[a], self.left.clusters[a], self.right.clusters[b]) for a, b in at]
