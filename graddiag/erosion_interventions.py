"""The tuned model once more, without what two sets' shifts share: given answers are read again, and again without
random subspaces of the same sizes. Every reading is kept, and is not made again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from graddiag.encoding import Encoded, EncodedSet
from graddiag.erosion_removal import (
    REMOVAL_FILE,
    SHARED,
    UNCHANGED,
    LossLine,
    digest,
    draw_names,
    measured_sets,
    read_lines,
)  # fmt: skip
from graddiag.erosion_setting import TUNED, ErosionRun, RemovalSetting
from graddiag.errors import DataError, UsageError
from graddiag.files import disk_named
from graddiag.interrupt import Interrupted, deferred_stop
from graddiag.intervention import Intervention, random_like, read_intervened
from graddiag.line_files import append_lines, write_lines
from graddiag.model_set import ModelSet, Turn
from graddiag.progress import Progress
from graddiag.reading import Reader, checked_reader
from graddiag.removal_folds import Fold, folds

RANDOM_SUBSPACES = 20  # of either kind: the fewest of which a p below 0.05 can come
NEEDED = ("left", "right", "harmful", "benign")

Opened = tuple[Reader, Mapping[str, EncodedSet]]  # a reader of losses alone, and the sets as this model's tokens


def check_interventions(
    asked: Sequence[int], n_random: int, parts: Mapping[str, str], layers: Sequence[int] | None, n_layers: int
) -> None:
    """Raises UsageError where something is asked and a part is missing, a layer does not exist or its states are not
    read, or there is no random subspace to compare with."""
    if not asked:
        return
    missing = [p for p in NEEDED if p not in parts]
    if missing:
        raise UsageError(f"--intervene needs the sets left, right, harmful and benign, and there is no {missing[0]}.")
    if n_random < 1:
        raise UsageError(f"--random-subspaces {n_random}: give at least 1, and 20 or more for a p below 0.05.")
    for layer in asked:
        if not 0 <= layer < n_layers:
            raise UsageError(f"--intervene: there is no layer {layer}. The models have the layers 0 to {n_layers - 1}.")
        if layers is not None and layer not in layers:
            read = ", ".join(map(str, sorted(layers)))
            raise UsageError(f"--intervene: the states of layer {layer} are not read (--layers {read}). Add it there.")


def remove_shared(
    run: ErosionRun,
    models: ModelSet,
    layers: Sequence[int],
    n_random: int,
    open_sets: Callable[[Turn], Opened],
    *,
    batch_tokens: int,
    overwrite: bool,
    quiet: bool,
) -> RemovalSetting | None:
    """What is shared removed behind the layers, fitted on one half of the clusters and read on the other, both ways;
    None where there are no layers.

    Losses go to a file of the run, a line per set and draw; a line that is there is not made again, and where none is
    missing no model is loaded. Raises DataError where the file holds something else (with `overwrite` it is replaced),
    Interrupted after a signal, when finished readings are kept.
    """
    if not layers:
        return None
    chosen, names = tuple(sorted(set(layers))), measured_sets(run)
    halves = folds(run, chosen, names)
    ofs = {name: digest(run, chosen, name) for name in names}
    there = _kept(run, ofs, overwrite=overwrite)
    fits = tuple(fit for fold in halves for fit in fold.fits)
    found = RemovalSetting(chosen, n_random, fits, {k: n for k in names if (n := _unread(run, k, halves))})
    todo = [(d, name) for d in draw_names(n_random) for name in names if (ofs[name], d) not in there]
    if todo and found.possible:
        job = _Job(run, halves, ofs, batch_tokens, quiet)
        only = replace(models, models={TUNED: models.models[TUNED]})
        only.visit(lambda turn: job.read(*open_sets(turn), todo))
    return found


def _kept(run: ErosionRun, ofs: Mapping[str, str], *, overwrite: bool) -> set[tuple[str, str]]:
    """The readings that are there already: digest and draw. Raises DataError for those of something else."""
    lines = read_lines(run.folder)
    own = [x for x in lines if ofs.get(x.name) == x.of]
    if len(own) < len(lines):
        if not overwrite:
            raise DataError(
                f"{run.folder / REMOVAL_FILE} has {len(lines) - len(own)} readings of something else (other layers, "
                "sets, models or seed). Choose another --out, or replace them with --overwrite."
            )
        with disk_named(run.folder):
            write_lines(run.folder / REMOVAL_FILE, [x.line for x in own])
    return {(x.of, x.draw) for x in own}


def _unread(run: ErosionRun, name: str, halves: Sequence[Fold]) -> int:
    """How many rows of a set neither half may be read on: their text is in the one, their cluster in the other."""
    table = run.change_on(name).left
    return sum(not any(f.reads(c, d) for f in halves) for c, d in zip(table.clusters, table.digests, strict=True))


@dataclass(frozen=True)
class _Job:
    """Everything that the readings have in common."""

    run: ErosionRun
    halves: tuple[Fold, Fold]
    ofs: Mapping[str, str]
    batch_tokens: int
    quiet: bool

    def read(self, of: Reader, sets: Mapping[str, EncodedSet], todo: Sequence[tuple[str, str]]) -> None:
        """Makes the readings (draw, set), each kept as soon as it is made."""
        parts = {name: self._parts(name, sets[name]) for name in self.ofs}
        of = checked_reader(of, [r for one in sets.values() for r in one.rows])
        tokens = {name: sum(len(r.tokens) for some in by_half for r in some) for name, by_half in parts.items()}
        progress = Progress(f"{TUNED}: interventions", sum(tokens[name] for _, name in todo), quiet=self.quiet)
        with deferred_stop() as stop, disk_named(self.run.folder):
            for draw, name in todo:
                ids, losses = self._losses(of, sets[name], parts[name], draw)
                line = LossLine(self.ofs[name], name, draw, ids, losses)
                append_lines(self.run.folder / REMOVAL_FILE, [line.line])
                progress.advance(tokens[name])
                if stop.number:
                    raise Interrupted(stop.number)
        progress.finish()

    def _parts(self, name: str, one: EncodedSet) -> list[list[Encoded]]:
        """The rows that each half is read on."""
        table = self.run.change_on(name).left
        cluster = dict(zip(table.ids, table.clusters, strict=True))
        return [
            [r for r in one.rows if r.id in cluster and fold.reads(cluster[r.id], r.digest)] for fold in self.halves
        ]

    def _losses(
        self, of: Reader, one: EncodedSet, parts: Sequence[Sequence[Encoded]], draw: str
    ) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """Ids and losses of all rows, those of either half without what the other half has."""
        ids: list[str] = []
        losses: list[float] = []
        for fold, rows in zip(self.halves, parts, strict=True):
            if rows:
                some = replace(one, rows=tuple(rows))
                table = read_intervened(of, some, self._change(fold, draw), batch_tokens=self.batch_tokens)
                ids += table.ids
                losses += table.loss.tolist()
        return tuple(ids), tuple(losses)

    def _change(self, fold: Fold, draw: str) -> Intervention:
        """What is removed from rows that the fold is read on."""
        own = {k: s.directions.T for k, s in fold.spaces.items() if s.directions.shape[1]}
        if draw in {UNCHANGED, SHARED}:
            return Intervention(own if draw == SHARED else {})
        kind, _, number = draw.partition("-")
        words = [self.run.setting.seed, int(number), fold.half]
        if kind == "random":
            return random_like(Intervention(own), seed=int(np.random.SeedSequence(words).generate_state(1)[0]))
        rng = np.random.default_rng([*words, 1])
        return Intervention(
            {k: rng.normal(size=(len(x), len(fold.spaces[k].rows))) @ fold.spaces[k].rows for k, x in own.items()}
        )
